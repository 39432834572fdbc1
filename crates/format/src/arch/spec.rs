//! `config.json` and a table make a [`ModelSpec`].

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::Arch;
use super::config::{self, Config, MAX_SIZE, TOKEN_IDS};
use super::rope;
use super::table::{Flag, SharedRow, SlidingLayers, SlidingRow, SparseLayers};
use crate::checkpoint::Checkpoint;
use crate::error::{FormatError, Result};
use crate::io::{CONFIG_LIMIT, read_limited};
use crate::model::{
    AttentionSpec, DenseSpec, Ffn, LayerSpec, Mixer, ModelSpec, MoeSpec, SharedExpertSpec,
};

/// Most layers that are believed.
const MAX_LAYERS: u32 = 4096;
/// Most heads, experts and head widths that are believed.
const MAX_COUNT: u32 = 1 << 16;
/// Most experts in all layers that are believed: some fifty times those of the largest models.
const MAX_EXPERTS: u32 = 1 << 20;
/// Its `eos_token_id` is what generation stops at; `config.json` only gives a default.
const GENERATION_CONFIG: &str = "generation_config.json";

impl Arch {
    /// The model that a checkpoint's configuration describes.
    ///
    /// # Errors
    /// As [`Self::spec_of`], and a malformed `generation_config.json`.
    pub fn spec(&self, checkpoint: &Checkpoint) -> Result<ModelSpec> {
        let mut spec = self.spec_of(checkpoint.config_path(), checkpoint.config())?;
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
            bos_token_id: config.optional_size("bos_token_id", 0..=u32::MAX)?,
            layers: self.layers(&config, count)?,
        };
        check_experts(&config, &spec)?;
        spec.validate().map_err(|detail| config.refused(detail))?;
        Ok(spec)
    }

    fn layers(&self, config: &Config<'_>, count: u32) -> Result<Vec<LayerSpec>> {
        let attention = self.attention(config)?;
        let windows = self.windows(config, count)?;
        let ffns = self.ffns(config, count)?;
        let layers = windows.into_iter().zip(ffns).map(|(sliding_window, ffn)| {
            let mixer = Mixer::Attention(AttentionSpec { sliding_window, ..attention.clone() });
            LayerSpec { mixer, ffn }
        });
        Ok(layers.collect())
    }

    /// What attention has in common in all layers.
    fn attention(&self, config: &Config<'_>) -> Result<AttentionSpec> {
        let row = &self.table.attention;
        let heads = config.size("num_attention_heads", 1..=MAX_COUNT)?;
        let kv_heads = config.size("num_key_value_heads", 1..=MAX_COUNT)?;
        if !heads.is_multiple_of(kv_heads) {
            let expected = format!("a divisor of num_attention_heads {heads}");
            let found = Value::from(kv_heads);
            return Err(config.unexpected("num_key_value_heads", &expected, Some(&found)));
        }
        let head_dim = config.size("head_dim", 1..=MAX_COUNT)?;
        if !head_dim.is_multiple_of(2) {
            let found = Value::from(head_dim);
            return Err(config.unexpected("head_dim", "an even number", Some(&found)));
        }
        let max_positions = config.size("max_position_embeddings", 1..=u32::MAX)?;
        Ok(AttentionSpec {
            heads,
            kv_heads,
            head_dim,
            rope: rope::read(config, max_positions)?,
            qk_norm: row.qk_norm,
            qkv_bias: config.flag(&row.qkv_bias)?,
            o_bias: config.flag(&row.o_bias)?,
            sliding_window: None,
            clip_qkv: row
                .clip_qkv
                .as_ref()
                .map_or(Ok(None), |name| config.optional_number(name))?,
        })
    }

    /// The sliding window of each layer.
    fn windows(&self, config: &Config<'_>, count: u32) -> Result<Vec<Option<u32>>> {
        let Some(row) = &self.table.attention.sliding_window else {
            return Ok(vec![None; count as usize]);
        };
        let on = row
            .switch
            .as_ref()
            .map_or(Ok(true), |name| config.flag(&Flag::Parameter(name.clone())))?;
        let window = if on { config.optional_size("sliding_window", 1..=u32::MAX)? } else { None };
        if let Some(types) = row
            .layer_types
            .as_ref()
            .map_or(Ok(None), |name| config.list(name))?
        {
            return windows_by_type(config, &types, window, count);
        }
        let Some(window) = window else { return Ok(vec![None; count as usize]) };
        let slides = sliding_layers(config, row)?;
        Ok((0..count)
            .map(|layer| slides(layer).then_some(window))
            .collect())
    }

    /// The feed-forward of each layer.
    fn ffns(&self, config: &Config<'_>, count: u32) -> Result<Vec<Ffn>> {
        let sparse = self.sparse_layers(config, count)?;
        let moe = if sparse.contains(&true) { self.moe(config)? } else { None };
        let dense = if sparse.contains(&false) { self.dense(config)? } else { None };
        let ffn = |sparse| {
            let (ffn, row) = if sparse { (&moe, "moe") } else { (&dense, "mlp") };
            ffn.clone()
                .ok_or_else(|| FormatError::file(&self.path, format!("expected `{row}`")))
        };
        sparse.into_iter().map(ffn).collect()
    }

    /// Whether each layer has experts.
    fn sparse_layers(&self, config: &Config<'_>, count: u32) -> Result<Vec<bool>> {
        let sparse = match self.table.moe.as_ref().map(|row| row.layers) {
            None => vec![false; count as usize],
            Some(SparseLayers::All) => vec![true; count as usize],
            Some(SparseLayers::SparseStep) => {
                let step = config.size("decoder_sparse_step", 1..=u32::MAX)?;
                let dense = config.list("mlp_only_layers")?.unwrap_or_default();
                let dense = dense
                    .iter()
                    .map(Value::as_u64)
                    .collect::<Option<BTreeSet<_>>>();
                let dense = dense.ok_or_else(|| {
                    config.refused("`mlp_only_layers`: expected a list of layer numbers")
                })?;
                let is_dense = |layer| dense.contains(&u64::from(layer));
                (0..count)
                    .map(|l| (l + 1).is_multiple_of(step) && !is_dense(l))
                    .collect()
            }
        };
        Ok(sparse)
    }

    fn dense(&self, config: &Config<'_>) -> Result<Option<Ffn>> {
        let Some(row) = &self.table.mlp else { return Ok(None) };
        Ok(Some(Ffn::Dense(DenseSpec {
            intermediate_size: config.size("intermediate_size", 1..=MAX_SIZE)?,
            bias: config.flag(&row.bias)?,
        })))
    }

    fn moe(&self, config: &Config<'_>) -> Result<Option<Ffn>> {
        let Some(row) = &self.table.moe else { return Ok(None) };
        let num_experts = config.size(&row.num_experts, 1..=MAX_COUNT)?;
        let shared = |shared: &SharedRow| -> Result<_> {
            let intermediate_size = config.size(&shared.intermediate_size, 1..=MAX_SIZE)?;
            Ok(SharedExpertSpec { intermediate_size, gated: shared.gated })
        };
        Ok(Some(Ffn::Moe(MoeSpec {
            num_experts,
            num_experts_per_tok: config.size("num_experts_per_tok", 1..=num_experts)?,
            moe_intermediate_size: config.size(&row.intermediate_size, 1..=MAX_SIZE)?,
            norm_topk_prob: config.flag(&row.norm_topk_prob)?,
            shared_expert: row.shared_expert.as_ref().map(shared).transpose()?,
        })))
    }
}

/// The rule that a table gives for layers without `layer_types`.
fn sliding_layers(config: &Config<'_>, row: &SlidingRow) -> Result<impl Fn(u32) -> bool> {
    let rule = row.layers;
    let bound = match rule {
        SlidingLayers::All => 0,
        SlidingLayers::FromMaxWindowLayers | SlidingLayers::EvenBelowMaxWindowLayers => {
            config.size("max_window_layers", 0..=u32::MAX)?
        }
    };
    Ok(move |layer: u32| match rule {
        SlidingLayers::All => true,
        SlidingLayers::FromMaxWindowLayers => layer >= bound,
        SlidingLayers::EvenBelowMaxWindowLayers => layer < bound && layer.is_multiple_of(2),
    })
}

fn windows_by_type(
    config: &Config<'_>,
    types: &[Value],
    window: Option<u32>,
    count: u32,
) -> Result<Vec<Option<u32>>> {
    if types.len() != count as usize {
        let found = Value::from(types.len());
        let expected = format!("{count} entries, as num_hidden_layers says");
        return Err(config.unexpected("layer_types", &expected, Some(&found)));
    }
    let window_of = |(layer, kind): (usize, &Value)| match (kind.as_str(), window) {
        (Some("full_attention"), _) => Ok(None),
        (Some("sliding_attention"), Some(window)) => Ok(Some(window)),
        (Some("sliding_attention"), None) => {
            let key = format!("layer_types[{layer}]");
            let expected = "`full_attention`, as no sliding_window is in use";
            Err(config.unexpected(&key, expected, Some(kind)))
        }
        _ => {
            let key = format!("layer_types[{layer}]");
            Err(config.unexpected(&key, "`full_attention` or `sliding_attention`", Some(kind)))
        }
    };
    types.iter().enumerate().map(window_of).collect()
}

/// Refuses more experts than memory should be spent on naming.
fn check_experts(config: &Config<'_>, spec: &ModelSpec) -> Result<()> {
    let experts: u32 = spec.layers.iter().map(LayerSpec::num_experts).sum();
    if experts <= MAX_EXPERTS {
        return Ok(());
    }
    let detail = format!("expected at most {MAX_EXPERTS} experts in all layers, found {experts}");
    Err(config.refused(detail))
}

/// The tokens that end generation by the `generation_config.json` at `path`, if it names any.
fn generation_eos(path: &Path) -> Result<Option<Vec<u32>>> {
    let Some(text) = read_limited(path, CONFIG_LIMIT)? else { return Ok(None) };
    let generation: Value =
        serde_json::from_slice(&text).map_err(|e| FormatError::file(path, e.to_string()))?;
    let Some(value) = generation
        .get("eos_token_id")
        .filter(|value| !value.is_null())
    else {
        return Ok(None);
    };
    config::token_ids(value).map(Some).ok_or_else(|| {
        let found = config::shown(Some(value));
        FormatError::file(path, format!("`eos_token_id`: expected {TOKEN_IDS}, found {found}"))
    })
}
