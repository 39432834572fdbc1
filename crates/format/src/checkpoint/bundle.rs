//! A bundle read as a checkpoint: its matrices are the tensors, its shards the files that hold them.

use super::files::{CheckpointFile, Files, StoredTensor, TensorInfo, read_config};
use super::{CONFIG_NAME, Checkpoint};
use crate::bundle::Bundle;
use crate::decoder::Decoder;
use crate::dtype::Dtype;
use crate::error::{FormatError, Result};
use crate::io::ReadFile;
use crate::manifest::{Extent, FileKind};
use crate::unit::{SourceView, TensorEntry, Unit, UnitLayout};

use shardwright_quant::Float;

use crate::refusal::Refusal;

impl Checkpoint {
    /// Reads a bundle as what another one is made from. The bytes are trusted no further than its
    /// manifest: [`CheckpointFile::blake3`] says what they should be.
    ///
    /// # Errors
    /// Files that cannot be opened; a tensor that is there twice.
    pub fn from_bundle(bundle: &Bundle) -> Result<Self> {
        let (manifest, root) = (bundle.manifest(), bundle.root());
        let config_path = root.join(CONFIG_NAME);
        let config = if config_path.is_file() {
            read_config(&config_path)?
        } else {
            serde_json::Value::Object(serde_json::Map::new())
        };
        let mut files = Files::new(root.to_owned(), config_path, config);
        for entry in manifest.files.iter().filter(|f| f.kind == FileKind::Shards) {
            let file = ReadFile::open(&root.join(&entry.path))?;
            let (name, blake3) = (entry.path.clone(), Some(entry.blake3));
            files
                .opened
                .push(CheckpointFile { name, file, header_len: 0, blake3 });
        }
        files.notes.push(note(bundle));
        let mut checkpoint = Self {
            files,
            tensors: std::collections::BTreeMap::new(),
            quantization: None,
            files_outside: std::collections::BTreeSet::new(),
        };
        for unit in manifest.units() {
            let (file, extent) = bundle.place(unit)?;
            for entry in bundle.layout(unit)?.tensors.iter() {
                let view = match unit {
                    Unit::Expert { expert, .. } => view(unit, entry).of_expert(expert),
                    _ => view(unit, entry),
                };
                checkpoint.add(view, entry, file, extent)?;
            }
        }
        Ok(checkpoint)
    }

    /// Takes in one matrix of a unit that lies in `file` at `extent`.
    fn add(
        &mut self,
        view: SourceView,
        entry: &TensorEntry,
        file: &str,
        extent: Extent,
    ) -> Result<()> {
        let root = self.files.root.clone();
        let refused = |detail: Refusal| FormatError::tensor(&root, &view.tensor, detail);
        let number = self
            .files
            .opened
            .iter()
            .position(|opened| opened.name == file);
        let number = number.ok_or_else(|| refused(format!("{file} holds no shards").into()))?;
        let len = entry
            .byte_len()
            .map_err(|e| refused(e.to_string().into()))?;
        let (offset, shape) = (extent.offset + entry.offset, vec![len]);
        let dtype = view.dtype;
        let stored = StoredTensor { file: number, dtype: Dtype::U8, shape, offset, len };
        if self
            .files
            .stored
            .insert(view.tensor.clone(), stored)
            .is_some()
        {
            return Err(refused("two matrices of the bundle come from it".into()));
        }
        let SourceView { tensor, shape, decoder, .. } = view;
        let info = TensorInfo { file: number, dtype, shape, offset, len, decoder };
        self.tensors.insert(tensor, info);
        Ok(())
    }
}

/// A unit's tensors as those of the checkpoint that [`Checkpoint::from_bundle`] gives.
pub(crate) fn source_tensors(unit: Unit, layout: &UnitLayout) -> Vec<TensorEntry> {
    let tensors = layout.tensors.iter().map(|entry| {
        let source = view(unit, entry);
        TensorEntry::new(entry.role, [entry.rows, entry.cols], source.dtype.into(), source)
    });
    tensors.collect()
}

/// All of a bundle's matrix, as a tensor of the name that its source has; of an expert's, the view that
/// gives each by [`SourceView::of_expert`]. One of several matrices of a source tensor has its use and
/// its expert added.
fn view(unit: Unit, entry: &TensorEntry) -> SourceView {
    let source = &entry.source;
    let alone = source.shape.iter().product::<u64>() == entry.rows * entry.cols;
    let stacked = matches!(unit, Unit::Expert { .. }) && !source.tensor.contains("{expert}");
    let tensor = match &source.tensor {
        name if alone => name.clone(),
        name if stacked => format!("{name}[{{expert}}].{}", entry.role),
        name => format!("{name}.{}", entry.role),
    };
    let dtype = entry.encoding.float().unwrap_or(Float::F32);
    let decoder = Decoder::Bundle { tensor: tensor.clone(), encoding: entry.encoding };
    // A bundle of a bundle's bundle names the first one's source, as each on the way does.
    let origin = source.origin.clone();
    let vector = entry.rows == 1 && source.shape.len() < 2;
    let shape = if vector { vec![entry.cols] } else { vec![entry.rows, entry.cols] };
    SourceView {
        decoder: Some(decoder),
        origin: Some(origin.unwrap_or_else(|| Box::new(source.clone()))),
        ..SourceView::whole(tensor, dtype, shape, entry.cols)
    }
}

/// What a user should know before a bundle is quantized again.
fn note(bundle: &Bundle) -> String {
    let bits = bundle.manifest().census().bits_per_weight();
    format!(
        "it is a bundle, of {bits:.3} bits per weight: what it lost of the model that it was made from \
         stays lost, and codes of codes lose more than codes of the original"
    )
}
