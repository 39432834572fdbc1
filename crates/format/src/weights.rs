//! A model's weights: a bundle or a checkpoint of any kind, behind the same calls.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use shardwright_quant::EncodingError;

use crate::arch::{Inventory, Prediction};
use crate::bundle::Bundle;
use crate::census::Census;
use crate::check::{Checked, Checks};
use crate::checkpoint::{Checkpoint, TokensBeside, own_codes, read_rows, read_unit};
use crate::error::{FormatError, Result};
use crate::io::{AlignedBuf, read_limited};
use crate::layout::place_dense;
use crate::manifest::{Excerpt, Hash, Ignored};
use crate::model::ModelSpec;
use crate::refusal::{Refusal, mismatch};
use crate::role::Role;
use crate::unit::{TensorEntry, Unit, UnitLayout};

/// Bytes of whole tensors, in the encoding in which the weights have them.
pub type Patches = BTreeMap<(Unit, Role), Vec<u8>>;

/// A model's weights, read unit by unit. A clone reads the same files.
#[derive(Clone, Debug)]
pub struct Weights {
    source: Arc<Source>,
    /// What [`Self::read`] and [`Self::read_rows`] give in place of the source's own.
    patches: Arc<Patches>,
    /// Whole units are held to their hashes when they are first read.
    checks: Option<Arc<Checks>>,
    /// Units of a checkpoint that are read in codes: see [`Self::in_codes`].
    coded: Arc<BTreeMap<Unit, UnitLayout>>,
}

#[derive(Debug)]
#[allow(clippy::large_enum_variant)] // a process has a few
enum Source {
    /// Quantized, from shards.
    Bundle(Bundle),
    /// As they are, from checkpoint files.
    Checkpoint(Checkpoint, Inventory),
}

impl Weights {
    /// Opens a bundle, or a checkpoint if `dir` has no manifest.
    ///
    /// # Errors
    /// What either refuses.
    pub fn open(dir: &Path) -> Result<Self> {
        if Bundle::is_bundle(dir) {
            return Ok(Bundle::open(dir)?.into());
        }
        let checkpoint = Checkpoint::open(dir)?;
        let inventory = Inventory::new(&checkpoint, None)?;
        Ok(Self::from_checkpoint(checkpoint, inventory))
    }

    /// Joins a checkpoint with the inventory made from it.
    pub fn from_checkpoint(checkpoint: Checkpoint, inventory: Inventory) -> Self {
        Self::new(Source::Checkpoint(checkpoint, inventory))
    }

    fn new(source: Source) -> Self {
        let (patches, coded) = (Arc::default(), Arc::default());
        Self { source: Arc::new(source), patches, checks: None, coded }
    }

    /// Some layers of a checkpoint as a model of their own; a bundle is what it is.
    ///
    /// # Errors
    /// Layers that the model does not have; weights of which there is a clone.
    pub fn excerpt(self, layers: Range<u32>) -> Result<Self> {
        let root = self.root().to_owned();
        let source = Arc::try_unwrap(self.source);
        match source.map_err(|_| FormatError::file(&root, "is read by others already"))? {
            Source::Checkpoint(mut checkpoint, inventory) => {
                let inventory = inventory.excerpt(&mut checkpoint, layers)?;
                Ok(Self::from_checkpoint(checkpoint, inventory))
            }
            bundle @ Source::Bundle(_) => Ok(Self::new(bundle)),
        }
    }

    /// The same weights with `patches` in place of their own: as long as those, and stored alike.
    #[must_use]
    pub fn patched(&self, patches: Patches) -> Self {
        Self { patches: Arc::new(patches), ..self.clone() }
    }

    /// The same weights, of a quantized checkpoint in its own codes where these give each of its values in an
    /// encoding of ours: what a runtime computes is the same to the bit, and they take less memory. Patched weights
    /// stay as they are, for patches are stored as the values are.
    ///
    /// # Errors
    /// A unit that is larger than any file; an index of columns that cannot be read.
    pub fn in_codes(self) -> Result<Self> {
        let Source::Checkpoint(checkpoint, inventory) = &*self.source else { return Ok(self) };
        if !self.patches.is_empty() || !self.coded.is_empty() {
            return Ok(self);
        }
        let extras = inventory
            .extras
            .iter()
            .map(|(unit, extra)| (unit, &extra.layout));
        let mut coded = BTreeMap::new();
        for (unit, layout) in inventory.units.iter().chain(extras) {
            let own = layout.tensors.iter();
            let own = own.map(|tensor| own_codes(checkpoint, tensor));
            let own = own.collect::<Result<Vec<_>>>()?;
            if own.iter().all(Option::is_none) {
                continue;
            }
            let stored = layout
                .tensors
                .iter()
                .zip(own)
                .map(|(tensor, own)| TensorEntry {
                    encoding: own.unwrap_or(tensor.encoding),
                    ..tensor.clone()
                });
            let placed = place_dense(stored.collect());
            let refused = |e| FormatError::file(self.root(), format!("{unit}: {e}"));
            coded.insert(*unit, placed.map_err(refused)?);
        }
        Ok(Self { coded: Arc::new(coded), ..self })
    }

    /// The same weights of a bundle, each unit held to its hash when [`Self::read`] first gives it; nothing
    /// where they have no hashes, as those of a checkpoint.
    #[must_use]
    pub fn checking(self) -> Option<Self> {
        let checks = self.bundle().map(|_| Arc::default())?;
        Some(Self { checks: Some(checks), ..self })
    }

    /// What was held to its hash so far, where that was asked for.
    pub fn checked(&self) -> Option<Checked> {
        self.checks.as_ref().map(|checks| checks.checked())
    }

    /// What tells the model from others: of a bundle its manifest, which has the hashes of all that it holds; of
    /// a checkpoint, whose weights nobody has hashed, its options and the dense parts of its first and its
    /// last layer.
    ///
    /// # Errors
    /// What the disk refuses.
    pub fn identity(&self) -> Result<Hash> {
        if let Some(bundle) = self.bundle() {
            return Ok(blake3::hash(&bundle.manifest().to_bytes()).into());
        }
        let mut hasher = blake3::Hasher::new();
        let spec = serde_json::to_vec(self.spec());
        hasher.update(&spec.map_err(|e| FormatError::file(self.root(), e.to_string()))?);
        let last = (self.spec().layers.len() as u32).saturating_sub(1);
        for layer in [0, last] {
            let mut buf = AlignedBuf::default();
            let layout = self.read(Unit::Layer(layer), &mut buf)?;
            hasher.update(&buf.as_slice()[..layout.len as usize]);
        }
        Ok(hasher.finalize().into())
    }

    /// The bundle, if it is one.
    pub fn bundle(&self) -> Option<&Bundle> {
        match &*self.source {
            Source::Bundle(bundle) => Some(bundle),
            Source::Checkpoint(..) => None,
        }
    }

    /// The checkpoint and what its tensors are for, if it is one.
    pub fn checkpoint(&self) -> Option<(&Checkpoint, &Inventory)> {
        match &*self.source {
            Source::Bundle(_) => None,
            Source::Checkpoint(checkpoint, inventory) => Some((checkpoint, inventory)),
        }
    }

    /// What is odd about a checkpoint's files and was put right: a line each. A bundle has none.
    pub fn notes(&self) -> &[String] {
        match self.checkpoint() {
            Some((checkpoint, _)) => checkpoint.notes(),
            None => &[],
        }
    }

    /// The model.
    pub fn spec(&self) -> &ModelSpec {
        match &*self.source {
            Source::Bundle(bundle) => &bundle.manifest().model,
            Source::Checkpoint(_, inventory) => &inventory.spec,
        }
    }

    /// Every unit: those of the text model, and then [`Self::extras`].
    pub fn units(&self) -> impl Iterator<Item = Unit> + '_ {
        self.spec().units().chain(self.extras())
    }

    /// Tensors of the checkpoint that the model is without.
    pub fn ignored(&self) -> &[Ignored] {
        match &*self.source {
            Source::Bundle(bundle) => &bundle.manifest().checkpoint.ignored,
            Source::Checkpoint(_, inventory) => &inventory.ignored,
        }
    }

    /// The layers that it has of a model, where not all.
    pub fn excerpted(&self) -> Option<Excerpt> {
        match &*self.source {
            Source::Bundle(bundle) => bundle.manifest().checkpoint.excerpt,
            Source::Checkpoint(_, inventory) => inventory.excerpt,
        }
    }

    /// What is not the text model, and what no runtime reads.
    pub fn extras(&self) -> Vec<Unit> {
        match &*self.source {
            Source::Bundle(bundle) => bundle.manifest().extras().iter().map(|s| s.unit).collect(),
            Source::Checkpoint(_, inventory) => inventory.extras.keys().copied().collect(),
        }
    }

    /// The layer that predicts the token after next, if the model has it.
    ///
    /// # Errors
    /// A model without it, or that keeps it in a way that it cannot be read from.
    pub fn prediction(&self) -> Result<Prediction> {
        let refused = |detail: Refusal| FormatError::file(self.root(), detail);
        let none = || {
            let found = "none: a bundle keeps them where its recipe says so";
            mismatch("layers that predict further tokens", found)
        };
        let kept = self.extras().contains(&Unit::Mtp);
        let part = kept.then(|| self.layout(Unit::Mtp)).transpose()?;
        let part = part.ok_or_else(none).map_err(refused)?;
        Prediction::new(self.spec(), &part).map_err(refused)
    }

    /// A unit's tensors in order of use; those of a checkpoint in its types, or [`Self::in_codes`].
    ///
    /// # Errors
    /// A unit that the model does not have.
    pub fn layout(&self, unit: Unit) -> Result<UnitLayout> {
        if let Some(layout) = self.coded.get(&unit) {
            return Ok(layout.clone());
        }
        match &*self.source {
            Source::Bundle(bundle) => bundle.layout(unit),
            Source::Checkpoint(_, inventory) => inventory.layout(unit).cloned().ok_or_else(|| {
                let detail = format!("{unit}: the model has no such unit");
                FormatError::file(self.root(), detail)
            }),
        }
    }

    /// How a tensor is stored, as a label for tables, and the bytes of files that hold it: its share
    /// of them where a checkpoint has it quantized together with others.
    ///
    /// # Errors
    /// When the encoding cannot hold the shape.
    pub fn stored_as(&self, tensor: &TensorEntry) -> Result<(String, u64), EncodingError> {
        let bytes = tensor.byte_len()?;
        if let (Some((checkpoint, _)), Some(decoder)) = (self.checkpoint(), &tensor.source.decoder)
        {
            let held = checkpoint.stored_bytes(&tensor.source, tensor.rows * tensor.cols);
            return Ok((decoder.label(), held.unwrap_or(bytes)));
        }
        Ok((tensor.encoding.label(), bytes))
    }

    /// What the tensors add up to.
    ///
    /// # Errors
    /// A tensor whose encoding cannot hold its shape.
    pub fn census(&self) -> Result<Census> {
        if let Some(bundle) = self.bundle() {
            return Ok(bundle.manifest().census());
        }
        let mut census = Census::default();
        for unit in self.units() {
            for tensor in self.layout(unit)?.tensors.iter() {
                let stored = self.stored_as(tensor);
                let refused = |e: EncodingError| FormatError::file(self.root(), e.to_string());
                let (label, bytes) = stored.map_err(refused)?;
                census.add(unit, 1, tensor, label, bytes);
            }
        }
        Ok(census)
    }

    /// Reads a unit into `buf` and gives its layout; what lies between tensors is unspecified.
    ///
    /// # Errors
    /// A unit that the model does not have; what the operating system refuses; bytes that are damaged, as
    /// far as they are looked at, see [`Self::checking`].
    pub fn read(&self, unit: Unit, buf: &mut AlignedBuf) -> Result<UnitLayout> {
        let layout = match &*self.source {
            Source::Bundle(bundle) => {
                let layout = bundle.read(unit, buf)?;
                if let Some(checks) = &self.checks {
                    bundle.check(unit, &buf.as_slice()[..layout.len as usize], checks)?;
                }
                layout
            }
            Source::Checkpoint(checkpoint, _) => {
                let layout = self.layout(unit)?;
                read_unit(checkpoint, &layout, buf)?;
                layout
            }
        };
        for tensor in layout.tensors.iter() {
            let Some(bytes) = self.patches.get(&(unit, tensor.role)) else { continue };
            let place = buf.as_mut_slice().get_mut(tensor.offset as usize..);
            let place = place.and_then(|place| place.get_mut(..bytes.len()));
            let wrong = || FormatError::file(self.root(), format!("{unit}: too short"));
            place.ok_or_else(wrong)?.copy_from_slice(bytes);
        }
        Ok(layout)
    }

    /// Reads some rows of one tensor: a matrix of their own, `weight | scales | biases`. Of a
    /// patched tensor they must be floats.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn read_rows(
        &self,
        unit: Unit,
        tensor: &TensorEntry,
        rows: Range<u64>,
        buf: &mut AlignedBuf,
    ) -> Result<()> {
        match &*self.source {
            Source::Bundle(bundle) => bundle.read_rows(unit, tensor, rows.clone(), buf)?,
            Source::Checkpoint(checkpoint, _) => {
                read_rows(checkpoint, tensor, rows.clone(), buf)?;
            }
        }
        let Some(bytes) = self.patches.get(&(unit, tensor.role)) else { return Ok(()) };
        let row = bytes.len() as u64 / tensor.rows.max(1);
        let range = (rows.start * row) as usize..(rows.end * row) as usize;
        buf.as_mut_slice().copy_from_slice(&bytes[range]);
        Ok(())
    }

    /// Whether a tensor is stored in codes, not as plain floats in whatever order.
    pub fn is_coded(&self, entry: &TensorEntry) -> bool {
        let decoder = entry.source.decoder.as_ref();
        match &*self.source {
            Source::Bundle(_) => entry.encoding.float().is_none(),
            Source::Checkpoint(..) => decoder.is_some_and(|decoder| !decoder.is_plain()),
        }
    }

    /// Whether units are read past the page cache.
    pub fn is_direct(&self) -> bool {
        self.bundle().is_some_and(Bundle::is_direct)
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        match &*self.source {
            Source::Bundle(bundle) => bundle.root(),
            Source::Checkpoint(checkpoint, _) => checkpoint.root(),
        }
    }

    /// The tokens that files beside the tokenizer name.
    ///
    /// # Errors
    /// As [`Self::companion`], and files that are no JSON.
    pub fn tokens_beside(&self) -> Result<TokensBeside> {
        TokensBeside::new(&|name, limit| self.companion(name, limit), self.root())
    }

    /// The bytes of a file beside the weights, at most `limit`, or of one that a GGUF file
    /// describes instead.
    ///
    /// # Errors
    /// A description that is not known, a file that is too long, and what the operating system
    /// refuses.
    pub fn companion(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        match &*self.source {
            Source::Bundle(bundle) => read_limited(&bundle.root().join(name), limit),
            Source::Checkpoint(checkpoint, _) => checkpoint.companion(name, limit),
        }
    }
}

impl From<Bundle> for Weights {
    fn from(bundle: Bundle) -> Self {
        Self::new(Source::Bundle(bundle))
    }
}
