//! The scheme that a configuration names.

use std::path::Path;

use serde_json::Value;

use super::Grouping;
use super::fp8::Fp8;
use super::ignore::Ignore;
use crate::checkpoint::{Checkpoint, StoredTensor};
use crate::error::{FormatError, Result};

/// A checkpoint's scheme.
pub(super) struct Scheme {
    /// Its name.
    pub(super) method: String,
    /// What it leaves out.
    pub(super) ignore: Ignore,
    kind: Kind,
}

enum Kind {
    Fp8(Fp8),
}

/// Where a configuration may describe the scheme.
const PLACES: &[&str] = &["/quantization_config", "/text_config/quantization_config"];

/// The methods that are known.
const METHODS: &[&str] = &["fp8"];

impl Scheme {
    /// The scheme that `config.json` describes.
    ///
    /// # Errors
    /// One that is not known, or parameters that it cannot have.
    pub(super) fn of(checkpoint: &Checkpoint) -> Result<Option<Self>> {
        let found = PLACES.iter().find_map(|place| {
            let found = checkpoint.config().pointer(place)?;
            (!found.is_null()).then_some((place.trim_start_matches('/'), found))
        });
        let Some((place, config)) = found else { return Ok(None) };
        let path: &Path = checkpoint.config_path();
        let refuse = |detail: String| {
            let place = place.replace('/', ".");
            FormatError::file(path, format!("`{place}`: {detail}"))
        };
        Self::parse(config).map(Some).map_err(refuse)
    }

    fn parse(config: &Value) -> Result<Self, String> {
        let method = config.get("quant_method").and_then(Value::as_str);
        let kind = match method {
            Some("fp8") => Kind::Fp8(Fp8::parse(config)?),
            _ => {
                let (known, found) = (METHODS.join(", "), shown(config.get("quant_method")));
                return Err(format!("`quant_method`: expected one of {known}, found {found}"));
            }
        };
        let method = method.unwrap_or_default().to_owned();
        Ok(Self { method, ignore: Ignore::parse(config)?, kind })
    }

    /// Takes in the tensor of which `name` is the main part, if it is one.
    pub(super) fn take(
        &self,
        grouping: &mut Grouping<'_>,
        name: &str,
        stored: &StoredTensor,
    ) -> Result<()> {
        match &self.kind {
            Kind::Fp8(fp8) => fp8.take(grouping, name, stored),
        }
    }

    /// The stored tensor that `name`, by its ending, belongs to.
    pub(super) fn whole_of(&self, name: &str) -> Option<String> {
        match &self.kind {
            Kind::Fp8(_) => name.strip_suffix(super::fp8::SCALES).map(str::to_owned),
        }
    }
}

/// A value for an error message.
pub(super) fn shown(value: Option<&Value>) -> String {
    value.map_or_else(|| "nothing".to_owned(), Value::to_string)
}
