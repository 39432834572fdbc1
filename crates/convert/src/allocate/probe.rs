//! What each role of each layer costs: the divergence when it alone is quantized.
//!
//! The text goes through the original once. At each layer every role is quantized alone, and how far that moves
//! the layer's output is measured there and then; how much of it arrives at the end of the model, and what other
//! encodings do, is measured at a few layers of each role and interpolated for the others. What is taken to the end goes through the
//! layers together, as more windows of one text, so every weight is read once however many there are.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use shardwright_format::weights::Weights;
use shardwright_format::{Role, Unit};
use shardwright_runtime::layerwise::LayerPass;
use shardwright_runtime::{Head, InputSite};

use super::carry::{Carry, depths, relative_error};
use super::rounding::{EncodingErrors, quantized};
use super::usage::{TRIED_EXPERTS, TriedExperts, UsedAlike, used_alike};
use crate::calibrate::objectives::Objectives;
use crate::calibrate::observe::{head_inputs, layer_inputs};
use crate::calibrate::streams::mean_divergences;
use crate::error::{ConvertError, Result};
use crate::recipe::EncodingSpec;

/// What one role of one layer costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Sensitivity {
    /// The layer; none for embedding and head.
    pub layer: Option<u32>,
    /// Its matrices.
    pub role: Role,
    /// Mean divergence in nats per token when they alone are at 3 bits, groups of 64.
    pub divergence: f64,
    /// How the error of each encoding to choose from compares with that; none for one that cannot be.
    pub ratios: Vec<Option<f64>>,
    /// Of experts' matrices: which experts the text uses alike.
    pub used: Vec<UsedAlike>,
}

/// The text, the model and how to go about it.
pub struct Probing<'a> {
    /// The original.
    pub original: &'a Arc<Weights>,
    /// Whole windows.
    pub tokens: &'a [u32],
    /// Tokens of a window.
    pub window: usize,
    /// What a role may be stored in.
    pub encodings: &'a [EncodingSpec],
    /// Threads that compute.
    pub threads: usize,
    /// As many, for what is computed between the passes.
    pub pool: &'a rayon::ThreadPool,
    /// Set to stop.
    pub cancel: &'a AtomicBool,
}

/// A role of the next layer that was quantized alone.
struct QuantizedRole {
    role: Role,
    /// Whether its stream goes on to the end of the model.
    to_the_end: bool,
    /// Of the encodings; nothing where they are not tried.
    errors: EncodingErrors,
    /// What was quantized, as a part of what the role counts for in the layer's output.
    share: f64,
    /// The stream behind the layer.
    x: Vec<f32>,
}

/// A role that was quantized alone, and where that led.
struct Trial {
    layer: Option<u32>,
    role: Role,
    /// Of the encodings; nothing where they were not tried.
    errors: EncodingErrors,
    /// Of the layer's output, by [`relative_error`], as if all of the role were quantized.
    error: f64,
    /// What was quantized, as a part of what the role counts for in the layer's output.
    share: f64,
    /// Which of the streams that go to the end is its; none for one that goes no further than its layer.
    stream: Option<usize>,
    /// The variant's own head, where that differs.
    head: Option<Weights>,
}

impl Probing<'_> {
    /// Measures every role that multiplies activations and is worth quantizing.
    ///
    /// # Errors
    /// Weights that cannot be read, values that are not finite, a stop by the caller.
    pub fn measure(&self, progress: &dyn Fn(u32)) -> Result<Vec<Sensitivity>> {
        let original: &Weights = self.original;
        let (tried, hidden) = (tried(original)?, original.spec().hidden_size as usize);
        let mut base = LayerPass::new(original, self.tokens, self.window, self.threads)?;
        let mut others = LayerPass::resume(original, Vec::new(), self.window, 0, self.threads)?;
        let mut trials = self.tables(&mut others)?;
        let (mut streams, mut used) = (trials.len(), BTreeMap::new());
        // `base` is the original between two layers. `others` holds, one after another, the streams of all variants
        // that go to the end, each with one role of one layer below rounded: they take the rest of the model together.
        for layer in 0..original.spec().layers.len() as u32 {
            if self.cancel.load(Ordering::Relaxed) {
                return Err(ConvertError::Stopped);
            }
            let after = self.try_roles(&mut base, layer, &tried)?;
            others.step()?;
            base.step()?;
            let experts = original.spec().layers[layer as usize].num_experts();
            if experts > 0 {
                used.insert(layer, used_alike(base.routes(), experts));
            }
            for QuantizedRole { role, to_the_end, errors, share, x } in after {
                // Errors of different experts have nothing to do with each other, so their squares add up.
                let error = relative_error(base.hidden(), &x, hidden) / share;
                let stream = to_the_end.then_some(streams);
                if to_the_end {
                    others.append(&x);
                    streams += 1;
                }
                let layer = Some(layer);
                trials.push(Trial { layer, role, errors, error, share, stream, head: None });
            }
            progress(layer + 1);
        }
        let mut measured = self.score(base.hidden(), others.hidden(), &trials)?;
        for Sensitivity { layer, role, used: own, .. } in &mut measured {
            let known = layer.and_then(|layer| used.get(&layer));
            *own = known
                .filter(|_| role.is_expert())
                .cloned()
                .unwrap_or_default();
        }
        Ok(measured)
    }

    /// Where the next layer takes the stream with each of its roles alone rounded, which stays before it.
    fn try_roles(
        &self,
        base: &mut LayerPass<'_>,
        layer: u32,
        tried: &BTreeMap<Role, Vec<u32>>,
    ) -> Result<Vec<QuantizedRole>> {
        let original: &Weights = self.original;
        let inputs = layer_inputs(base, original, layer, TRIED_EXPERTS)?;
        let objectives = Objectives::new(inputs);
        let experts = original.spec().layers[layer as usize].num_experts();
        let sample = TriedExperts::new(base.routes(), experts);
        let mut found = Vec::new();
        for role in roles(original, layer)? {
            let ends = tried.get(&role);
            let to_the_end = ends.is_some_and(|layers| layers.contains(&layer));
            let encodings = if to_the_end { self.encodings } else { &[] };
            let share = if role.is_expert() { sample.share } else { 1.0 };
            let tensors = units(&sample.experts, layer, role);
            let (overlay, errors) = self.quantized((&tensors, role), &objectives, encodings)?;
            let x = base.look_ahead(&overlay)?;
            found.push(QuantizedRole { role, to_the_end, errors, share, x });
        }
        Ok(found)
    }

    /// As [`quantized`].
    fn quantized(
        &self,
        of: (&[Unit], Role),
        objectives: &Objectives,
        encodings: &[EncodingSpec],
    ) -> Result<(Weights, EncodingErrors)> {
        self.pool
            .install(|| quantized(self.original, of, objectives, encodings))
    }

    /// Variants of embedding and head, the streams of those appended.
    fn tables(&self, others: &mut LayerPass<'_>) -> Result<Vec<Trial>> {
        let original: &Weights = self.original;
        let embedding = || LayerPass::new(original, self.tokens, self.window, self.threads);
        let mut last = embedding()?;
        while last.step()?.is_some() {}
        let objectives = Objectives::new(head_inputs(original, last.hidden(), self.threads)?);
        let tied = original.spec().tie_word_embeddings;
        let blind = Objectives::default();
        let trial = |role, errors, stream, head| Trial {
            layer: None,
            role,
            errors,
            error: 0.0,
            share: 1.0,
            stream: Some(stream),
            head,
        };
        // An embedding that is no head is looked up, not multiplied: nothing guides it.
        let guide = if tied { &objectives } else { &blind };
        let of = (&[Unit::Embedding][..], Role::EmbedTokens);
        let (embed, errors) = self.quantized(of, guide, self.encodings)?;
        let x = LayerPass::new(&embed, self.tokens, self.window, self.threads)?.into_hidden();
        others.append(&x);
        let mut trials = vec![trial(Role::EmbedTokens, errors, 0, tied.then_some(embed))];
        if !tied {
            let of = (&[Unit::Head][..], Role::LmHead);
            let (head, errors) = self.quantized(of, &objectives, self.encodings)?;
            others.append(embedding()?.hidden());
            trials.push(trial(Role::LmHead, errors, 1, Some(head)));
        }
        Ok(trials)
    }

    /// What each trial costs: measured at the end of the model, or carried there.
    fn score(&self, base: &[f32], streams: &[f32], trials: &[Trial]) -> Result<Vec<Sensitivity>> {
        let mut head = Head::new(self.original, self.threads)?;
        let own = |trial: &Trial| {
            let own = trial
                .head
                .as_ref()
                .map(|weights| Head::new(weights, self.threads));
            own.transpose()
        };
        let ended = trials
            .iter()
            .filter_map(|trial| Some((trial, trial.stream?)));
        let mut others = Vec::new();
        for (trial, at) in ended {
            others.push((own(trial)?, &streams[at * base.len()..][..base.len()]));
        }
        let divergences = || mean_divergences(&mut head, base, &mut others);
        let mut measured = self.pool.install(divergences)?;
        for Trial { share, stream, .. } in trials {
            if let Some(at) = stream {
                measured[*at] /= share;
            }
        }
        // The variants that went to the end say how an error in a layer's output becomes divergence at the head;
        // the others' errors are carried by what lies between them.
        let mut carries = BTreeMap::<Role, Carry>::new();
        for Trial { layer, role, error, stream, .. } in trials {
            if let (Some(layer), Some(at)) = (layer, stream) {
                carries
                    .entry(*role)
                    .or_default()
                    .add(*layer, *error, measured[*at]);
            }
        }
        let sensitivity = |trial: &Trial| {
            let Trial { layer, role, error, stream, .. } = *trial;
            let carried = || Some(carries.get(&role)?.divergence(layer?, error));
            let divergence = stream.map(|at| measured[at]).or_else(carried);
            let ratios = self.ratios(role, trials);
            let divergence = divergence.unwrap_or_default();
            Sensitivity { layer, role, divergence, ratios, used: Vec::new() }
        };
        Ok(trials.iter().map(sensitivity).collect())
    }

    /// The mean ratio of each encoding's error to the reference's, over the layers where they were tried.
    fn ratios(&self, role: Role, trials: &[Trial]) -> Vec<Option<f64>> {
        let mean = |encoding| {
            let of_role = trials.iter().filter(|trial| trial.role == role);
            let found: Vec<f64> = of_role
                .filter_map(|trial| trial.errors.ratio(encoding))
                .collect();
            let sum: f64 = found.iter().sum();
            (!found.is_empty()).then(|| sum / found.len() as f64)
        };
        (0..self.encodings.len()).map(mean).collect()
    }
}

/// The layers of each role from which a variant goes to the end.
///
/// # Errors
/// Units without a layout.
pub fn tried(original: &Weights) -> Result<BTreeMap<Role, Vec<u32>>> {
    let mut layers = BTreeMap::<Role, Vec<u32>>::new();
    for layer in 0..original.spec().layers.len() as u32 {
        for role in roles(original, layer)? {
            layers.entry(role).or_default().push(layer);
        }
    }
    let each = layers.into_iter();
    Ok(each.map(|(role, layers)| (role, depths(&layers))).collect())
}

/// Roles of a layer that are worth quantizing, in order of use.
fn roles(original: &Weights, layer: u32) -> Result<Vec<Role>> {
    let mut roles = Vec::new();
    for unit in [Unit::Layer(layer), Unit::Expert { layer, expert: 0 }] {
        if unit_exists(original, unit) {
            let layout = original.layout(unit)?;
            let found = layout.tensors.iter().map(|t| t.role);
            roles.extend(found.filter(|role| is_coded(*role)));
        }
    }
    Ok(roles)
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

/// Units of a layer in which a role is tried: of experts' the `experts`.
fn units(experts: &[u32], layer: u32, role: Role) -> Vec<Unit> {
    if role.is_expert() {
        let unit = |expert: &u32| Unit::Expert { layer, expert: *expert };
        return experts.iter().map(unit).collect();
    }
    vec![Unit::Layer(layer)]
}
