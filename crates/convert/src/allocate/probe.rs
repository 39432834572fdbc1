//! What each role of each layer costs: the divergence when it alone is quantized.
//!
//! All variants of the model go through its layers together, as more windows of one text, so every
//! weight is read once however many variants there are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rayon::prelude::*;
use shardwright_format::io::AlignedBuf;
use shardwright_format::unit::TensorEntry;
use shardwright_format::weights::Weights;
use shardwright_format::{FormatError, Role, Unit};
use shardwright_quant::{
    Affine, Backend, Encoding, Float, Job, Matrix, Method, PartsMut, Zeros, narrow, quantize, widen,
};
use shardwright_runtime::layerwise::LayerPass;
use shardwright_runtime::{Head, InputSite};

use crate::calibrate::objectives::Objectives;
use crate::calibrate::observe::{head_inputs, layer_inputs};
use crate::calibrate::streams::mean_divergence;
use crate::error::{ConvertError, Result};

/// Bits at which a role is tried.
pub const REFERENCE_BITS: u8 = 3;

/// What one role of one layer costs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sensitivity {
    /// The layer; none for embedding and head.
    pub layer: Option<u32>,
    /// Its matrices.
    pub role: Role,
    /// Mean divergence in nats per token when they alone are at [`REFERENCE_BITS`], groups of 64.
    pub divergence: f64,
}

/// The text, the model and how to go about it.
pub struct Probing<'a> {
    /// The original.
    pub original: &'a Arc<Weights>,
    /// Whole windows.
    pub tokens: &'a [u32],
    /// Tokens of a window.
    pub window: usize,
    /// Threads that compute.
    pub threads: usize,
    /// Set to stop.
    pub cancel: &'a AtomicBool,
}

/// A variant of the model: which role of which layer is quantized in it, and its head where that
/// differs.
struct Variant {
    layer: Option<u32>,
    role: Role,
    head: Option<Weights>,
}

impl Probing<'_> {
    /// Measures every role that multiplies activations and is worth quantizing.
    ///
    /// # Errors
    /// Weights that cannot be read, values that are not finite, a stop by the caller.
    pub fn measure(&self, progress: &dyn Fn(u32)) -> Result<Vec<Sensitivity>> {
        let original: &Weights = self.original;
        let mut base = LayerPass::new(original, self.tokens, self.window, self.threads)?;
        let mut others = LayerPass::resume(original, Vec::new(), self.window, 0, self.threads)?;
        let mut variants = self.tables(&mut others)?;
        for layer in 0..original.spec().layers.len() as u32 {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(ConvertError::Stopped);
            }
            let objectives = Objectives::new(layer_inputs(&mut base, original, layer)?);
            let mut after = Vec::new();
            for role in self.roles(layer)? {
                let overlay = self.quantized(&units(original, layer, role), role, &objectives)?;
                after.push(base.look_ahead(&overlay)?);
                variants.push(Variant { layer: Some(layer), role, head: None });
            }
            others.step()?;
            base.step()?;
            for x in &after {
                others.append(x);
            }
            progress(layer + 1);
        }
        self.score(base.hidden(), others.hidden(), &variants)
    }

    /// Variants of embedding and head, the streams of those appended.
    fn tables(&self, others: &mut LayerPass<'_>) -> Result<Vec<Variant>> {
        let original: &Weights = self.original;
        let embedding = || LayerPass::new(original, self.tokens, self.window, self.threads);
        let mut last = embedding()?;
        while last.step()?.is_some() {}
        let objectives = Objectives::new(head_inputs(original, last.hidden(), self.threads)?);
        let tied = original.spec().tie_word_embeddings;
        let blind = Objectives::default();
        // An embedding that is no head is looked up, not multiplied: nothing guides it.
        let embed_objectives = if tied { &objectives } else { &blind };
        let embed = self.quantized(&[Unit::Embedding], Role::EmbedTokens, embed_objectives)?;
        let x = LayerPass::new(&embed, self.tokens, self.window, self.threads)?.into_hidden();
        others.append(&x);
        let mut variants =
            vec![Variant { layer: None, role: Role::EmbedTokens, head: tied.then_some(embed) }];
        if !tied {
            let head = self.quantized(&[Unit::Head], Role::LmHead, &objectives)?;
            others.append(embedding()?.hidden());
            variants.push(Variant { layer: None, role: Role::LmHead, head: Some(head) });
        }
        Ok(variants)
    }

    /// Roles of a layer that are worth quantizing, in order of use.
    fn roles(&self, layer: u32) -> Result<Vec<Role>> {
        let mut roles = Vec::new();
        for unit in [Unit::Layer(layer), Unit::Expert { layer, expert: 0 }] {
            if unit_exists(self.original, unit) {
                let layout = self.original.layout(unit)?;
                roles.extend(
                    layout
                        .tensors
                        .iter()
                        .map(|t| t.role)
                        .filter(|role| is_coded(*role)),
                );
            }
        }
        Ok(roles)
    }

    /// The model with one role of some units quantized.
    fn quantized(&self, units: &[Unit], role: Role, objectives: &Objectives) -> Result<Weights> {
        let tensors: Result<BTreeMap<_, _>> = units
            .par_iter()
            .map(|unit| Ok(((*unit, role), self.requantized(*unit, role, objectives)?)))
            .collect();
        Ok(self.original.patched(tensors?))
    }

    /// A tensor after a round through codes, in its own type again.
    fn requantized(&self, unit: Unit, role: Role, objectives: &Objectives) -> Result<Vec<u8>> {
        let layout = self.original.layout(unit)?;
        let missing = || FormatError::file(self.original.root(), format!("{unit}: no {role}"));
        let entry = layout.find(role).ok_or_else(missing)?;
        let mut bytes = AlignedBuf::default();
        self.original
            .read_rows(unit, entry, 0..entry.rows, &mut bytes)?;
        let Some((dtype, encoding)) = reference(entry) else {
            return Ok(bytes.as_slice().to_vec());
        };
        let mut values = vec![0.0; (entry.rows * entry.cols) as usize];
        widen(dtype, bytes.as_slice(), &mut values);
        round(unit, &TensorEntry { encoding, ..entry.clone() }, objectives, &mut values)?;
        let mut out = bytes.as_slice().to_vec();
        narrow(dtype, &values, &mut out);
        Ok(out)
    }

    fn score(
        &self,
        base: &[f32],
        others: &[f32],
        variants: &[Variant],
    ) -> Result<Vec<Sensitivity>> {
        let mut head = Head::new(self.original, self.threads)?;
        let each = variants.iter().zip(others.chunks_exact(base.len()));
        each.map(|(variant, stream)| {
            let own = variant.head.as_ref();
            let mut own = own
                .map(|weights| Head::new(weights, self.threads))
                .transpose()?;
            let divergence = mean_divergence(&mut head, own.as_mut(), base, stream)?;
            Ok(Sensitivity { layer: variant.layer, role: variant.role, divergence })
        })
        .collect()
    }
}

/// Whether a role holds matrices that recipes quantize: routers and gates are too small and decide
/// too much.
pub fn is_coded(role: Role) -> bool {
    InputSite::from_role(role).is_some() && !matches!(role, Role::Router | Role::SharedExpertGate)
}

fn unit_exists(weights: &Weights, unit: Unit) -> bool {
    match unit {
        Unit::Expert { layer, .. } => weights.spec().layers[layer as usize].num_experts() > 0,
        _ => true,
    }
}

/// Units of a layer that have a role.
fn units(weights: &Weights, layer: u32, role: Role) -> Vec<Unit> {
    match InputSite::from_role(role) {
        Some(InputSite::Expert | InputSite::ExpertOut) => {
            (0..weights.spec().layers[layer as usize].num_experts())
                .map(|expert| Unit::Expert { layer, expert })
                .collect()
        }
        _ => vec![Unit::Layer(layer)],
    }
}

/// The type of a tensor and the codes it is tried in; none where no group fits.
fn reference(entry: &TensorEntry) -> Option<(Float, Encoding)> {
    let dtype = entry.encoding.float()?;
    let scales = if dtype == Float::Bf16 { Float::Bf16 } else { Float::F16 };
    let group = [64, 32]
        .into_iter()
        .find(|group| entry.cols.is_multiple_of(u64::from(*group)))?;
    Some((dtype, Encoding::Affine(Affine::new(REFERENCE_BITS, group, scales).ok()?)))
}

/// Takes values through an encoding and back.
fn round(
    unit: Unit,
    entry: &TensorEntry,
    objectives: &Objectives,
    values: &mut [f32],
) -> Result<()> {
    let (rows, cols) = (entry.rows as usize, entry.cols as usize);
    let refuse = |e: String| ConvertError::Plan(format!("{unit} {}: {e}", entry.role));
    let costs = objectives
        .objective(unit, entry, Method::Gptq)
        .map_err(refuse)?;
    let len = entry.byte_len().map_err(|e| refuse(e.to_string()))?;
    let mut bytes = vec![0; len as usize];
    let backend = Backend::detect();
    let parts = PartsMut::split(entry.encoding, rows, cols, &mut bytes);
    let parts = parts.map_err(|e| refuse(e.to_string()))?;
    let (encoding, objective) = (entry.encoding, costs.as_objective());
    let method = Method::Gptq.given(objective);
    let zeros = Zeros::Float;
    quantize(&Job { backend, x: values, cols, encoding, method, zeros, objective }, parts)
        .map_err(|e| refuse(e.to_string()))?;
    let matrix = Matrix::new(entry.encoding, rows, cols, &bytes);
    let matrix = matrix.map_err(|e| refuse(e.to_string()))?;
    matrix.dequantize(backend, 0..rows, values);
    Ok(())
}
