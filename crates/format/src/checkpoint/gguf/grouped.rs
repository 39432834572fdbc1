//! Queries, keys, values and gates of a gated delta net, which llama.cpp stores as two matrices where the
//! checkpoint has one that is grouped by key head (`convert_hf_to_gguf.py`, `Qwen3NextModel`).

use std::collections::BTreeMap;

use crate::checkpoint::files::TensorInfo;
use crate::decoder::Decoder;

/// Queries, keys and values of all heads; gates; all of them by head.
const NAMES: [&str; 3] = ["in_proj_qkv.weight", "in_proj_z.weight", "in_proj_qkvz.weight"];

/// Joins the two matrices of every layer; `whole` gives numbers of the configuration. Matrices of other
/// shapes are left, and refused by name as no tensors of the architecture.
pub(super) fn join(tensors: &mut BTreeMap<String, TensorInfo>, whole: impl Fn(&str) -> u64) {
    let [heads, key_rows, value_heads, value_dim] = [
        "linear_num_key_heads",
        "linear_key_head_dim",
        "linear_num_value_heads",
        "linear_value_head_dim",
    ]
    .map(whole);
    let value_rows = value_heads
        .checked_div(heads)
        .and_then(|n| n.checked_mul(value_dim));
    let Some(value_rows) = value_rows else { return };
    let mixed = tensors.keys().filter(|name| name.ends_with(NAMES[0]));
    for mixed in mixed.cloned().collect::<Vec<_>>() {
        join_layer(tensors, &mixed, heads, [key_rows, value_rows]);
    }
}

fn join_layer(
    tensors: &mut BTreeMap<String, TensorInfo>,
    mixed: &str,
    heads: u64,
    [key_rows, value_rows]: [u64; 2],
) -> Option<()> {
    let module = mixed.strip_suffix(NAMES[0])?;
    let [gates, joined] = [NAMES[1], NAMES[2]].map(|name| format!("{module}{name}"));
    let (first, second) = (tensors.get(mixed)?, tensors.get(&gates)?);
    let ([rows, cols], [gate_rows, same_cols]) = (
        <[u64; 2]>::try_from(&first.shape[..]).ok()?,
        <[u64; 2]>::try_from(&second.shape[..]).ok()?,
    );
    let own = key_rows.checked_mul(2)?.checked_add(value_rows)?;
    let fits = rows == own.checked_mul(heads)? && gate_rows == value_rows.checked_mul(heads)?;
    if !fits || cols != same_cols || tensors.contains_key(&joined) {
        return None;
    }
    let parts = (first.as_part(mixed), second.as_part(&gates));
    let decoder = Decoder::Grouped { mixed: parts.0, gates: parts.1, key_rows, value_rows };
    let info = TensorInfo {
        dtype: first.dtype_with(second),
        shape: vec![rows.checked_add(gate_rows)?, cols],
        decoder: Some(decoder),
        ..first.clone()
    };
    tensors.remove(mixed);
    tensors.remove(&gates);
    tensors.insert(joined, info);
    Some(())
}
