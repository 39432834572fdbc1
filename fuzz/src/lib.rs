//! What the targets share: a mutator that knows JSON, and an oracle for fields that are read over.

use libfuzzer_sys::fuzzer_mutate;
use serde_json::{Map, Value};

/// Mutates the text in `data[..size]`: one time in four as bytes, else as the JSON tree it is.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut random = Random(seed);
    let tree = serde_json::from_slice(&data[..size]).ok();
    let Some(mut tree) = tree.filter(|_| random.below(4) != 0) else {
        return fuzzer_mutate(data, size, max_size);
    };
    for _ in 0..=random.below(3) {
        edit(&mut tree, &mut random);
    }
    // As manifests are written: their first bytes are fixed.
    match serde_json::to_vec_pretty(&tree) {
        Ok(text) if text.len() <= max_size => {
            data[..text.len()].copy_from_slice(&text);
            text.len()
        }
        _ => fuzzer_mutate(data, size, max_size),
    }
}

/// Where `kept`, which a parser made of `given`, lacks or changes something of it.
///
/// Null and absent are the same, letters of either case too (hexadecimal digits), and numbers that
/// are not whole are not compared: they are rounded to f32.
pub fn lost(given: &Value, kept: &Value) -> Option<String> {
    match (given, kept) {
        (Value::Object(given), Value::Object(kept)) => given.iter().find_map(|(name, given)| {
            let kept = kept.get(name).unwrap_or(&Value::Null);
            lost(given, kept).map(|path| format!("{name}.{path}"))
        }),
        (Value::Array(given), Value::Array(kept)) if given.len() == kept.len() => given
            .iter()
            .zip(kept)
            .find_map(|(given, kept)| lost(given, kept)),
        // Defaults are not written.
        (Value::Array(empty), Value::Null) if empty.is_empty() => None,
        (Value::Number(zero), Value::Null) if zero.as_u64() == Some(0) => None,
        (Value::Number(given), Value::Number(kept)) => {
            let whole = given.as_u64().zip(kept.as_u64());
            whole
                .filter(|(given, kept)| given != kept)
                .map(|w| format!("{w:?}"))
        }
        (Value::String(given), Value::String(kept)) if given.eq_ignore_ascii_case(kept) => None,
        // serde's other spelling of a bare word: `{"head": null}`.
        (Value::Object(given), Value::String(kept)) if given.get(kept) == Some(&Value::Null) => {
            None
        }
        (given, kept) if given == kept => None,
        (given, kept) => Some(format!(": {given} became {kept}")),
    }
}

/// Changes one node of the tree.
fn edit(tree: &mut Value, random: &mut Random) {
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

/// Numbers that follow from a seed (xorshift).
struct Random(u32);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 |= u32::from(self.0 == 0);
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        self.0 as usize % end
    }
}
