//! Names of tensors and the numbers in them.

use crate::unit::Unit;

/// Stands for the number of a layer in a tensor's name.
pub(crate) const LAYER: &str = "{layer}";
/// Stands for the number of an expert in a tensor's name.
pub(crate) const EXPERT: &str = "{expert}";

/// A name with its first two numbers, if it has them, replaced by placeholders. No pattern for a
/// name that could be taken for one itself.
pub(crate) fn split(name: &str) -> (Option<String>, [u32; 2]) {
    let mut numbers = [0; 2];
    if name.contains(['{', '}']) {
        return (None, numbers);
    }
    let mut free = [LAYER, EXPERT].into_iter().zip(&mut numbers);
    let mut parts = Vec::new();
    for part in name.split('.') {
        let number = number(part).and_then(|n| Some((n, free.next()?)));
        parts.push(match number {
            Some((value, (placeholder, number))) => {
                *number = value;
                placeholder
            }
            None => part,
        });
    }
    (Some(parts.join(".")), numbers)
}

/// Whether the first number in a pattern is that of a layer.
pub(crate) fn in_layer(pattern: &str) -> bool {
    pattern
        .split_once(LAYER)
        .is_some_and(|(before, _)| before.ends_with("layers."))
}

/// The number that `part` is when written plainly: no sign, no leading zeros.
fn number(part: &str) -> Option<u32> {
    let plain = part.bytes().all(|b| b.is_ascii_digit()) && (part == "0" || !part.starts_with('0'));
    part.parse().ok().filter(|_| plain)
}

/// The name of an expert's tensor, its expert's number replaced by the placeholder; any other name
/// as it is.
pub(crate) fn template(name: &str, unit: Unit) -> String {
    if !matches!(unit, Unit::Expert { .. }) {
        return name.to_owned();
    }
    let mut seen = 0;
    let parts = name.split('.').map(|part| {
        seen += u32::from(number(part).is_some());
        if seen == 2 && number(part).is_some() { EXPERT } else { part }
    });
    parts.collect::<Vec<_>>().join(".")
}

/// A name of a table with the numbers of `unit`.
pub(crate) fn fill(name: &str, unit: Unit) -> String {
    let layer = unit.layer().unwrap_or_default().to_string();
    let expert = match unit {
        Unit::Expert { expert, .. } => expert.to_string(),
        _ => String::new(),
    };
    name.replace(LAYER, &layer).replace(EXPERT, &expert)
}
