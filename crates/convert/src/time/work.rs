//! What a conversion computes, counted from its plan.

use std::collections::BTreeMap;

use shardwright_format::manifest::Calibration;
use shardwright_format::{ModelSpec, Role, TensorEntry, Unit};
use shardwright_quant::{Encoding, Method, Zeros};

use crate::calibrate::collect::{GRAM_LIMIT, LEAST_ROWS};
use crate::calibrate::statistics::InputKey;
use crate::calibrate::streams::{compared, predicted, through_original};
use crate::plan::{Plan, PlannedTensor};

/// How codes are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct How {
    pub encoding: Encoding,
    pub method: Method,
    pub zeros: Zeros,
    /// Whether the inputs are known, so that errors are fed back.
    pub feedback: bool,
}

/// How many weights get their codes in one way.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Amount {
    pub weights: f64,
    /// The sum over them of the columns of their matrix: what feedback grows with.
    pub columns: f64,
}

/// Counts, in multiply-adds where nothing else is said.
#[derive(Debug, Default)]
pub struct Work {
    /// In the order in which they first come.
    pub rounding: Vec<(How, Amount)>,
    /// Of the text with all matrices, and of attention.
    pub products: f64,
    /// Of inputs with themselves.
    pub outer: f64,
    /// Cubes of columns.
    pub factors: f64,
    /// Pairs of logits that are compared.
    pub logits: f64,
    /// Bytes.
    pub hashed: f64,
    /// Bytes.
    pub read: f64,
}

/// The text that goes through the model.
#[derive(Clone, Copy)]
struct Text {
    tokens: f64,
    window: f64,
    /// Tokens that go through the original.
    original: f64,
    /// Tokens that go through it again.
    again: f64,
}

impl Text {
    fn new(text: &Calibration, model: &ModelSpec) -> Self {
        let (tokens, window) = (text.tokens, u64::from(text.window));
        let again = if model.tie_word_embeddings { compared(tokens, window) } else { 0 };
        Self {
            tokens: tokens as f64,
            window: window as f64,
            original: through_original(model, tokens, window) as f64,
            again: again as f64,
        }
    }

    /// What goes through the original, as a part of all.
    fn share(self) -> f64 {
        (self.original + self.again) / self.tokens.max(1.0)
    }
}

impl Work {
    /// Of all that `plan` says.
    pub fn new(plan: &Plan) -> Self {
        let mut work = Self::default();
        work.read = plan.cost.source_bytes as f64;
        work.hashed = work.read + plan.summary.bundle_bytes as f64;
        let calibration = plan.manifest.calibration.as_ref();
        let text = calibration
            .filter(|found| found.text_blake3.is_some())
            .map(|found| Text::new(found, &plan.manifest.model));
        for (unit, count) in units(plan) {
            let Some(planned) = plan.planned(unit) else { continue };
            let known = calibration.is_some() && unit.extra_role().is_none();
            work.unit(&planned.tensors, (unit, count), known);
            if let Some(text) = text {
                work.text(&planned.tensors, (unit, count), plan, text);
            }
        }
        if let Some(text) = text {
            work.head(plan, text);
        }
        work
    }

    /// Codes and factors of a unit, as often as there are such units.
    fn unit(&mut self, tensors: &[PlannedTensor<'_>], (unit, count): (Unit, f64), known: bool) {
        let mut factored = BTreeMap::new();
        for tensor in tensors
            .iter()
            .filter(|tensor| tensor.entry.encoding.float().is_none())
        {
            let entry = tensor.entry;
            let rotated = matches!(entry.encoding, Encoding::Trellis(_));
            let key = InputKey::for_tensor(unit, entry.role).filter(|_| known);
            let feedback = key.is_some() && (rotated || tensor.method == Method::Gptq);
            if let Some(key) = key.filter(|_| feedback) {
                factored.insert((key, rotated), entry.cols as f64);
            }
            let (encoding, method, zeros) = (entry.encoding, tensor.method, tensor.zeros);
            let how = How { encoding, method, zeros, feedback };
            let at = self.rounding.iter().position(|(known, _)| *known == how);
            let at = at.unwrap_or_else(|| {
                self.rounding.push((how, Amount::default()));
                self.rounding.len() - 1
            });
            let weights = count * (entry.rows * entry.cols) as f64;
            let amount = &mut self.rounding[at].1;
            amount.weights += weights;
            amount.columns += weights * entry.cols as f64;
        }
        self.factors += count
            * factored
                .values()
                .map(|cols: &f64| cols.powi(3))
                .sum::<f64>();
    }

    /// The text through a unit of a layer: as the checkpoint has it, watched, and as the bundle has it.
    fn text(
        &mut self,
        tensors: &[PlannedTensor<'_>],
        (unit, count): (Unit, f64),
        plan: &Plan,
        text: Text,
    ) {
        let Some(layer) = unit.layer() else { return };
        let spec = &plan.manifest.model.layers[layer as usize];
        let (rows, watched) = match unit {
            Unit::Expert { .. } => {
                let share = f64::from(picks(&spec.ffn)) / f64::from(spec.num_experts().max(1));
                let rows = text.tokens * share;
                (rows, rows.max((LEAST_ROWS as f64).min(text.tokens)))
            }
            _ => (text.tokens, text.tokens),
        };
        let mut sites = BTreeMap::new();
        for TensorEntry { role, rows: outputs, cols, .. } in
            tensors.iter().map(|tensor| tensor.entry)
        {
            // What has no inputs is a norm or a bias, and costs next to nothing.
            let Some(key) = InputKey::for_tensor(unit, *role) else { continue };
            sites.insert(key, *cols);
            let weights = count * (outputs * cols) as f64;
            let last = [Role::DownProj, Role::SharedDownProj, Role::ExpertDownProj].contains(role);
            // In the original's stream and in the bundle's; what a layer gives while it is watched nobody needs.
            self.products +=
                weights * (rows * (1.0 + text.share()) + if last { 0.0 } else { watched });
            if *role == Role::OProj {
                // Half of a window on average, with keys and with values.
                let pairs = text.tokens * text.window / 2.0 * 2.0 * *cols as f64;
                self.products += count * pairs * (2.0 + text.share());
            }
        }
        let full = sites.values().filter(|cols| **cols <= GRAM_LIMIT as u64);
        // One half of a product that is its own mirror image.
        self.outer += count * watched * full.map(|cols| (cols * cols) as f64 / 2.0).sum::<f64>();
    }

    /// What both models predict at the end.
    fn head(&mut self, plan: &Plan, text: Text) {
        let spec = &plan.manifest.model;
        let (vocab, hidden) = (f64::from(spec.vocab_size), f64::from(spec.hidden_size));
        let tokens = predicted(text.tokens as u64, text.window as u64) as f64;
        self.products += 2.0 * tokens * vocab * hidden;
        let known = if spec.tie_word_embeddings { text.original } else { text.tokens };
        self.outer += known * hidden * hidden / 2.0;
        self.logits += tokens * vocab;
    }
}

/// One unit of each kind with the number of those that are alike: experts of a layer are.
fn units(plan: &Plan) -> impl Iterator<Item = (Unit, f64)> + '_ {
    let layers = &plan.manifest.model.layers;
    plan.units().filter_map(move |unit| match unit {
        Unit::Expert { expert: 1.., .. } => None,
        Unit::Expert { layer, .. } => Some((unit, f64::from(layers[layer as usize].num_experts()))),
        _ => Some((unit, 1.0)),
    })
}

/// Experts that a token is sent to.
fn picks(ffn: &shardwright_format::model::Ffn) -> u32 {
    match ffn {
        shardwright_format::model::Ffn::Moe(moe) => moe.num_experts_per_tok,
        shardwright_format::model::Ffn::Dense(_) => 1,
    }
}
