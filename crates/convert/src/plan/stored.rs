//! A plan in a file: what a part of a conversion keeps, so that parts can be put together without the
//! checkpoint.

use serde::{Deserialize, Serialize};
use shardwright_format::manifest::{Hash, Manifest};
use shardwright_format::{Refusal, Unit};

use super::resolve::Rounding;
use super::{Cost, Plan};

/// All of a plan but its manifest, which has a form of its own, and its cost, which depends on threads.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    plan: Plan,
    methods: Vec<(Unit, Vec<Rounding>)>,
    /// Hashes that the checkpoint's files must have, where that is known.
    expected: Vec<Option<Hash>>,
}

impl Plan {
    /// The plan without its manifest, and the hashes that the checkpoint's files must have, as JSON.
    pub(crate) fn to_stored(&self, expected: Vec<Option<Hash>>) -> Vec<u8> {
        let plan = Self { cost: Cost::default(), ..self.clone() };
        let methods = self.methods.clone().into_iter().collect();
        let stored = Stored { plan, methods, expected };
        serde_json::to_vec(&stored).unwrap_or_default()
    }

    /// What [`Self::to_stored`] gave, with its manifest.
    ///
    /// # Errors
    /// Bytes that are something else.
    pub(crate) fn from_stored(
        bytes: &[u8],
        manifest: Manifest,
    ) -> Result<(Self, Vec<Option<Hash>>), Refusal> {
        let found: Stored = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
        let methods = found.methods.into_iter().collect();
        Ok((Self { manifest, methods, ..found.plan }, found.expected))
    }
}

/// Stands for the manifest until it is read.
pub(super) fn no_manifest() -> Manifest {
    Manifest {
        blake3: Hash::ZERO,
        format: String::new(),
        version: 0,
        generator: String::new(),
        alignment: 0,
        model: shardwright_format::ModelSpec::default(),
        recipe: serde_json::Value::Null,
        checkpoint: shardwright_format::manifest::CheckpointRecord::default(),
        calibration: None,
        files: Vec::new(),
        dense: Vec::new(),
        experts: Vec::new(),
    }
}
