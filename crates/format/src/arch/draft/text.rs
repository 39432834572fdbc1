//! A table as text: a line for each row.

use serde_json::Value;

/// Members of a table in the order in which one reads it.
const ORDER: &[&str] = &[
    "model_type",
    "_uncertain",
    "config",
    "prefixes",
    "norm_plus_one",
    "output_norms",
    "no_input_norms",
    "scaling",
    "parameters",
    "supported",
    "layer_kinds",
    "attention",
    "latent",
    "delta_net",
    "short_conv",
    "mlp",
    "moe",
    "tensors",
    "fused",
    "extras",
    "ignored",
];

/// Writes a table as the built-in ones are written.
pub(super) fn write(table: &Value) -> String {
    let place = |key: &str| ORDER.iter().position(|known| *known == key);
    let mut members: Vec<_> = table.as_object().into_iter().flatten().collect();
    members.sort_by_key(|(key, _)| place(key));
    let lines: Vec<_> = members
        .into_iter()
        .map(|(key, value)| format!("  {}: {}", Value::from(key.as_str()), member(key, value)))
        .collect();
    format!("{{\n{}\n}}\n", lines.join(",\n"))
}

/// One row to a line where rows are many, all in one where they are options.
fn member(key: &str, value: &Value) -> String {
    const ROWS: &[&str] = &["parameters", "supported", "tensors", "ignored", "_uncertain"];
    match value {
        Value::Object(rows) if ROWS.contains(&key) && !rows.is_empty() => {
            let lines: Vec<_> = rows
                .iter()
                .map(|(name, row)| format!("    {}: {}", Value::from(name.as_str()), inline(row)))
                .collect();
            format!("{{\n{}\n  }}", lines.join(",\n"))
        }
        Value::Array(rows) if rows.iter().any(Value::is_object) => {
            let lines: Vec<_> = rows
                .iter()
                .map(|row| format!("    {}", inline(row)))
                .collect();
            format!("[\n{}\n  ]", lines.join(",\n"))
        }
        _ => inline(value),
    }
}

fn inline(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let members: Vec<_> = members
                .iter()
                .map(|(key, value)| format!("{}: {}", Value::from(key.as_str()), inline(value)))
                .collect();
            format!("{{{}}}", members.join(", "))
        }
        Value::Array(items) => {
            let items: Vec<_> = items.iter().map(inline).collect();
            format!("[{}]", items.join(", "))
        }
        other => other.to_string(),
    }
}
