//! What every tensor of a checkpoint is for, complete in both directions: each tensor of the model
//! has a source, and each source tensor has a use or a reason to have none.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use super::Arch;
use super::claim::Claim;
use super::config::Config;
use super::counts::Counts;
use super::fused::Fused;
use super::stray::{self, Values};
use super::table::{ExtraRow, Target, unit_of};
use crate::checkpoint::{Checkpoint, TensorInfo};
use crate::decoder::Decoder;
use crate::dtype::Dtype;
use crate::error::{FormatError, Result};
use crate::layout::place_dense;
use crate::manifest::{Excerpt, Ignored, MAX_EXPERT_ENTRIES};
use crate::model::ModelSpec;
use crate::names::{fill, in_layer, split, template};
use crate::refusal::{Refusal, mismatch};
use crate::role::Role;
use crate::shapes::TensorShape;
use crate::unit::{SourceView, TensorEntry, Unit, UnitLayout, whole_matrix};

/// A part of the checkpoint that is not the text model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extra {
    /// Its tensors, each whole, in the order of their names.
    pub layout: UnitLayout,
    /// Why a bundle works without them.
    pub reason: String,
}

/// The model in a checkpoint and the place of each of its tensors.
#[derive(Debug)]
pub struct Inventory {
    /// The model.
    pub spec: ModelSpec,
    /// The tensors of each unit, in the order of [`Role`], in the types of the checkpoint.
    pub units: BTreeMap<Unit, UnitLayout>,
    /// What is not the text model, by the unit that would hold it.
    pub extras: BTreeMap<Unit, Extra>,
    /// Tensors without a use, sorted by name.
    pub ignored: Vec<Ignored>,
    /// The layers that it has of the checkpoint, where not all.
    pub excerpt: Option<Excerpt>,
    /// Of each layer with experts, in the order of their first.
    pub(super) experts: BTreeMap<u32, Vec<AlikeExperts>>,
}

/// Experts of a layer whose tensors differ in their sources alone.
#[derive(Clone, Debug, PartialEq)]
pub struct AlikeExperts {
    /// Ascending.
    pub experts: Vec<u32>,
    /// What each has, in the order of [`Role`], with the view that gives expert `e` by [`SourceView::of_expert`].
    pub tensors: Vec<TensorEntry>,
}

impl AlikeExperts {
    /// Adds `expert`, which is above all before it, to those that it is like.
    pub(super) fn add(all: &mut Vec<Self>, expert: u32, tensors: Vec<TensorEntry>) {
        match all.iter_mut().find(|alike| alike.tensors == tensors) {
            Some(alike) => alike.experts.push(expert),
            None => all.push(Self { experts: vec![expert], tensors }),
        }
    }
}

/// What the names of biases end in.
const BIAS: &str = ".bias";

impl Inventory {
    /// Matches a checkpoint with `arch`, or with the built-in table of its `model_type`.
    ///
    /// # Errors
    /// An unsupported configuration; a tensor that the table does not know, that is missing, given
    /// twice or of another shape.
    pub fn new(checkpoint: &Checkpoint, arch: Option<&Arch>) -> Result<Self> {
        let builtin;
        let arch = if let Some(arch) = arch {
            arch
        } else {
            builtin = Arch::of_checkpoint(checkpoint)?;
            &builtin
        };
        Matching::new(checkpoint, arch)?.finish()
    }

    /// The tensors of a unit, of what is not the text model too; none that the checkpoint lacks.
    pub fn layout(&self, unit: Unit) -> Option<&UnitLayout> {
        let extra = || self.extras.get(&unit).map(|extra| &extra.layout);
        self.units.get(&unit).or_else(extra)
    }

    /// The experts of a layer, as many times as the source stores them otherwise; none of a layer without.
    pub fn experts(&self, layer: u32) -> &[AlikeExperts] {
        self.experts.get(&layer).map_or(&[], Vec::as_slice)
    }
}

/// The work of matching: claims by unit and role.
struct Matching<'a> {
    checkpoint: &'a Checkpoint,
    arch: &'a Arch,
    spec: ModelSpec,
    claims: BTreeMap<(Unit, Role), Claim>,
    /// Tensors of what is not the text model, and why a bundle works without them.
    extras: BTreeMap<Unit, (Vec<TensorEntry>, String)>,
    ignored: Vec<Ignored>,
    /// A stored head of a model whose head is tied to its embedding.
    tied_head: Option<String>,
}

impl<'a> Matching<'a> {
    fn new(checkpoint: &'a Checkpoint, arch: &'a Arch) -> Result<Self> {
        let spec = arch.spec(checkpoint)?;
        let (claims, extras) = (BTreeMap::new(), BTreeMap::new());
        let ignored = auxiliary(checkpoint);
        let mut matching =
            Self { checkpoint, arch, spec, claims, extras, ignored, tied_head: None };
        let mut fused: BTreeMap<(u32, bool), Vec<Fused<'a>>> = BTreeMap::new();
        let beyond = arch.beyond(checkpoint)?;
        for (name, info) in checkpoint.tensors() {
            if let Some(row) = matching.extra(name, &beyond) {
                let taken = matching.take_extra(name, info, row);
                taken.map_err(|detail| matching.refused(name, info, detail))?;
                continue;
            }
            let values = match info.values() {
                0 => Values::None,
                1 => Values::One,
                _ => Values::Many,
            };
            if matching.passes(name, values) {
                continue;
            }
            let (pattern, [layer, expert]) = split(&arch.table.plain(name));
            let in_layer = pattern.as_deref().is_some_and(in_layer).then_some(layer);
            match pattern.and_then(|pattern| arch.table.targets.get(&pattern)) {
                None | Some(Target::Ignored(_)) => matching.pass_other(name, info, in_layer)?,
                Some(Target::Role(role)) => {
                    let unit = unit_of(*role, layer, expert);
                    let needs =
                        |spec: &ModelSpec| spec.tensors(unit).iter().any(|t| t.role == *role);
                    if name.ends_with(BIAS)
                        && !needs(&matching.spec)
                        && matching.is_empty_bias(name, info)?
                    {
                        continue;
                    }
                    let checked = matching.claim(name, info, unit, *role);
                    checked.map_err(|detail| matching.refused(name, info, detail))?;
                }
                Some(Target::Fused(row)) => {
                    let row = &arch.table.fused[*row];
                    let expert = row.roles.iter().any(|role| role.is_expert());
                    let tensor = Fused { name, info, row, layer };
                    fused.entry((layer, expert)).or_default().push(tensor);
                }
            }
        }
        fused
            .values()
            .try_for_each(|beside| matching.claim_fused(beside))?;
        matching.pass_unused(&beyond)?;
        Ok(matching)
    }

    /// Lets pass a tensor without a row if it says nothing.
    fn pass_other(&mut self, name: &str, info: &TensorInfo, layer: Option<u32>) -> Result<()> {
        if self.is_empty_bias(name, info)? {
            return Ok(());
        }
        if let Some(detail) = self.counts().beyond(layer) {
            return Err(self.refused(name, info, detail));
        }
        Err(self.refused(name, info, stray::refusal(&self.arch.path, name)))
    }

    fn counts(&self) -> Counts<'a> {
        let layers = self.spec.layers.len() as u32;
        Counts { checkpoint: self.checkpoint, arch: self.arch, layers }
    }

    /// The row of a tensor that is not the text model's.
    fn extra(&self, name: &str, beyond: &[u32]) -> Option<&'a ExtraRow> {
        let table = &self.arch.table;
        let (pattern, [layer, _]) = split(&table.plain(name));
        let count = self.spec.layers.len() as u32;
        let past =
            (pattern.as_deref().is_some_and(in_layer) && layer >= count).then(|| layer - count);
        table.extra(name, past, beyond)
    }

    /// Whether the model needs no such tensor; if so it is listed with the reason.
    fn passes(&mut self, name: &str, values: Values) -> bool {
        let table = &self.arch.table;
        let (pattern, _) = split(&table.plain(name));
        let target = pattern.and_then(|pattern| table.targets.get(&pattern));
        let reason = match target {
            Some(Target::Ignored(reason)) => Some(reason.as_str()),
            Some(_) => None,
            None => stray::reason(name, values, |name| self.checkpoint.stored().contains_key(name)),
        };
        let Some(reason) = reason else { return false };
        self.ignore(name, None, reason);
        true
    }

    /// Whether a tensor that the model has no use for is a bias of zeros beside a matrix, as older
    /// `AutoGPTQ` put one beside each; if so it is listed. Beside a norm it may mean another norm.
    fn is_empty_bias(&mut self, name: &str, info: &TensorInfo) -> Result<bool> {
        let matrix = name
            .strip_suffix(BIAS)
            .map(|module| format!("{module}.weight"));
        let matrix = matrix.and_then(|name| self.checkpoint.tensors().get(&name));
        let beside = matrix.is_some_and(|matrix| {
            let coded = matches!(matrix.decoder, Some(Decoder::Gptq { .. }));
            coded || matrix.shape.len() == 2 && info.shape.len() == 1
        }) && info.decoder.is_none();
        let empty = beside && self.checkpoint.is_zero(info)?;
        if empty {
            self.ignore(name, None, "a bias of zeros, which adds nothing");
        }
        Ok(empty)
    }

    /// Lets pass what is neither a float nor decoded, if the model does not use it.
    fn pass_unused(&mut self, beyond: &[u32]) -> Result<()> {
        for (name, stored) in self.checkpoint.unused() {
            if let Some(row) = self.extra(name, beyond) {
                let reason = format!("its {} values are no weights", stored.dtype);
                self.ignore(name, Some(row.role), &reason);
                continue;
            }
            let bare = stored.len == 0 || stored.dtype == Dtype::U8;
            if self.passes(name, if bare { Values::None } else { Values::Many }) {
                continue;
            }
            let path = self.checkpoint.files()[stored.file].file.path();
            let scheme = self.checkpoint.quantization().map(|q| q.method.as_str());
            let scheme = scheme.unwrap_or("none");
            let expected = format_args!(
                "F32, F16 or BF16, or what the quantization_config of config.json ({scheme}) makes \
                 weights of"
            );
            let next = if stored.dtype == Dtype::F64 { RESAVE } else { "" };
            let found = format_args!("{}{next}", stored.dtype);
            let detail = mismatch(expected, found).at("unsupported dtype");
            return Err(FormatError::tensor(path, name, detail));
        }
        self.ignored.sort_by(|a, b| a.tensor.cmp(&b.tensor));
        Ok(())
    }

    fn refused(&self, tensor: &str, info: &TensorInfo, detail: impl Into<Refusal>) -> FormatError {
        FormatError::tensor(self.checkpoint.path_of(info), tensor, detail)
    }

    fn ignore(&mut self, tensor: &str, role: Option<Role>, reason: &str) {
        self.ignored
            .push(Ignored { tensor: tensor.to_owned(), role, reason: reason.to_owned() });
    }

    /// Takes in a tensor that is not the text model's.
    fn take_extra(&mut self, name: &str, info: &TensorInfo, row: &ExtraRow) -> Result<(), Refusal> {
        let role = row.role;
        let unit = Unit::from_extra_role(role)
            .ok_or_else(|| format!("{role} is part of the text model"))?;
        if info.values() == 0 {
            self.ignore(name, Some(role), "it holds no values");
            return Ok(());
        }
        let [rows, cols] = whole_matrix(&info.shape)
            .ok_or_else(|| format!("shape {:?}: its columns leave 64 bits", info.shape))?;
        let view = info.view(name, cols);
        let tensor = TensorEntry::new(role, [rows, cols], view.dtype.into(), view);
        let empty = || (Vec::new(), row.reason.clone());
        self.extras.entry(unit).or_insert_with(empty).0.push(tensor);
        Ok(())
    }

    /// Takes in a tensor that holds one role's matrix and nothing else.
    fn claim(
        &mut self,
        name: &str,
        info: &TensorInfo,
        unit: Unit,
        role: Role,
    ) -> Result<(), Refusal> {
        let tied = role == Role::LmHead && self.spec.tie_word_embeddings;
        let (at, as_role) = if tied { (Unit::Embedding, Role::EmbedTokens) } else { (unit, role) };
        let shape = self
            .spec
            .tensors(at)
            .into_iter()
            .find(|shape| shape.role == as_role);
        let shape = shape.ok_or_else(|| {
            let other = || {
                format!("it is the {role} of {unit}, which the model in config.json does not have")
            };
            self.counts()
                .beyond(unit.layer())
                .unwrap_or_else(|| other().into())
        })?;
        let next = |expected: &[u64]| self.counts().rows(role, expected, &info.shape);
        check_shape(shape, info, &next)?;
        if tied {
            self.tied_head = Some(name.to_owned());
            self.ignore(name, None, "tied to embed_tokens");
            return Ok(());
        }
        let template = SourceView {
            decoder: info
                .decoder
                .as_ref()
                .map(|d| d.renamed(|part| template(part, unit))),
            ..info.view(&template(name, unit), shape.cols)
        };
        self.insert(Claim { unit, shape, template })
    }

    /// Takes in the fused tensors of one layer.
    fn claim_fused(&mut self, tensors: &[Fused<'_>]) -> Result<()> {
        let mut layouts = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let fitting = tensor.layouts(&self.spec);
            let refused = |detail| {
                let detail = self.counts().beyond(Some(tensor.layer)).unwrap_or(detail);
                self.refused(tensor.name, tensor.info, detail)
            };
            layouts.push(fitting.map_err(refused)?);
        }
        for (tensor, own) in tensors.iter().zip(&layouts) {
            let layout = tensor.choose(own, &layouts);
            let claims = layout.and_then(|layout| tensor.claims(&self.spec, layout));
            let inserted = claims.and_then(|all| all.into_iter().try_for_each(|c| self.insert(c)));
            inserted.map_err(|detail| self.refused(tensor.name, tensor.info, detail))?;
        }
        Ok(())
    }

    fn insert(&mut self, claim: Claim) -> Result<(), Refusal> {
        match self.claims.entry((claim.unit, claim.shape.role)) {
            Entry::Vacant(free) => {
                free.insert(claim);
                Ok(())
            }
            Entry::Occupied(taken) => {
                let (unit, role) = taken.key();
                let other = &taken.get().view().tensor;
                Err(format!("it gives the {role} of {unit}, as `{other}` does").into())
            }
        }
    }

    /// A head that is stored in place of the embedding it is tied to is the embedding.
    fn take_lone_head(&mut self) -> Result<()> {
        let lone = !self
            .claims
            .contains_key(&(Unit::Embedding, Role::EmbedTokens));
        let Some(head) = self.tied_head.take_if(|_| lone) else { return Ok(()) };
        self.ignored.retain(|ignored| ignored.tensor != head);
        let info = &self.checkpoint.tensors()[&head];
        let taken = self.claim(&head, info, Unit::Embedding, Role::EmbedTokens);
        taken.map_err(|detail| self.refused(&head, info, detail))
    }

    /// A head that is stored beside the embedding it is tied to must be that embedding: one that
    /// differs would be the head in use, were it not for the config. Where that says nothing of it, it is.
    fn check_tied_head(&mut self) -> Result<()> {
        let embedding = self.claims.get(&(Unit::Embedding, Role::EmbedTokens));
        let (Some(head), Some(embedding)) = (self.tied_head.clone(), embedding) else {
            return Ok(());
        };
        let head = &head;
        let embedding = embedding.view().tensor;
        let tensors = self.checkpoint.tensors();
        let (a, b) = (&tensors[head], &tensors[&embedding]);
        if self.checkpoint.same_bytes(a, b)? || self.checkpoint.same_floats(a, b)? {
            return Ok(());
        }
        let (path, config) = (self.checkpoint.config_path(), self.checkpoint.config());
        if !Config::new(self.arch, path, config).states("tie_word_embeddings") {
            self.spec.tie_word_embeddings = false;
            self.ignored.retain(|ignored| ignored.tensor != *head);
            let taken = self.claim(head, &tensors[head], Unit::Head, Role::LmHead);
            return taken.map_err(|detail| self.refused(head, &tensors[head], detail));
        }
        let detail = mismatch(
            format_args!("the values of `{embedding}`, to which tie_word_embeddings ties it"),
            "others; if the head is its own, set tie_word_embeddings to false in config.json",
        );
        Err(self.refused(head, &tensors[head], detail))
    }

    /// Gives each unit its tensors.
    fn finish(mut self) -> Result<Inventory> {
        self.take_lone_head()?;
        self.check_tied_head()?;
        let mut units = BTreeMap::new();
        let mut experts: BTreeMap<u32, Vec<AlikeExperts>> = BTreeMap::new();
        for unit in self.spec.units() {
            let (mut tensors, mut templates) = (Vec::new(), Vec::new());
            for shape in self.spec.tensors(unit) {
                let claim = self.claims.remove(&(unit, shape.role));
                let claim = claim.ok_or_else(|| self.missing(unit, shape))?;
                tensors.push(claim.tensor(claim.view()));
                templates.push(claim.tensor(claim.template.clone()));
            }
            if let Unit::Expert { layer, expert } = unit {
                let alike = experts.entry(layer).or_default();
                AlikeExperts::add(alike, expert, templates);
                if alike.len() > MAX_EXPERT_ENTRIES {
                    let most = format_args!("experts stored in at most {MAX_EXPERT_ENTRIES} ways");
                    let detail = mismatch(most, "more").at(format_args!("layer {layer}"));
                    return Err(FormatError::file(self.checkpoint.root(), detail));
                }
            }
            units.insert(unit, self.placed(unit, tensors)?);
        }
        let mut extras = BTreeMap::new();
        for (unit, (tensors, reason)) in std::mem::take(&mut self.extras) {
            extras.insert(unit, Extra { layout: self.placed(unit, tensors)?, reason });
        }
        let Self { spec, ignored, .. } = self;
        Ok(Inventory { spec, units, extras, ignored, excerpt: None, experts })
    }

    fn placed(&self, unit: Unit, tensors: Vec<TensorEntry>) -> Result<UnitLayout> {
        let refused = |e| FormatError::file(self.checkpoint.root(), format!("{unit}: {e}"));
        place_dense(tensors).map_err(refused)
    }

    fn missing(&self, unit: Unit, shape: TensorShape) -> FormatError {
        let table = &self.arch.table;
        let rows = table
            .fused
            .iter()
            .filter(|row| row.roles.contains(&shape.role));
        let names = table.names.get(&shape.role).into_iter().flatten();
        let names: Vec<_> = names
            .chain(rows.flat_map(|row| row.tensor.as_slice()))
            .map(|name| format!("`{}`", fill(name, unit)))
            .collect();
        let (role, dims) = (shape.role, dimensions(shape));
        if names.is_empty() {
            let table = self.arch.path.display();
            let detail = format!(
                "{role} of {unit} {dims:?}: the model needs it, and {table} names no tensor for it"
            );
            return FormatError::file(self.checkpoint.root(), detail);
        }
        let names = names.join(" or ");
        let next = match role {
            Role::LmHead => Some(TIED_OR_INCOMPLETE.to_owned()),
            _ => self.counts().absent(unit.layer()),
        };
        let found = format!("none{}", next.unwrap_or_default());
        let detail = mismatch(format_args!("tensor {names}"), found)
            .at(format_args!("{role} of {unit} {dims:?}"));
        FormatError::file(self.checkpoint.root(), detail)
    }
}

/// Tensors that belong to quantized ones and that their values do not need.
fn auxiliary(checkpoint: &Checkpoint) -> Vec<Ignored> {
    let auxiliary = checkpoint
        .quantization()
        .into_iter()
        .flat_map(|q| &q.auxiliary);
    auxiliary
        .map(|(tensor, reason)| Ignored {
            tensor: tensor.clone(),
            role: None,
            reason: reason.clone(),
        })
        .collect()
}

/// The dimensions that a tensor of this shape has in a checkpoint.
fn dimensions(shape: TensorShape) -> Vec<u64> {
    match shape.rows {
        1 => vec![shape.cols],
        rows => vec![rows, shape.cols],
    }
}

/// What to do with weights that are wider than any that is computed with.
const RESAVE: &str = ": load it with transformers and save it again in float32";
/// What to do without a head.
const TIED_OR_INCOMPLETE: &str = "; if the head is the embedding, set tie_word_embeddings to true in \
                                  config.json, else the checkpoint is incomplete";
/// What to do with weights that ZeRO-3 left empty.
const UNGATHERED: &str = ", empty as DeepSpeed's ZeRO-3 saves what it did not gather: make whole weights with \
                          the zero_to_fp32.py beside its own checkpoint";

/// Refuses another shape, and says what is `next` if that is known; a single row may be one-dimensional or
/// two-dimensional.
fn check_shape(
    shape: TensorShape,
    info: &TensorInfo,
    next: &dyn Fn(&[u64]) -> Option<String>,
) -> Result<(), Refusal> {
    let TensorShape { rows, cols, .. } = shape;
    // The inner dimension of a depthwise convolution says nothing; MLX has it last.
    if info.shape == dimensions(shape)
        || info.shape == [rows, cols]
        || (shape.role.is_convolution()
            && (info.shape == [rows, 1, cols] || info.shape == [rows, cols, 1]))
    {
        return Ok(());
    }
    let expected = dimensions(shape);
    let next = if info.shape == [0] { Some(UNGATHERED.to_owned()) } else { next(&expected) };
    let next = next.unwrap_or_default();
    Err(mismatch(
        format_args!("shape {expected:?} of {}", shape.role),
        format_args!("{:?}{next}", info.shape),
    ))
}
