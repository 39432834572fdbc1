//! The original's residual stream and the bundle's, side by side.

use rayon::prelude::*;
use shardwright_format::ModelSpec;
use shardwright_format::report::{LayerCoverage, LayerOutput};
use shardwright_format::weights::Weights;
use shardwright_quant::{Backend, softmaxes};
use shardwright_runtime::layerwise::LayerPass;
use shardwright_runtime::{Head, Result, Routes};

use super::Corpus;
use super::collect::LEAST_ROWS;

/// Logits held at once, per model: 32 MiB of them.
pub const LOGITS: usize = 8 << 20;

/// What is done for experts that too few tokens reach.
pub const RULE: &str = "experts with fewer than 256 tokens are given those of their highest router \
                        scores besides, up to 256, at a quarter of an average pick's weight";

/// Tokens of which the streams are compared after each layer where the original's has been at its end before.
const COMPARED: usize = 2048;

/// Tokens for each input of a head that is made by what the original gives it.
const HEAD_ROWS: usize = 32;

/// Tokens whose predictions are compared: with a large vocabulary those cost more than the layers.
const PREDICTED: usize = 8192;

/// How often the experts of the layer that a stream came through last were picked; none for a layer without experts.
pub fn coverage(layer: u32, spec: &ModelSpec, routes: &Routes) -> Option<LayerCoverage> {
    let experts = spec.layers[layer as usize].num_experts();
    if experts == 0 {
        return None;
    }
    let mut tokens = vec![0u64; experts as usize];
    for expert in &routes.experts {
        tokens[*expert as usize] += 1;
    }
    let starved = |expert: &u32| tokens[*expert as usize] < LEAST_ROWS as u64;
    Some(LayerCoverage { layer, starved: (0..experts).filter(starved).collect(), tokens })
}

/// What a text showed while the model was converted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Streamed {
    /// After each layer.
    pub layers: Vec<LayerOutput>,
    /// Mean Kullback-Leibler divergence of the predictions over the text, or its beginning, nats per token.
    pub divergence: f64,
    /// Per layer with experts.
    pub coverage: Vec<LayerCoverage>,
}

/// Both streams, after the same layer.
pub struct Streams<'w> {
    corpus: &'w Corpus,
    /// Of the text's beginning: see [`through_original`] and [`compared`].
    original: LayerPass<'w>,
    /// The original's after its last layer, `[tokens, hidden]`, where the text went through before.
    through: Option<Vec<f32>>,
    /// The bundle's, from the shards made so far.
    pub quantized: LayerPass<'w>,
}

impl<'w> Streams<'w> {
    /// Embeds the text as the bundle has it, and its beginning as the checkpoint has it. Where the original's stream is
    /// known to its end, `through`, its layers are computed again for less of the text.
    ///
    /// # Errors
    /// As [`LayerPass::new`].
    pub fn new(
        corpus: &'w Corpus,
        bundle: &'w Weights,
        through: Option<Vec<f32>>,
        threads: usize,
    ) -> Result<Self> {
        let start = |weights, tokens| LayerPass::new(weights, tokens, corpus.window, threads);
        let (tokens, window) = (corpus.tokens.len() as u64, corpus.window as u64);
        let beginning = match through {
            Some(_) => compared(tokens, window),
            None => through_original(corpus.original.spec(), tokens, window),
        };
        let original = start(&corpus.original, &corpus.tokens[..beginning as usize])?;
        let quantized = start(bundle, &corpus.tokens)?.reading_in_turn();
        Ok(Self { corpus, original, through, quantized })
    }

    /// Takes the original through the next layer.
    ///
    /// # Errors
    /// As [`LayerPass::step`].
    pub fn step_original(&mut self) -> Result<()> {
        self.original.step().map(drop)
    }

    /// Takes the bundle's stream through the next layer, whose shards must be made; gives how often its experts were
    /// picked, if it has some.
    ///
    /// # Errors
    /// As [`LayerPass::step`].
    pub fn step_quantized(&mut self) -> Result<Option<LayerCoverage>> {
        let Some(layer) = self.quantized.step()? else { return Ok(None) };
        Ok(coverage(layer, self.corpus.original.spec(), self.quantized.routes()))
    }

    /// How far they are apart after a layer, over the tokens that both were taken through.
    pub fn output(&self, layer: u32) -> LayerOutput {
        let (mut error, mut square) = (0.0, 0.0);
        for (a, b) in self.original.hidden().iter().zip(self.quantized.hidden()) {
            error += (f64::from(*a) - f64::from(*b)).powi(2);
            square += f64::from(*a).powi(2);
        }
        let relative_output_error = if error == 0.0 { 0.0 } else { (error / square).sqrt() };
        LayerOutput { layer, relative_output_error }
    }

    /// Mean Kullback-Leibler divergence of the bundle's predictions from the original's, in nats
    /// per token, over as much of the text as [`predicted`] says.
    ///
    /// # Errors
    /// Heads that cannot be read.
    pub fn divergence(&self, bundle: &Weights, threads: usize) -> Result<f64> {
        let mut head = Head::new(&self.corpus.original, threads)?;
        let own = Head::new(bundle, threads)?;
        let hidden = self.through.as_deref().unwrap_or(self.original.hidden());
        let tokens = predicted(self.corpus.tokens.len() as u64, self.corpus.window as u64);
        let values = tokens as usize * head.hidden_size();
        let mut others = [(Some(own), &self.quantized.hidden()[..values])];
        let found = mean_divergences(&mut head, &hidden[..values], &mut others)?;
        Ok(found.first().copied().unwrap_or_default())
    }
}

/// How many of a text's tokens, from its beginning, are compared after each layer where only some are: in whole windows,
/// one at least.
pub fn compared(tokens: u64, window: u64) -> u64 {
    beginning(COMPARED, tokens, window)
}

/// Of how many of a text's tokens the predictions are compared: in whole windows, one at least.
pub fn predicted(tokens: u64, window: u64) -> u64 {
    beginning(PREDICTED, tokens, window)
}

/// How many of a text's tokens go through the original, in whole windows, one at least: as many as its predictions are
/// compared on; where its embedding is its head too, also a number for each of the inputs by which that is made.
pub fn through_original(model: &ModelSpec, tokens: u64, window: u64) -> u64 {
    let inputs = if model.tie_word_embeddings { model.hidden_size as usize } else { 0 };
    beginning(PREDICTED.max(HEAD_ROWS * inputs), tokens, window)
}

fn beginning(most: usize, tokens: u64, window: u64) -> u64 {
    tokens.min((most as u64 / window).max(1) * window)
}

/// Mean Kullback-Leibler divergences, in nats per token, of the predictions that each of `others` makes from
/// those of `head` and the stream `a`: with its own head, or without one with `head`, of its stream, which
/// is as long as `a`.
///
/// # Errors
/// Heads that are not what the spec says.
pub fn mean_divergences(
    head: &mut Head,
    a: &[f32],
    others: &mut [(Option<Head>, &[f32])],
) -> Result<Vec<f64>> {
    let (vocab, hidden) = (head.vocab_size(), head.hidden_size());
    let rows = (LOGITS / vocab).max(1) * hidden;
    let (mut from, mut to, mut sums) = (Vec::new(), Vec::new(), vec![0.0; others.len()]);
    let backend = Backend::detect();
    for (at, a) in a.chunks(rows).enumerate() {
        let n = a.len() / hidden;
        from.resize(n * vocab, 0.0);
        to.resize(n * vocab, 0.0);
        head.logits(a, n, &mut from)?;
        for ((own, stream), sum) in others.iter_mut().zip(&mut sums) {
            let b = &stream[at * rows..][..a.len()];
            own.as_mut().unwrap_or(head).logits(b, n, &mut to)?;
            let pairs = from.par_chunks_exact(vocab).zip(to.par_chunks_exact(vocab));
            let each: Vec<f64> = pairs
                .map(|(a, b)| softmaxes(backend, a, b).divergence())
                .collect();
            *sum += each.iter().sum::<f64>();
        }
    }
    let tokens = (a.len() / hidden) as f64;
    Ok(sums.into_iter().map(|sum| sum / tokens).collect())
}

#[cfg(test)]
mod tests {
    use shardwright_format::ModelSpec;

    use super::{compared, predicted, through_original};

    #[test]
    fn whole_windows_are_compared_and_one_at_least() {
        assert_eq!(compared(32_768, 512), 2048);
        assert_eq!(compared(32_760, 168), 2016);
        assert_eq!(compared(16_384, 4096), 4096);
        assert_eq!(compared(1024, 512), 1024);
        assert_eq!(predicted(32_768, 500), 8000);
    }

    #[test]
    fn a_tied_original_is_gone_through_by_its_width() {
        let spec = |hidden_size, tie_word_embeddings| ModelSpec {
            hidden_size,
            tie_word_embeddings,
            ..ModelSpec::default()
        };
        let tokens = |hidden, tied| through_original(&spec(hidden, tied), 131_072, 512);
        assert_eq!(
            [tokens(576, true), tokens(5376, true), tokens(5376, false)],
            [18_432, 131_072, 8192]
        );
        assert_eq!(through_original(&spec(576, true), 16_384, 512), 16_384);
    }
}
