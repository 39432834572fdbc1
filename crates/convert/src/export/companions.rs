//! Files beside the weights: configuration, tokenizer, chat template.

use std::path::Path;

use serde_json::Value;
use shardwright_format::checkpoint::{CONFIG_NAME, QUANTIZATION_KEYS, describes_quantization};
use shardwright_format::io::CONFIG_LIMIT;
use shardwright_format::manifest::FileKind;
use shardwright_format::weights::Weights;
use shardwright_format::{FormatError, written_json};

use crate::companions;
use crate::error::Result;

/// Refuses files that could not be copied after the weights, or that nobody could read then.
///
/// # Errors
/// Such a file, and what the operating system refuses.
pub(super) fn check(weights: &Weights) -> Result<()> {
    let paths = paths(weights)?;
    plain_config(weights)?;
    let copied = |name: &str| paths.iter().any(|path| path == name);
    let read = |name: &str, limit| {
        if copied(name) { weights.companion(name, limit) } else { Ok(None) }
    };
    companions::check(weights.root(), read)?;
    Ok(())
}

/// Copies the files beside the weights, or writes those that a GGUF file describes, but for
/// `config.json` and what describes codes.
pub(super) fn copy_companions(weights: &Weights, dir: &Path) -> Result<()> {
    paths(weights)?
        .iter()
        .try_for_each(|path| copy(weights, dir, path))
}

/// The files beside the weights that an export has as they are.
fn paths(weights: &Weights) -> Result<Vec<String>> {
    let mut paths: Vec<_> = match (weights.bundle(), weights.checkpoint()) {
        (Some(bundle), _) => {
            let copies = bundle.manifest().files.iter();
            let copies = copies.filter(|file| file.kind == FileKind::Copy);
            copies.map(|file| file.path.clone()).collect()
        }
        (_, Some((checkpoint, _))) => checkpoint.copies()?,
        (None, None) => Vec::new(),
    };
    paths.retain(|path| path != CONFIG_NAME && !describes_quantization(path));
    Ok(paths)
}

/// Copies one file, or writes the one that a GGUF file describes.
pub(super) fn copy(weights: &Weights, dir: &Path, path: &str) -> Result<()> {
    let (from, to) = (weights.root().join(path), dir.join(path));
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent).map_err(|e| FormatError::io(parent, e))?;
    }
    let checkpoint = weights.checkpoint().map(|(checkpoint, _)| checkpoint);
    if let Some(made) = checkpoint
        .map(|c| c.synthesized(path))
        .transpose()?
        .flatten()
    {
        std::fs::write(&to, made).map_err(|e| FormatError::io(&to, e))?;
        return Ok(());
    }
    std::fs::copy(&from, &to).map_err(|e| FormatError::io(&from, e))?;
    Ok(())
}

/// The model's `config.json`, without a word of codes.
pub(super) fn plain_config(weights: &Weights) -> Result<Value> {
    let from = weights.root().join(CONFIG_NAME);
    let text = weights
        .companion(CONFIG_NAME, CONFIG_LIMIT)?
        .unwrap_or_default();
    let config = written_json::parse(&text);
    let mut config = config.map_err(|e| FormatError::file(&from, e.to_string()))?;
    for place in ["", "/text_config"] {
        if let Some(Value::Object(config)) = config.pointer_mut(place) {
            for key in QUANTIZATION_KEYS {
                config.shift_remove(*key);
            }
        }
    }
    Ok(config)
}

pub(super) fn write_json(path: &Path, value: &Value) -> Result<()> {
    let mut bytes =
        serde_json::to_vec_pretty(value).map_err(|e| FormatError::file(path, e.to_string()))?;
    bytes.push(b'\n');
    std::fs::write(path, &bytes).map_err(|e| FormatError::io(path, e))?;
    Ok(())
}
