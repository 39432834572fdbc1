//! `config.json` and a table make a [`ModelSpec`].

use std::path::Path;

use serde_json::Value;

use super::Arch;
use super::config::{self, Config, MAX_SIZE, TOKEN_IDS};
use super::ffn_rows::Flag;
use crate::checkpoint::Checkpoint;
use crate::error::{FormatError, Result};
use crate::io::{CONFIG_LIMIT, read_limited};
use crate::model::{LayerSpec, ModelSpec};
use crate::refusal::mismatch;
use crate::written_json;

/// Most layers that are believed.
const MAX_LAYERS: u32 = 4096;
/// Most experts in all layers that are believed: some fifty times those of the largest models.
const MAX_EXPERTS: u32 = 1 << 20;
/// Its `eos_token_id` is what generation stops at; `config.json` only gives a default.
const GENERATION_CONFIG: &str = "generation_config.json";

impl Arch {
    /// The model that a checkpoint's configuration describes.
    ///
    /// # Errors
    /// As [`Self::spec_of`], a malformed `generation_config.json`, and a `config.json` that contradicts the
    /// metadata of the GGUF file beside it.
    pub fn spec(&self, checkpoint: &Checkpoint) -> Result<ModelSpec> {
        let mut spec = self.spec_of(checkpoint.config_path(), checkpoint.config())?;
        self.check_described(checkpoint, &spec)?;
        if let Some(ids) = generation_eos(&checkpoint.root().join(GENERATION_CONFIG))? {
            spec.eos_token_ids = ids;
        }
        Ok(spec)
    }

    /// The model that the `config.json` at `path` describes.
    ///
    /// # Errors
    /// A missing, unsupported or absurd value: key, expected and found.
    pub fn spec_of(&self, path: &Path, object: &Value) -> Result<ModelSpec> {
        self.check_model_type(path, object)?;
        let config = Config::new(self, path, object);
        config.check_supported()?;
        let count = config.size("num_hidden_layers", 1..=MAX_LAYERS)?;
        let spec = ModelSpec {
            model_type: self.model_type().to_owned(),
            vocab_size: config.size("vocab_size", 1..=MAX_SIZE)?,
            hidden_size: config.size("hidden_size", 1..=MAX_SIZE)?,
            tie_word_embeddings: config.flag(&Flag::Parameter("tie_word_embeddings".to_owned()))?,
            rms_norm_eps: config.number("rms_norm_eps")?,
            max_position_embeddings: config.size("max_position_embeddings", 1..=u32::MAX)?,
            eos_token_ids: config.token_ids("eos_token_id")?,
            bos_token_id: config.token_ids("bos_token_id")?.first().copied(),
            norm_plus_one: self.table.norm_plus_one,
            embedding_multiplier: self.embedding_multiplier(&config)?,
            residual_multiplier: factor(&config, self.table.scaling.residual.as_ref())?,
            logits_scaling: factor(&config, self.table.scaling.logits.as_ref())?,
            logits_cap: self
                .table
                .scaling
                .logits_cap
                .as_ref()
                .map_or(Ok(None), |name| config.optional_number(name))?,
            layers: self.layers(&config, count)?,
        };
        check_experts(&config, &spec)?;
        spec.validate().map_err(|detail| config.refused(detail))?;
        Ok(spec)
    }

    fn embedding_multiplier(&self, config: &Config<'_>) -> Result<Option<f32>> {
        if self.table.scaling.embedding_by_root {
            let hidden = config.size("hidden_size", 1..=MAX_SIZE)?;
            return Ok(Some((f64::from(hidden)).sqrt() as f32));
        }
        factor(config, self.table.scaling.embedding.as_ref())
    }

    /// How many layers beyond the text model's each row of `extras` has.
    pub(super) fn beyond(&self, checkpoint: &Checkpoint) -> Result<Vec<u32>> {
        let config = Config::new(self, checkpoint.config_path(), checkpoint.config());
        let count = |name: &String| config.optional_size(name, 0..=MAX_LAYERS);
        let rows = self.table.extras.iter();
        rows.map(|row| Ok(row.layers.as_ref().map_or(Ok(None), count)?.unwrap_or(0)))
            .collect()
    }

    fn layers(&self, config: &Config<'_>, count: u32) -> Result<Vec<LayerSpec>> {
        let (output_norms, no_input_norms) = (self.table.output_norms, self.table.no_input_norms);
        let (mixers, ffns) = (self.mixers(config, count)?, self.ffns(config, count)?);
        let layers = mixers.into_iter().zip(ffns);
        Ok(layers
            .map(|(mixer, ffn)| LayerSpec { mixer, ffn, output_norms, no_input_norms })
            .collect())
    }
}

/// A factor that a parameter gives; none where it changes nothing.
fn factor(config: &Config<'_>, name: Option<&String>) -> Result<Option<f32>> {
    let found = name.map_or(Ok(None), |name| config.optional_number(name))?;
    Ok(found.filter(|factor| *factor != 1.0))
}

/// Refuses more experts than memory should be spent on naming.
fn check_experts(config: &Config<'_>, spec: &ModelSpec) -> Result<()> {
    let experts: u32 = spec.layers.iter().map(LayerSpec::num_experts).sum();
    if experts <= MAX_EXPERTS {
        return Ok(());
    }
    let detail = mismatch(format_args!("at most {MAX_EXPERTS} experts in all layers"), experts);
    Err(config.refused(detail))
}

/// The tokens that end generation by the `generation_config.json` at `path`, if it names any.
fn generation_eos(path: &Path) -> Result<Option<Vec<u32>>> {
    let Some(text) = read_limited(path, CONFIG_LIMIT)? else { return Ok(None) };
    let generation =
        written_json::parse(&text).map_err(|e| FormatError::file(path, e.to_string()))?;
    let Some(value) = generation
        .get("eos_token_id")
        .filter(|value| !value.is_null())
    else {
        return Ok(None);
    };
    config::token_ids(value).map(Some).ok_or_else(|| {
        let found = config::shown(Some(value));
        FormatError::file(path, mismatch(TOKEN_IDS, found).at("`eos_token_id`"))
    })
}
