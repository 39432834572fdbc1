//! GGUF files to be written: the tables by which they are read (`configs/gguf`), the other way round.
//!
//! Whoever writes one reads the header back with the rest of this crate before any weight is written:
//! a model that the file would not say is refused there.

mod header;
mod metadata;
mod vocabulary;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use serde_json::Value;
use shardwright_quant::Ggml;

use crate::arch::Arch;
use crate::checkpoint::gguf::table::Table;
use crate::model::ModelSpec;
use crate::names::{EXPERT, fill};
use crate::refusal::{Refusal, mismatch};
use crate::role::Role;
use crate::unit::{TensorEntry, Unit};

pub use header::Datum;
use header::{ALIGNMENT, Info};
use vocabulary::Ends;
pub use vocabulary::Tokenizer;

/// What a model says of itself.
pub struct Model<'a> {
    /// What people call it.
    pub name: &'a str,
    /// Its `config.json`, and where that lies.
    pub config: (&'a Path, &'a Value),
    /// Its mathematics.
    pub spec: &'a ModelSpec,
    /// Its tokenizer, if it has one.
    pub tokenizer: Option<&'a Tokenizer>,
}

/// A tensor of the file.
#[derive(Debug)]
pub struct OutTensor {
    /// Its name.
    pub name: String,
    /// Outermost dimension first.
    pub shape: Vec<u64>,
    /// What of the model it holds, in order.
    pub holds: Vec<(Unit, Role)>,
    /// Its values, where they are no weights of the model.
    pub values: Option<Vec<f32>>,
    /// Whether llama.cpp computes with it in 32 bits: vectors and routers.
    pub wide: bool,
}

/// All that is known of a file before the types of its tensors are.
#[derive(Debug)]
pub struct Outline {
    metadata: Vec<(String, Datum)>,
    tensors: Vec<OutTensor>,
}

/// The bytes before the data, and where each tensor lies.
#[derive(Debug)]
pub struct Head {
    /// The first bytes of the file.
    pub bytes: Vec<u8>,
    /// The first byte of each tensor.
    pub offsets: Vec<u64>,
    /// Bytes of the file.
    pub len: u64,
}

impl Outline {
    /// The file of a model whose tensors are `entries`.
    ///
    /// # Errors
    /// An architecture that no table has, a tensor that its table has no name for, a tokenizer that
    /// llama.cpp lacks: what was expected and what was found.
    pub fn new<'e>(
        model: &Model<'_>,
        entries: impl Iterator<Item = (Unit, &'e TensorEntry)>,
    ) -> Result<Self, Refusal> {
        let model_type = &model.spec.model_type;
        let arch = Arch::builtin(model_type).ok_or_else(|| unknown(model_type))?;
        let table = Table::of_model(model_type).ok_or_else(|| unknown(model_type))?;
        let mut tensors = place(&table, &arch, entries)?;
        let mut metadata = metadata::metadata(&table, &arch, model)?;
        if let Some(name) = &table.rope.factors
            && let Some(values) = metadata::rope_factors(model.spec)
        {
            let (shape, holds) = (vec![values.len() as u64], Vec::new());
            tensors.push(OutTensor {
                name: name.clone(),
                shape,
                holds,
                values: Some(values),
                wide: true,
            });
        }
        if let Some(tokenizer) = model.tokenizer {
            let ends = Ends { bos: model.spec.bos_token_id, eos: &model.spec.eos_token_ids };
            metadata.extend(tokenizer.metadata(model.spec.vocab_size, ends)?);
        } else {
            let none = Datum::Text("no_vocab".to_owned());
            metadata.push(("tokenizer.ggml.model".to_owned(), none));
        }
        Ok(Self { metadata, tensors })
    }

    /// Its tensors, in the order of their bytes.
    pub fn tensors(&self) -> &[OutTensor] {
        &self.tensors
    }

    /// The header, with the type of each tensor.
    pub fn head(&self, kinds: &[Ggml]) -> Head {
        let infos = self.tensors.iter().zip(kinds);
        let infos: Vec<_> = infos
            .map(|(t, kind)| Info { name: &t.name, kind: *kind, shape: &t.shape })
            .collect();
        let mut metadata = self.metadata.clone();
        metadata.push(("general.file_type".to_owned(), Datum::U32(file_type(&infos))));
        let bytes = header::encode(&metadata, &infos);
        let mut len = bytes.len() as u64;
        let offsets = infos.iter().map(|info| {
            let offset = len;
            len += info.len().next_multiple_of(ALIGNMENT);
            offset
        });
        let offsets = offsets.collect();
        Head { bytes, offsets, len }
    }
}

fn unknown(model_type: &str) -> Refusal {
    let known = Table::model_types().join(", ");
    mismatch(format_args!("one of {known}, whose names in GGUF are known"), model_type)
        .at("model_type")
}

/// `enum llama_ftype`: the type that most bytes are of, 0 where it has no number there.
fn file_type(tensors: &[Info<'_>]) -> u32 {
    let mut bytes = BTreeMap::<Ggml, u64>::new();
    for tensor in tensors {
        *bytes.entry(tensor.kind).or_default() += tensor.len();
    }
    match bytes.into_iter().max_by_key(|(_, len)| *len) {
        Some((Ggml::F16, _)) => 1,
        Some((Ggml::Q4_0, _)) => 2,
        Some((Ggml::Q4_1, _)) => 3,
        Some((Ggml::Q8_0, _)) => 7,
        Some((Ggml::Q5_0, _)) => 8,
        Some((Ggml::Q5_1, _)) => 9,
        Some((Ggml::Q2K, _)) => 10,
        Some((Ggml::Q3K, _)) => 11,
        Some((Ggml::Q4K, _)) => 14,
        Some((Ggml::Q5K, _)) => 16,
        Some((Ggml::Q6K, _)) => 18,
        Some((Ggml::Iq4Nl, _)) => 25,
        Some((Ggml::Iq4Xs, _)) => 30,
        Some((Ggml::Bf16, _)) => 32,
        _ => 0,
    }
}

/// Roles whose rows lie in one tensor of a file, and so in one type.
///
/// # Errors
/// A model that no table has.
pub fn shared_roles(model_type: &str) -> Result<Vec<Vec<Role>>, Refusal> {
    let arch = Arch::builtin(model_type).ok_or_else(|| unknown(model_type))?;
    let table = Table::of_model(model_type).ok_or_else(|| unknown(model_type))?;
    let roles = names(&table, &arch).into_iter().map(|(_, roles)| roles);
    Ok(roles.filter(|roles| roles.len() > 1).collect())
}

/// The names in a file by role: the roles whose rows lie one after the other under each.
fn names<'t>(table: &'t Table, arch: &Arch) -> Vec<(&'t str, Vec<Role>)> {
    let mut names: Vec<(&str, Vec<Role>)> = Vec::new();
    for (pattern, target) in &table.tensors {
        let Some(roles) = arch.roles_of(target.name()) else { continue };
        // Of two names of one tensor the later one is what llama.cpp writes today.
        names.retain(|(_, known)| *known != roles);
        names.push((pattern, roles));
    }
    names
}

/// Every tensor of the file, with its shape.
fn place<'e>(
    table: &Table,
    arch: &Arch,
    entries: impl Iterator<Item = (Unit, &'e TensorEntry)>,
) -> Result<Vec<OutTensor>, Refusal> {
    let names = names(table, arch);
    let (mut found, mut at) = (Vec::<Placing>::new(), BTreeMap::new());
    for (unit, entry) in entries {
        let named = names.iter().find(|(_, roles)| roles.contains(&entry.role));
        let Some((pattern, _)) = named else {
            return Err(mismatch(
                format_args!("a tensor that {} has a name for", table.path),
                "none",
            )
            .at(format_args!("{unit} {}", entry.role)));
        };
        let name = fill(pattern, unit);
        let i = *at.entry(name.clone()).or_insert(found.len());
        if i == found.len() {
            found.push(Placing::new(name, pattern, unit, entry));
        }
        let placing = &mut found[i];
        placing.values += entry.rows * entry.cols;
        placing.holds.push((unit, entry.role));
    }
    Ok(found.into_iter().map(Placing::tensor).collect())
}

/// A tensor of the file while its parts are found.
struct Placing {
    name: String,
    holds: Vec<(Unit, Role)>,
    /// All values.
    values: u64,
    /// Those of a row; none of a vector, as the gate of a shared expert is one, too.
    cols: Option<u64>,
    /// Experts lie in it one after another.
    stacked: bool,
}

impl Placing {
    fn new(name: String, pattern: &str, unit: Unit, entry: &TensorEntry) -> Self {
        let stacked = matches!(unit, Unit::Expert { .. }) && !pattern.contains(EXPERT);
        let cols = (entry.rows > 1).then_some(entry.cols);
        Self { name, holds: Vec::new(), values: 0, cols, stacked }
    }

    fn tensor(self) -> OutTensor {
        let experts: BTreeSet<_> = self.holds.iter().map(|(unit, _)| *unit).collect();
        let count = if self.stacked { experts.len().max(1) as u64 } else { 1 };
        let each = self.values / count;
        let mut shape = if self.stacked { vec![count] } else { Vec::new() };
        match self.cols {
            Some(cols) => shape.extend([each / cols.max(1), cols]),
            None => shape.push(each),
        }
        let router = |(_, role): &(Unit, Role)| *role == Role::Router;
        let wide = self.cols.is_none() || self.holds.iter().any(router);
        OutTensor { name: self.name, shape, holds: self.holds, values: None, wide }
    }
}

#[cfg(test)]
mod tests;
