//! What every form tells of a model that it does not hold whole, or not as the model's checkpoint did.

use shardwright_format::Decoder;
use shardwright_format::manifest::Ignored;
use shardwright_format::unit::TensorEntry;
use shardwright_format::weights::Weights;

use crate::error::Result;

/// What the model's checkpoint had besides, and the tensors of its parts that are no text model, left out
/// for `reason`; by their names.
pub(super) fn left_out(weights: &Weights, reason: &str) -> Result<Vec<Ignored>> {
    let mut all = weights.ignored().to_vec();
    for unit in weights.extras() {
        for entry in weights.layout(unit)?.tensors.iter() {
            let (tensor, role) = (entry.source.tensor.clone(), Some(entry.role));
            all.push(Ignored { tensor, role, reason: reason.to_owned() });
        }
    }
    all.sort_by(|a, b| a.tensor.cmp(&b.tensor));
    Ok(all)
}

/// How the checkpoint held a tensor, if in codes.
pub(super) fn quantized_before(entry: &TensorEntry) -> Option<String> {
    let decoder = entry.source.decoder.as_ref();
    decoder.filter(|d| !d.is_plain()).map(Decoder::label)
}
