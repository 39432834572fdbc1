//! `quantization_config` as compressed-tensors reads it.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};
use shardwright_quant::Affine;

/// Bits and group size, which decide how modules are packed.
type Kind = (u8, usize);

/// Modules in codes and modules in floats.
#[derive(Default)]
pub(super) struct Schemes {
    modules: BTreeMap<String, Kind>,
    floats: BTreeSet<String>,
    /// Kinds of which some group has another zero than the middle code.
    asymmetric: BTreeSet<Kind>,
}

fn kind(affine: Affine) -> Kind {
    (affine.bits(), affine.group_size())
}

impl Schemes {
    /// Adds a module in codes.
    pub(super) fn add(&mut self, module: &str, affine: Affine) {
        self.modules.insert(module.to_owned(), kind(affine));
    }

    /// Adds a module whose weight is floats.
    pub(super) fn add_floats(&mut self, module: &str) {
        self.floats.insert(module.to_owned());
    }

    /// All modules of an encoding get zero points: engines fuse some, and want these packed alike.
    pub(super) fn make_asymmetric(&mut self, affine: Affine) {
        self.asymmetric.insert(kind(affine));
    }

    /// Whether modules of an encoding have zero points.
    pub(super) fn is_asymmetric(&self, affine: Affine) -> bool {
        self.asymmetric.contains(&kind(affine))
    }

    /// The object; none for a model of floats. The encoding of most modules is that of linear layers
    /// in general, modules with another are named.
    pub(super) fn quantization(&self) -> Option<Value> {
        let mut named = BTreeMap::<Kind, Vec<&str>>::new();
        for (module, kind) in &self.modules {
            named.entry(*kind).or_default().push(module);
        }
        let (most, _) = named.iter().max_by_key(|(_, modules)| modules.len())?;
        let most = *most;
        let mut groups = Map::new();
        for (at, (kind, modules)) in named.into_iter().enumerate() {
            let targets = if kind == most { vec!["Linear"] } else { modules };
            groups.insert(format!("group_{at}"), self.group(kind, &targets));
        }
        let mut ignored = self.floats.clone();
        if !self.modules.contains_key("lm_head") {
            // A head that shares the embedding's weights is a module all the same.
            ignored.insert("lm_head".to_owned());
        }
        Some(json!({
            "config_groups": groups,
            "format": "pack-quantized",
            "ignore": ignored,
            "quant_method": "compressed-tensors",
            "quantization_status": "compressed",
        }))
    }

    fn group(&self, kind: Kind, targets: &[&str]) -> Value {
        let (bits, group_size) = kind;
        json!({
            "targets": targets,
            "weights": {
                "num_bits": bits,
                "type": "int",
                "symmetric": !self.asymmetric.contains(&kind),
                "strategy": "group",
                "group_size": group_size,
            },
        })
    }
}
