//! What mixes the positions in each layer.

use serde_json::Value;

use super::Arch;
use super::config::{Config, MAX_COUNT};
use super::ffn_rows::Flag;
use super::ffns::numbers;
use super::rope;
use super::table::{
    AttentionRow, DeltaRow, FullWithoutRope, Kind, KindLayers, KindsRow, LatentRow, Period,
    QkNormRow, ShortConvRow, TemperatureRow, WithoutRopeRow,
};
use crate::error::{FormatError, Result};
use crate::model::{
    AttentionSpec, DeltaNetSpec, LatentSpec, Mixer, QkNorm, RopeSpec, ShortConvSpec,
    TemperatureSpec,
};
use crate::refusal::mismatch;

impl Arch {
    /// The mixer of each layer.
    pub(super) fn mixers(&self, config: &Config<'_>, count: u32) -> Result<Vec<Mixer>> {
        if let Some(row) = &self.table.latent {
            let mixer = Mixer::Latent(latent(config, row)?);
            return Ok(vec![mixer; count as usize]);
        }
        let row = self.table.attention.as_ref();
        let row = row.ok_or_else(|| FormatError::file(&self.path, "expected `attention`"))?;
        let bare = without_rope(config, row, count)?;
        let kinds = self.kinds(config, count, &bare)?;
        let attention = attention(config, row)?;
        let delta = match &self.table.delta_net {
            Some(row) if kinds.contains(&Kind::Linear) => Some(delta_net(config, row)?),
            _ => None,
        };
        let conv = self.table.short_conv.as_ref();
        let conv = conv.map_or(Ok(None), |row| short_conv(config, row).map(Some))?;
        let others = kinds.iter().any(|kind| *kind != Kind::Full);
        let mixer = |(kind, bare)| {
            let full = kind == Kind::Full && full_without_rope(row, others);
            match kind {
                Kind::Linear => delta.clone().map(Mixer::DeltaNet),
                Kind::Conv => conv.clone().map(Mixer::ShortConv),
                _ => Some(mixer(config, row, &attention, (kind, bare || full))?),
            }
            .ok_or_else(|| config.refused(format!("the table has no row for {}", kind.name())))
        };
        kinds.into_iter().zip(bare).map(mixer).collect()
    }

    /// The kind of each layer, of which those in `bare` know no positions.
    fn kinds(&self, config: &Config<'_>, count: u32, bare: &[bool]) -> Result<Vec<Kind>> {
        let Some(row) = &self.table.layer_kinds else {
            return Ok(vec![Kind::Full; count as usize]);
        };
        let switch = row.switch.as_ref();
        let on = switch.map_or(Ok(true), |name| config.flag(&Flag::Parameter(name.clone())))?;
        let sliding = row.other == Kind::Sliding;
        let on = on && (!sliding || window(config)?.is_some());
        if let Some(kinds) = listed(config, row, count, on)? {
            return Ok(kinds);
        }
        if !on {
            return Ok(vec![Kind::Full; count as usize]);
        }
        let other = other_layers(config, &row.layers, bare)?;
        let kind = |layer| if other(layer) { row.other } else { Kind::Full };
        Ok((0..count).map(kind).collect())
    }
}

/// The kinds that `config.json` lists, if it does. Other than full attention only if `on`.
fn listed(config: &Config<'_>, row: &KindsRow, count: u32, on: bool) -> Result<Option<Vec<Kind>>> {
    let list = |name: &Option<String>| name.as_ref().map_or(Ok(None), |name| config.list(name));
    let other = row.other.name();
    let names = list(&row.list)?.map(|list| {
        let kind = |value: &Value| match value.as_str() {
            Some("full_attention") => Some(Kind::Full),
            Some(name) if name == other && on => Some(row.other),
            _ => None,
        };
        let expected = if on {
            format!("`full_attention` or `{other}`")
        } else {
            "`full_attention`, as no sliding_window is in use".to_owned()
        };
        each(config, "layer_types", &list, count, &expected, kind)
    });
    let flags = list(&row.flags)?
        .filter(|list| !list.is_empty())
        .map(|list| {
            let kind = |value: &Value| match value.as_u64() {
                Some(0) => Some(Kind::Full),
                Some(1) => Some(row.other),
                _ => None,
            };
            let key = row.flags.as_deref().unwrap_or_default();
            each(config, key, &list, count, "0 or 1", kind)
        });
    match (names.transpose()?, flags.transpose()?) {
        (Some(names), Some(flags)) if names != flags => {
            let detail =
                mismatch("the kinds that no_rope_layers gives", "others").at("`layer_types`");
            Err(config.refused(detail))
        }
        (names, flags) => Ok(names.or(flags)),
    }
}

/// What each entry says, one of `list`, which must have one per layer.
fn each<T>(
    config: &Config<'_>,
    key: &str,
    list: &[Value],
    count: u32,
    expected: &str,
    kind: impl Fn(&Value) -> Option<T>,
) -> Result<Vec<T>> {
    if list.len() != count as usize {
        let found = Value::from(list.len());
        let expected = format!("{count} entries, as num_hidden_layers says");
        return Err(config.unexpected(key, &expected, Some(&found)));
    }
    let entry = |(layer, value): (usize, &Value)| {
        let refused = || config.unexpected(&format!("{key}[{layer}]"), expected, Some(value));
        kind(value).ok_or_else(refused)
    };
    list.iter().enumerate().map(entry).collect()
}

/// Whether layers of full attention know no positions, in a model that has `others` or not.
fn full_without_rope(row: &AttentionRow, others: bool) -> bool {
    match row.full_without_rope {
        FullWithoutRope::Fixed(always) => always,
        FullWithoutRope::Beside(_) => others,
    }
}

/// Whether each layer knows no positions, whatever its kind.
fn without_rope(config: &Config<'_>, row: &AttentionRow, count: u32) -> Result<Vec<bool>> {
    let Some(WithoutRopeRow { flags, every }) = &row.without_rope else {
        return Ok(vec![false; count as usize]);
    };
    let kind = |value: &Value| match value.as_u64() {
        Some(0) => Some(true),
        Some(1) => Some(false),
        _ => None,
    };
    if let Some(list) = config.list(flags)? {
        return each(config, flags, &list, count, "0 or 1", kind);
    }
    let every = config.size(every, 1..=u32::MAX)?;
    Ok((1..=count).map(|nth| nth.is_multiple_of(every)).collect())
}

/// The rule that a table gives for layers without a list.
fn other_layers(
    config: &Config<'_>,
    rule: &KindLayers,
    bare: &[bool],
) -> Result<impl Fn(u32) -> bool> {
    let bound = match rule {
        KindLayers::All | KindLayers::ButThoseIn(_) | KindLayers::WithoutRope => 0,
        KindLayers::FromMaxWindowLayers | KindLayers::EvenBelowMaxWindowLayers => {
            config.size("max_window_layers", 0..=u32::MAX)?
        }
        KindLayers::ButEvery(Period::Of(name)) => config.size(name, 1..=u32::MAX)?,
        KindLayers::ButEvery(Period::Fixed(period)) => period.get(),
    };
    let listed = match rule {
        KindLayers::ButThoseIn(name) => numbers(config, name)?,
        _ => None,
    };
    let rule = rule.clone();
    Ok(move |layer: u32| match rule {
        KindLayers::All => true,
        KindLayers::FromMaxWindowLayers => layer >= bound,
        KindLayers::EvenBelowMaxWindowLayers => layer < bound && layer.is_multiple_of(2),
        KindLayers::ButEvery(_) => !(layer + 1).is_multiple_of(bound),
        KindLayers::WithoutRope => bare[layer as usize],
        KindLayers::ButThoseIn(_) => listed.as_ref().is_some_and(|full| !full.contains(&layer)),
    })
}

fn window(config: &Config<'_>) -> Result<Option<u32>> {
    config.optional_size("sliding_window", 1..=u32::MAX)
}

/// A layer's attention, from what all layers of its kind have in common.
fn mixer(
    config: &Config<'_>,
    row: &AttentionRow,
    attention: &AttentionSpec,
    (kind, without_rope): (Kind, bool),
) -> Result<Mixer> {
    let mut spec = attention.clone();
    spec.rope = Some(rope::of_kind(config, row, spec.head_dim, kind)?);
    match kind {
        Kind::Sliding => {
            spec.sliding_window = window(config)?;
        }
        Kind::Chunked => {
            spec.attention_chunk_size =
                config.optional_size("attention_chunk_size", 1..=u32::MAX)?;
        }
        Kind::Full | Kind::Linear | Kind::Conv => {}
    }
    if without_rope {
        spec.rope = None;
        let tuned = row.temperature.as_ref();
        spec.temperature = tuned.map_or(Ok(None), |row| temperature(config, row))?;
        if spec.qk_norm == QkNorm::Weightless {
            spec.qk_norm = QkNorm::None;
        }
    }
    Ok(Mixer::Attention(spec))
}

/// What attention has in common in all layers.
fn attention(config: &Config<'_>, row: &AttentionRow) -> Result<AttentionSpec> {
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
    let (clip, cap) = (row.clip_qkv.as_ref(), row.score_cap.as_ref());
    Ok(AttentionSpec {
        heads,
        kv_heads,
        head_dim,
        rope: None,
        qk_norm: qk_norm(config, &row.qk_norm)?,
        qkv_bias: config.flag(&row.qkv_bias)?,
        o_bias: config.flag(&row.o_bias)?,
        sliding_window: None,
        clip_qkv: clip.map_or(Ok(None), |name| config.optional_number(name))?,
        attention_chunk_size: None,
        sinks: row.sinks,
        output_gate: row.output_gate,
        softmax_scale: softmax_scale(config, row)?,
        score_cap: cap.map_or(Ok(None), |name| config.optional_number(name))?,
        inner_norm: row.inner_norm,
        temperature: rope::query_growth(config, &row.rotary)?,
    })
}

fn softmax_scale(config: &Config<'_>, row: &AttentionRow) -> Result<Option<f32>> {
    if let Some(name) = &row.softmax_scale {
        return config.optional_number(name);
    }
    let Some(name) = &row.softmax_dim else { return Ok(None) };
    let dim = config.number(name)?;
    Ok(Some((1.0 / f64::from(dim).sqrt()) as f32))
}

fn qk_norm(config: &Config<'_>, row: &QkNormRow) -> Result<QkNorm> {
    Ok(match row {
        QkNormRow::Fixed(kind) => *kind,
        QkNormRow::If(row) if config.flag(&row.flag)? => row.kind,
        QkNormRow::If(_) => QkNorm::None,
    })
}

fn temperature(config: &Config<'_>, row: &TemperatureRow) -> Result<Option<TemperatureSpec>> {
    if !config.flag(&row.switch)? {
        return Ok(None);
    }
    let (floor_scale, attn_scale) =
        (config.number(&row.floor_scale)?, config.number(&row.attn_scale)?);
    Ok(Some(TemperatureSpec { floor_scale, attn_scale, from_zero: false }))
}

fn latent(config: &Config<'_>, row: &LatentRow) -> Result<LatentSpec> {
    let size = |name| config.size(name, 1..=MAX_COUNT);
    let (nope, rope_dim) = (size("qk_nope_head_dim")?, size("qk_rope_head_dim")?);
    let rope: RopeSpec = rope::read(config, &row.rotary, rope_dim)?;
    let mscale = rope::softmax_mscale(config)?;
    let picked = row.index_topk.as_ref();
    Ok(LatentSpec {
        heads: size("num_attention_heads")?,
        q_lora_rank: config.optional_size("q_lora_rank", 1..=MAX_COUNT)?,
        kv_lora_rank: size("kv_lora_rank")?,
        qk_nope_head_dim: nope,
        qk_rope_head_dim: rope_dim,
        v_head_dim: size("v_head_dim")?,
        rope,
        softmax_scale: (mscale * mscale / f64::from(nope + rope_dim).sqrt()) as f32,
        bias: config.flag(&row.bias)?,
        index_topk: picked.map_or(Ok(None), |name| config.optional_size(name, 1..=u32::MAX))?,
    })
}

fn short_conv(config: &Config<'_>, row: &ShortConvRow) -> Result<ShortConvSpec> {
    Ok(ShortConvSpec { conv_kernel: config.size(&row.kernel, 1..=MAX_COUNT)? })
}

fn delta_net(config: &Config<'_>, row: &DeltaRow) -> Result<DeltaNetSpec> {
    let size = |name| config.size(name, 1..=MAX_COUNT);
    let (key_heads, value_heads) = (size("linear_num_key_heads")?, size("linear_num_value_heads")?);
    if !value_heads.is_multiple_of(key_heads) {
        let expected = format!("a divisor of linear_num_value_heads {value_heads}");
        let found = Value::from(key_heads);
        return Err(config.unexpected("linear_num_key_heads", &expected, Some(&found)));
    }
    Ok(DeltaNetSpec {
        key_heads,
        value_heads,
        key_head_dim: size("linear_key_head_dim")?,
        value_head_dim: size("linear_value_head_dim")?,
        conv_kernel: size("linear_conv_kernel_dim")?,
        projection: row.projection,
    })
}
