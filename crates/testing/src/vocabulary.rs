//! Vocabularies of a size that no fixture should have.

use std::collections::VecDeque;

use serde_json::{Map, Value};

/// Gives a BPE of a `tokenizer.json` more pieces, `size` in all: each an earlier one and one more character,
/// with the merge that makes it.
pub fn widen(tokenizer: &mut Map<String, Value>, size: usize) {
    let model = &mut tokenizer["model"];
    let mut vocab = model["vocab"].take();
    let pieces = vocab.as_object_mut().expect("a BPE has a vocabulary");
    let ascii = || pieces.keys().filter(|piece| piece.is_ascii());
    let single: Vec<String> = ascii().filter(|piece| piece.len() == 1).cloned().collect();
    let mut heads: VecDeque<String> = ascii().cloned().collect();
    let mut next = pieces
        .values()
        .filter_map(Value::as_u64)
        .max()
        .unwrap_or_default();
    let merges = model["merges"].as_array_mut().expect("a BPE has merges");
    while let Some(head) = heads.pop_front().filter(|_| pieces.len() < size) {
        for last in &single {
            let piece = format!("{head}{last}");
            if pieces.len() < size && !pieces.contains_key(&piece) {
                next += 1;
                pieces.insert(piece.clone(), next.into());
                merges.push(Value::from(vec![head.clone(), last.clone()]));
                heads.push_back(piece);
            }
        }
    }
    model["vocab"] = vocab;
}
