//! How far a model's pass is from what another implementation computed: the proof of a table.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use serde::{Deserialize, Serialize};
use shardwright_format::io::{INDEX_LIMIT, read_required};
use shardwright_format::weights::Weights;
use shardwright_format::{FormatError, mismatch};
use shardwright_runtime::layerwise::LayerPass;
use shardwright_runtime::{Head, RuntimeError};

use crate::error::{Result, VerifyError};

/// Differences up to this share of the largest value are those of two orders of summation in f32.
pub const GOLDEN_LIMIT: f32 = 1e-4;

/// How far a model is from what another implementation computed of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GoldenCheck {
    /// Tokens of the text.
    pub tokens: u64,
    /// Of the residual stream, where the file has it: before the first layer, then after each.
    pub hidden: Vec<HiddenDifference>,
    /// The largest difference of a logit, over the largest logit.
    pub logits: f32,
    /// Tokens for which both hold the same token most probable.
    pub same_top: u64,
    /// Whether nothing differs by more than [`GOLDEN_LIMIT`].
    pub agrees: bool,
}

/// How far the residual stream is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HiddenDifference {
    /// After which layer, from 0; none before the first.
    pub layer: Option<u32>,
    /// The largest difference of a value, over the largest value.
    pub difference: f32,
}

/// What another implementation computed, in safetensors: `input_ids` `[n]`, `logits` `[n, vocab]` and, where
/// it is there, `hidden.I` `[n, hidden_size]`, what goes into layer `I` from 0.
struct Golden<'a> {
    path: &'a Path,
    tensors: SafeTensors<'a>,
}

impl Golden<'_> {
    /// The bytes of a tensor of `dtype`, values of `SIZE` bytes; none where it is not there.
    fn values<const SIZE: usize>(&self, name: &str, dtype: Dtype) -> Result<Option<&[[u8; SIZE]]>> {
        let Ok(view) = self.tensors.tensor(name) else { return Ok(None) };
        if view.dtype() != dtype {
            return Err(self.refuse(name, format!("{dtype:?}"), format!("{:?}", view.dtype())));
        }
        Ok(Some(view.data().as_chunks().0))
    }

    fn tokens(&self) -> Result<Vec<u32>> {
        let ids = self.values::<8>("input_ids", Dtype::I64)?;
        let ids = ids.ok_or_else(|| self.refuse("input_ids", "tokens", "none"))?;
        let each = ids.iter().map(|bytes| {
            let id = i64::from_le_bytes(*bytes);
            u32::try_from(id).map_err(|_| self.refuse("input_ids", "token numbers", id))
        });
        let tokens: Vec<u32> = each.collect::<Result<_>>()?;
        match tokens.len() {
            0 => Err(self.refuse("input_ids", "at least one token", "none")),
            _ => Ok(tokens),
        }
    }

    /// The `count` floats of a tensor; none where it is not there.
    fn floats(&self, name: &str, count: usize) -> Result<Option<Vec<f32>>> {
        let Some(values) = self.values::<4>(name, Dtype::F32)? else { return Ok(None) };
        if values.len() != count {
            return Err(self.refuse(name, format!("{count} values"), values.len()));
        }
        let values: Vec<f32> = values.iter().map(|b| f32::from_le_bytes(*b)).collect();
        match values.iter().find(|v| !v.is_finite()) {
            Some(value) => Err(self.refuse(name, "finite values", value)),
            None => Ok(Some(values)),
        }
    }

    fn refuse(
        &self,
        tensor: &str,
        expected: impl std::fmt::Display,
        found: impl std::fmt::Display,
    ) -> VerifyError {
        FormatError::tensor(self.path, tensor, mismatch(expected, found)).into()
    }
}

/// Runs `weights` over the tokens of the file `golden` and compares.
///
/// # Errors
/// A file that is no such golden, or of another model; weights that cannot be read or are not finite.
pub fn check_golden(weights: &Weights, golden: &Path, threads: usize) -> Result<GoldenCheck> {
    let bytes = read_required(golden, INDEX_LIMIT)?;
    let tensors = SafeTensors::deserialize(&bytes);
    let foreign = |e| mismatch("a safetensors file", format_args!("none ({e})"));
    let tensors = tensors.map_err(|e| FormatError::file(golden, foreign(e)))?;
    let golden = Golden { path: golden, tensors };
    let (tokens, spec) = (golden.tokens()?, weights.spec());
    let vocab = spec.vocab_size as usize;
    // Asked for first: what the file holds bounds the tokens that are computed.
    let expected = golden.floats("logits", tokens.len() * vocab)?;
    let expected = expected.ok_or_else(|| golden.refuse("logits", "logits", "none"))?;
    let failed = VerifyError::of_model("the model");
    let mut pass = LayerPass::new(weights, &tokens, tokens.len(), threads).map_err(&failed)?;
    let (mut hidden, mut layer) = (Vec::new(), None);
    loop {
        // What went into the next layer is what came out of this one.
        let name = format!("hidden.{}", layer.map_or(0, |layer: u32| layer + 1));
        let count = tokens.len() * spec.hidden_size as usize;
        if let Some(expected) = golden.floats(&name, count)? {
            hidden
                .push(HiddenDifference { layer, difference: difference(pass.hidden(), &expected) });
        }
        layer = pass.step().map_err(&failed)?;
        if layer.is_none() {
            break;
        }
    }
    let logits = logits(weights, pass.hidden(), tokens.len(), threads).map_err(failed)?;
    let same_top = logits.chunks(vocab).zip(expected.chunks(vocab));
    let same_top = same_top.filter(|(a, b)| top(a) == top(b)).count() as u64;
    let logits = difference(&logits, &expected);
    let mut all = hidden.iter().map(|h| h.difference).chain([logits]);
    let agrees = all.all(|difference| difference <= GOLDEN_LIMIT);
    Ok(GoldenCheck { tokens: tokens.len() as u64, hidden, logits, same_top, agrees })
}

fn logits(
    weights: &Weights,
    hidden: &[f32],
    n: usize,
    threads: usize,
) -> Result<Vec<f32>, RuntimeError> {
    let mut head = Head::new(weights, threads)?;
    let mut logits = vec![0.0; n * head.vocab_size()];
    head.logits(hidden, n, &mut logits)?;
    Ok(logits)
}

/// The largest difference over the largest expected value.
fn difference(found: &[f32], expected: &[f32]) -> f32 {
    let largest = expected.iter().fold(0.0f32, |m, x| m.max(x.abs()));
    let pairs = found.iter().zip(expected);
    pairs.fold(0.0f32, |m, (a, b)| m.max((a - b).abs())) / largest.max(f32::MIN_POSITIVE)
}

/// The position of the largest logit, the first of equal ones.
fn top(logits: &[f32]) -> Option<usize> {
    let greater = |best: usize, at: usize| if logits[at] > logits[best] { at } else { best };
    (0..logits.len()).reduce(greater)
}
