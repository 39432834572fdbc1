//! Damage that knows structure: edits of JSON trees and of bytes, from a seed.

use serde_json::{Map, Value};

/// Changes one node of the tree.
pub fn edit(tree: &mut Value, random: &mut Random) {
    let mut left = random.below(count(tree));
    match node(tree, &mut left) {
        Some(Value::Object(object)) if random.below(4) != 0 => edit_object(object, random),
        Some(Value::Array(array)) if random.below(4) != 0 => edit_array(array, random),
        Some(Value::String(text)) if random.below(4) != 0 => edit_text(text, random),
        Some(Value::Number(number)) if random.below(4) != 0 => {
            let value = number.as_u64().unwrap_or(1);
            let near =
                [value.wrapping_add(1), value.wrapping_sub(1), value.wrapping_mul(2), value / 2];
            *number = near[random.below(near.len())].into();
        }
        Some(other) => *other = strange(random),
        None => {}
    }
}

fn edit_object(object: &mut Map<String, Value>, random: &mut Random) {
    let names: Vec<_> = object.keys().cloned().collect();
    let Some(name) = names.get(random.below(names.len().max(1))) else { return };
    let other = names[random.below(names.len())].clone();
    match random.below(4) {
        0 => drop(object.remove(name)),
        1 => drop(object.insert(format!("{name}_"), strange(random))),
        2 => {
            let value = object[name].clone();
            object.insert(other, value);
        }
        _ => {
            let value = object.remove(name).unwrap_or_default();
            object.insert(format!("{other}{}", random.below(3)), value);
        }
    }
}

fn edit_array(array: &mut Vec<Value>, random: &mut Random) {
    let (at, other) = (random.below(array.len().max(1)), random.below(array.len().max(1)));
    match random.below(4) {
        _ if array.is_empty() => array.push(strange(random)),
        0 => drop(array.remove(at)),
        1 => array.push(strange(random)),
        2 => array.insert(other, array[at].clone()),
        _ => array.swap(at, other),
    }
}

fn edit_text(text: &mut String, random: &mut Random) {
    const PIECES: &[&str] =
        &["", "/", "..", ".", "\\", "\0", ":", "{layer}", "{expert}", "*", "0", "é", ","];
    let places: Vec<_> = text
        .char_indices()
        .map(|(at, _)| at)
        .chain([text.len()])
        .collect();
    let (from, to) = (random.below(places.len()), random.below(places.len()));
    let range = places[from]..places[from.max(to.min(from + 2))];
    text.replace_range(range, PIECES[random.below(PIECES.len())]);
}

fn strange(random: &mut Random) -> Value {
    let values = [
        Value::Null,
        true.into(),
        false.into(),
        0.into(),
        1.into(),
        (-1).into(),
        u32::MAX.into(),
        u64::MAX.into(),
        (1u64 << 63).into(),
        ((1u64 << 53) + 1).into(),
        0.5.into(),
        1e39.into(),
        (-0.0).into(),
        "".into(),
        "..".into(),
        Value::Array(vec![]),
        Value::Object(Map::new()),
    ];
    values[random.below(values.len())].clone()
}

fn count(tree: &Value) -> usize {
    let below: usize = match tree {
        Value::Array(array) => array.iter().map(count).sum(),
        Value::Object(object) => object.values().map(count).sum(),
        _ => 0,
    };
    below + 1
}

/// The node that is `left` steps away in order of the text.
fn node<'a>(tree: &'a mut Value, left: &mut usize) -> Option<&'a mut Value> {
    if *left == 0 {
        return Some(tree);
    }
    *left -= 1;
    match tree {
        Value::Array(array) => array.iter_mut().find_map(|child| node(child, left)),
        Value::Object(object) => object.values_mut().find_map(|child| node(child, left)),
        _ => None,
    }
}

/// Flips, cuts, doubles or clears some of `bytes`.
pub fn edit_bytes(bytes: &mut Vec<u8>, random: &mut Random) {
    if bytes.is_empty() {
        bytes.push(0);
        return;
    }
    let at = random.below(bytes.len());
    let end = (at + 1 + random.below(64)).min(bytes.len());
    match random.below(6) {
        0 | 1 => bytes[at] ^= 1 << random.below(8),
        2 => bytes.truncate(at),
        3 => bytes[at..end].fill(0),
        4 => bytes[at..end].fill(0xff),
        _ => bytes.extend_from_within(at..end),
    }
}

/// Numbers that follow from a seed (xorshift).
pub struct Random(u64);

impl Random {
    /// Of a seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `end`, which is not 0.
    pub const fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % end
    }

    /// One of `values`, of which there are some.
    pub fn pick<'a, T>(&mut self, values: &'a [T]) -> &'a T {
        &values[self.below(values.len())]
    }
}
