//! Architectures as data: a table per `model_type` says which tensor plays which role and how
//! `config.json` becomes a [`ModelSpec`]. Shapes follow from the spec.
//!
//! | member of a table | says |
//! |---|---|
//! | `parameters` | name: `keys` in `config.json` (its name if absent), the `default` without a key, the value for `null`; a text as value is a parameter or a quotient of two |
//! | `supported` | keys that may be absent or have one of these values, nothing else |
//! | `aliases` | other values of `model_type` that mean the same |
//! | `config`, `prefixes` | where `config.json` and tensor names hold the text model inside another |
//! | `layer_kinds` | which layers are not full attention |
//! | `attention`, `latent`, `delta_net`, `mlp`, `moe` | options of the blocks, fixed or by the name of a parameter |
//! | `tensors` | role: the tensor's name or alternatives, with `{layer}` and `{expert}` |
//! | `fused` | tensors that hold several roles one after the other, for all experts at once |
//! | `extras` | tensors that are not the text model's: their `role`, by `beginnings` of names, by what names are `containing`, or by `layers` beyond the last, and why a bundle works without them; the names of a `head` among them that drafts can come from |
//! | `ignored` | names of tensors that no runtime needs, and why |
//! | `_uncertain` | rows that a [`Draft`] is not certain of, and why: a table with any is refused |

mod bundle;
mod claim;
mod config;
mod counts;
mod described;
mod draft;
mod excerpt;
mod ffn_rows;
mod ffns;
mod fused;
mod inventory;
mod mechanisms;
mod mixers;
mod plain;
mod prediction;
mod rope;
mod spec;
mod stray;
mod table;

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::checkpoint::Checkpoint;
use crate::error::{FormatError, Result};
use crate::model::ModelSpec;
use crate::names::fill;
use crate::refusal::mismatch;
use crate::role::Role;
use crate::unit::{SourceView, Unit};
use table::{Table, Target};

pub use draft::Draft;
pub use inventory::{AlikeExperts, Extra, Inventory};
pub use prediction::{Piece, Prediction};

macro_rules! builtin {
    ($($model_type:literal,)*) => {
        /// Model types and their tables.
        const BUILTIN: &[(&str, &str)] = &[$((
            $model_type,
            include_str!(concat!("../../../../configs/arch/", $model_type, ".json")),
        ),)*];
    };
}

builtin! {
    "arcee", "bitnet", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5",
    "ernie4_5_moe", "exaone4", "exaone_moe", "gemma2", "gemma3_text", "glm4", "glm4_moe",
    "glm4_moe_lite", "glm4v_moe", "glm_moe_dsa", "gpt_oss", "granite", "granitemoe",
    "granitemoehybrid", "granitemoeshared", "hunyuan_v1_dense", "hunyuan_v1_moe", "hy_v3",
    "kimi_k25", "lfm2", "lfm2_moe", "llama", "llama4", "minimax_m2", "ministral", "ministral3",
    "mistral", "mistral3", "mixtral", "olmo2", "olmo3", "olmoe", "phi3", "qwen2", "qwen2_5_vl",
    "qwen2_moe", "qwen3", "qwen3_5", "qwen3_5_moe", "qwen3_moe", "qwen3_next", "qwen3_vl",
    "qwen3_vl_moe", "seed_oss", "smollm3", "solar_open", "youtu",
}

/// The table of one architecture.
#[derive(Debug)]
pub struct Arch {
    path: PathBuf,
    table: Table,
}

impl Arch {
    /// The built-in table for a `model_type`, by its own name or another that means the same.
    pub fn builtin(model_type: &str) -> Option<Self> {
        let named = BUILTIN.iter().find(|(name, _)| *name == model_type);
        named.map(Self::of_builtin).or_else(|| {
            let mut all = BUILTIN.iter().map(Self::of_builtin);
            all.find(|arch| arch.table.aliases.iter().any(|alias| alias == model_type))
        })
    }

    fn of_builtin((name, json): &(&str, &str)) -> Self {
        let path = PathBuf::from(format!("configs/arch/{name}.json"));
        Self::parse(&path, json).expect("built-in tables are tested")
    }

    /// The text of a built-in table, by its own name or another that means the same.
    pub fn builtin_json(model_type: &str) -> Option<&'static str> {
        let arch = Self::builtin(model_type)?;
        let mut named = BUILTIN.iter();
        named
            .find(|(name, _)| *name == arch.model_type())
            .map(|(_, json)| *json)
    }

    /// Other values of `model_type` that the table is for.
    pub fn aliases(&self) -> &[String] {
        &self.table.aliases
    }

    /// The model types that have a built-in table, sorted.
    pub fn builtin_names() -> impl Iterator<Item = &'static str> {
        BUILTIN.iter().map(|(name, _)| *name)
    }

    /// Checks the text of a table.
    ///
    /// # Errors
    /// Malformed JSON, an unknown field or role, a tensor name that is used twice or lacks the
    /// `{layer}` or `{expert}` of its role; rows that are still marked as uncertain.
    pub fn parse(path: &Path, json: &str) -> Result<Self> {
        let table = Table::parse(json).map_err(|detail| FormatError::file(path, detail))?;
        if !table.uncertain.is_empty() {
            let marks: Vec<_> = table
                .uncertain
                .keys()
                .map(|place| format!("`{place}`"))
                .collect();
            let detail = mismatch(
                "none",
                format_args!("{}; see that each is right, then remove its mark", marks.join(", ")),
            )
            .at("`_uncertain`");
            return Err(FormatError::file(path, detail));
        }
        Ok(Self { path: path.to_owned(), table })
    }

    /// Where the architecture's own checkpoints have a tensor of `shape` that `stored` holds some other
    /// way: by the first row of the table with its role, and wrapped as `stored` is.
    pub fn own_place(
        &self,
        spec: &ModelSpec,
        unit: Unit,
        (role, shape): (Role, [u64; 2]),
        stored: &SourceView,
    ) -> Option<SourceView> {
        let named = self.table.names.get(&role).and_then(|names| names.first());
        let Some(name) = named else {
            return fused::own_place(&self.table, spec, (unit, role), stored, &|_| true);
        };
        let [_, cols] = shape;
        Some(SourceView {
            tensor: self.table.wrapped(fill(name, unit), &stored.tensor),
            shape: shape.to_vec(),
            start: 0,
            row_stride: cols,
            col_stride: 1,
            ..stored.clone()
        })
    }

    /// Whether the checkpoint has a tensor for this role alone, in each unit that has one.
    pub fn has_own_name(&self, role: Role) -> bool {
        self.table.names.contains_key(&role)
    }

    /// The roles of each tensor that holds several.
    pub fn fused_roles(&self) -> Vec<Vec<Role>> {
        let rows = self.table.fused.iter().map(|row| row.roles.clone());
        rows.filter(|roles| roles.len() > 1).collect()
    }

    /// A name of a table with the numbers of `unit`.
    pub fn filled(name: &str, unit: Unit) -> String {
        fill(name, unit)
    }

    /// Where a checkpoint has the tensor of one expert that keeps those of all under one name of the
    /// module `module`, as MLX does, in the type of `stored`.
    pub fn stacked_place(
        &self,
        spec: &ModelSpec,
        unit: Unit,
        (role, module): (Role, &str),
        stored: &SourceView,
    ) -> Option<SourceView> {
        let part = format!(".{module}.");
        let fits = |name: &String| {
            let parameter = name.rsplit('.').next();
            name.contains(&part) && matches!(parameter, Some("weight" | "bias"))
        };
        let alone =
            |row: &table::FusedRow| row.roles.len() == 1 && row.tensor.as_slice().iter().all(fits);
        fused::own_place(&self.table, spec, (unit, role), stored, &alone)
    }

    /// The roles whose rows, or values, a tensor of such a name holds one after the other; for a name in
    /// which no rows take turns.
    pub(crate) fn roles_of(&self, pattern: &str) -> Option<Vec<Role>> {
        match self.table.targets.get(pattern)? {
            Target::Role(role) => Some(vec![*role]),
            Target::Fused(row) => Some(self.table.fused[*row].roles.clone()),
            Target::Ignored(_) => None,
        }
    }

    /// What a configuration says by one of the keys of a parameter, or what stands for it.
    pub(crate) fn stated(&self, path: &Path, config: &Value, key: &str) -> Result<Option<Value>> {
        config::stated(self, path, config, key)
    }

    /// The `model_type` that the table is for.
    pub fn model_type(&self) -> &str {
        &self.table.model_type
    }

    /// The model that a checkpoint's own files of configuration describe, by a built-in table.
    ///
    /// # Errors
    /// As [`Self::spec`], and a `model_type` without a built-in table.
    pub fn described(checkpoint: &Checkpoint) -> Result<ModelSpec> {
        Self::of_checkpoint(checkpoint)?.spec(checkpoint)
    }

    /// The built-in table for the checkpoint's `model_type`.
    fn of_checkpoint(checkpoint: &Checkpoint) -> Result<Self> {
        let model_type = model_type(checkpoint.config_path(), checkpoint.config())?;
        if let Some(arch) = Self::builtin(model_type) {
            return Ok(arch);
        }
        let known: Vec<_> = Self::builtin_names().collect();
        let detail = mismatch(
            format_args!("one of {}, or a table of your own", known.join(", ")),
            format_args!("`{model_type}`; {}", draft::unknown(checkpoint)?),
        )
        .at("`model_type`");
        Err(FormatError::file(checkpoint.config_path(), detail))
    }

    /// Refuses a configuration of another `model_type`.
    fn check_model_type(&self, path: &Path, config: &Value) -> Result<()> {
        let found = model_type(path, config)?;
        if found == self.model_type() || self.table.aliases.iter().any(|alias| alias == found) {
            return Ok(());
        }
        let (expected, table) = (self.model_type(), self.path.display());
        let detail =
            mismatch(format_args!("`{expected}`, as {table} is for"), format_args!("`{found}`"))
                .at("`model_type`");
        Err(FormatError::file(path, detail))
    }
}

fn model_type<'a>(path: &Path, config: &'a Value) -> Result<&'a str> {
    let found = config.get("model_type");
    found.and_then(Value::as_str).ok_or_else(|| {
        let found = config::shown(found);
        let detail = mismatch("a name", found).at("`model_type`");
        FormatError::file(path, detail)
    })
}

#[cfg(test)]
mod tests;
