//! Scaled rotary positions: linear ones and YaRN by metadata, `longrope` by its factors, those of llama3 by the factors that llama.cpp
//! stores instead of their parameters.

use std::collections::BTreeMap;
use std::f64::consts::TAU;

use serde_json::{Map, Value as Json, json};

use super::facts::Facts;
use super::table::{LongRow, YARN_BOUNDS};
use crate::refusal::{Refusal, mismatch};

/// `original_max_position_embeddings`, which llama.cpp takes where `config.json` has none. Factors
/// depend on its ratio to the other two parameters alone, so any number would do.
pub(crate) const ORIGINAL: f64 = 8192.0;
/// `low_freq_factor` and `high_freq_factor` of Llama 3.
const USUAL: [f64; 2] = [1.0, 4.0];
/// Largest relative difference between a stored factor and what its parameters give.
const TOLERANCE: f64 = 1e-4;

/// Factors of rotary frequencies, by the tensors that hold them.
pub(super) type Factors = BTreeMap<String, Vec<f32>>;

/// `rope_scaling` of a file, if its positions are scaled.
///
/// # Errors
/// Scaling of another kind; factors that no parameters of llama3 give.
pub(super) fn scaling(
    facts: &Facts<'_>,
    config: &Map<String, Json>,
    factors: &Factors,
) -> Result<Option<Json>, Refusal> {
    let rope = &facts.table.rope;
    let stated = stated(facts)?;
    check_members(facts, stated.as_ref())?;
    if let Some(row) = &rope.long
        && let Some(long) = longrope(facts, row, factors)?
    {
        return Ok(Some(long));
    }
    let factors = rope.factors.as_ref().and_then(|name| factors.get(name));
    let factors = factors.filter(|factors| factors.iter().any(|factor| *factor != 1.0));
    match (stated, factors) {
        (stated, None) => Ok(stated),
        (None, Some(factors)) => llama3(facts, config, factors).map(Some),
        (Some(_), Some(_)) => {
            let (key, tensor) = (&rope.factor, rope.factors.as_deref().unwrap_or_default());
            Err(mismatch(format_args!("none beside tensor `{tensor}`"), "one")
                .at(format_args!("metadatum `{key}`")))
        }
    }
}

/// Refuses what says more of YaRN where positions are not scaled by it.
fn check_members(facts: &Facts<'_>, stated: Option<&Json>) -> Result<(), Refusal> {
    if stated.is_some_and(|scaling| scaling["rope_type"] == "yarn") {
        return Ok(());
    }
    for key in facts.table.rope.members.values() {
        if let Some(found) = facts.get(key)?.filter(|found| found.as_f64() != Some(0.0)) {
            let detail = mismatch("none without yarn", found);
            return Err(detail.at(format_args!("metadatum `{key}`")));
        }
    }
    Ok(())
}

/// Whether metadata say anything of it.
pub(super) fn is_stated(facts: &Facts<'_>) -> bool {
    let rope = &facts.table.rope;
    let has = |key: &str| facts.metadata.contains_key(key);
    has(&rope.scaling_type) || has(&rope.factor) || has(&rope.old_factor())
}

/// What metadata say of it.
fn stated(facts: &Facts<'_>) -> Result<Option<Json>, Refusal> {
    let rope = &facts.table.rope;
    let kind = facts.get(&rope.scaling_type)?;
    let factor = match facts.get(&rope.factor)? {
        None => facts.get(&rope.old_factor())?,
        stated => stated,
    };
    let factor = factor.filter(|factor| !matches!(factor.as_f64(), Some(0.0 | 1.0)));
    match kind.as_ref().map(|kind| kind.as_str().unwrap_or_default()) {
        None | Some("linear") => {
            Ok(factor.map(|factor| json!({"rope_type": "linear", "factor": factor})))
        }
        Some("none") => Ok(None),
        Some("yarn") => factor.map(|factor| yarn(facts, &factor)).transpose(),
        Some("longrope") if rope.long.is_some() => Ok(None),
        Some(found) => {
            let key = &rope.scaling_type;
            Err(mismatch("none, linear or yarn", found).at(format_args!("metadatum `{key}`")))
        }
    }
}

/// Positions scaled by factors of their own before and beyond the original context.
fn longrope(facts: &Facts<'_>, row: &LongRow, factors: &Factors) -> Result<Option<Json>, Refusal> {
    let attention = facts.get(&row.attention)?.unwrap_or_else(|| 1.0.into());
    let (long, short) = match (factors.get(&row.long), factors.get(&row.short)) {
        (Some(long), Some(short)) => (long, short),
        (None, None) if attention.as_f64() == Some(1.0) => return Ok(None),
        _ => {
            let LongRow { long, short, attention } = row;
            return Err(format!("expected `{long}`, `{short}` and `{attention}` together").into());
        }
    };
    let original = &facts.table.rope.original;
    let positions = facts.get(original)?;
    let positions = positions
        .ok_or_else(|| format!("metadatum `{original}`: expected one beside `{}`", row.long))?;
    // The shortest decimals that are these numbers in 32 bits.
    let list = |factors: &[f32]| -> Json {
        let decimal = |factor: &f32| factor.to_string().parse::<f64>().unwrap_or(f64::NAN);
        factors.iter().map(decimal).collect()
    };
    Ok(Some(json!({
        "rope_type": "longrope",
        "short_factor": list(short),
        "long_factor": list(long),
        "attention_factor": attention,
        "original_max_position_embeddings": positions,
    })))
}

/// Positions scaled by YaRN, whose factor of attention is that of its paper in either program.
fn yarn(facts: &Facts<'_>, factor: &Json) -> Result<Json, Refusal> {
    let rope = &facts.table.rope;
    let mut members = rope.yarn.clone();
    members.insert("rope_type".to_owned(), "yarn".into());
    members.insert("factor".to_owned(), factor.clone());
    let original = facts.get(&rope.original)?;
    let original = original.ok_or_else(|| {
        mismatch("one beside yarn", "none").at(format_args!("metadatum `{}`", rope.original))
    })?;
    members.insert("original_max_position_embeddings".to_owned(), original);
    for (at, (name, _)) in YARN_BOUNDS.iter().enumerate() {
        if let Some(bound) = facts.get(&rope.yarn_bound(at))? {
            members.insert((*name).to_owned(), bound);
        }
    }
    if let Some(attention) = facts.get(&rope.yarn_attention())? {
        members.insert("attention_factor".to_owned(), attention);
    }
    for (member, key) in &rope.members {
        if let Some(found) = facts.get(key)? {
            members.insert(member.clone(), found);
        }
    }
    if let Some(key) = &rope.tenth_of_mscale
        && let Some(tenth) = facts.get(key)?.and_then(|tenth| tenth.as_f64())
    {
        // A short decimal in a checkpoint: what is beyond is the rounding to 32 bits.
        let mscale = (tenth * 1e6).round() / 1e5;
        members.insert("mscale".to_owned(), mscale.into());
        members.insert("mscale_all_dim".to_owned(), mscale.into());
    }
    Ok(Json::Object(members))
}

/// The parameters whose factors these are.
fn llama3(facts: &Facts<'_>, config: &Map<String, Json>, factors: &[f32]) -> Result<Json, Refusal> {
    let theta = config
        .get("rope_theta")
        .and_then(Json::as_f64)
        .unwrap_or(f64::NAN);
    let steps = factors.len() as f64;
    let frequency = |i: usize| theta.powf(-(i as f64) / steps) / TAU;
    let points: Vec<_> = factors
        .iter()
        .enumerate()
        .map(|(i, factor)| (frequency(i), f64::from(*factor)))
        .collect();
    let factor = points.iter().map(|point| point.1).fold(0.0, f64::max);
    let mut candidates = std::iter::once(USUAL).chain(fitted(&points, factor));
    let fits = |bounds: &[f64; 2]| {
        let right = |(frequency, found): &(f64, f64)| {
            (expected(*frequency, factor, *bounds) - found).abs() <= TOLERANCE * found
        };
        factor.is_finite() && bounds[0] > 0.0 && bounds[0] < bounds[1] && points.iter().all(right)
    };
    let Some([low, high]) = candidates.find(fits) else {
        let tensor = facts.table.rope.factors.as_deref().unwrap_or_default();
        let detail = mismatch("factors of llama3 scaling", "others");
        return Err(format!(
            "tensor `{tensor}`: {detail}; a config.json beside the file, with its rope_scaling, is \
             used instead"
        )
        .into());
    };
    Ok(json!({
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": ORIGINAL as u32,
    }))
}

/// What divides a frequency, in turns per position, by `LlamaModel.generate_extra_tensors`.
pub(crate) fn expected(frequency: f64, factor: f64, [low, high]: [f64; 2]) -> f64 {
    let turns = ORIGINAL * frequency;
    if turns > high {
        1.0
    } else if turns < low {
        factor
    } else {
        let smooth = (turns - low) / (high - low);
        1.0 / ((1.0 - smooth) / factor + smooth)
    }
}

/// What `low_freq_factor` and `high_freq_factor` may be by factors between 1 and the greatest.
fn fitted(points: &[(f64, f64)], factor: f64) -> Vec<[f64; 2]> {
    let turns = |point: &(f64, f64)| ORIGINAL * point.0;
    let smooth = |point: &(f64, f64)| (1.0 / point.1 - 1.0 / factor) / (1.0 - 1.0 / factor);
    let between: Vec<_> = points
        .iter()
        .filter(|p| 1.0 < p.1 && p.1 < factor)
        .collect();
    let Some(slow) = points.iter().find(|p| p.1 == factor).map(turns) else { return Vec::new() };
    let bounds = match between[..] {
        [] => {
            // Anywhere between the last that is not divided and the first that is.
            let fast = points.iter().rfind(|p| p.1 == 1.0);
            fast.map(|p| [1.0, 2.0].map(|third| slow * (turns(p) / slow).powf(third / 3.0)))
                .into_iter()
                .collect()
        }
        [only] => {
            let step = (turns(only) - slow) / 64.0;
            let low = (1..64).map(|at| slow + step * f64::from(at));
            low.map(|low| [low, low + (turns(only) - low) / smooth(only)])
                .collect()
        }
        [first, .., last] => {
            let slope = (smooth(first) - smooth(last)) / (turns(first) - turns(last));
            let low = turns(first) - smooth(first) / slope;
            vec![[low, low + 1.0 / slope]]
        }
    };
    // Parameters are short decimals: what is beyond is the rounding of factors to 32 bits.
    let rounded = |turns: f64| (turns * 1e3).round() / 1e3;
    bounds
        .into_iter()
        .map(|bounds| bounds.map(rounded))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Factors of a head of `2 * count` values with bounds in turns of [`ORIGINAL`] positions.
    fn points(count: u32, theta: f64, factor: f64, bounds: [f64; 2]) -> Vec<(f64, f64)> {
        let frequency = |i: u32| theta.powf(-f64::from(i) / f64::from(count)) / TAU;
        let stored = |f: f64| f64::from(expected(f, factor, bounds) as f32);
        (0..count)
            .map(|i| (frequency(i), stored(frequency(i))))
            .collect()
    }

    #[test]
    fn parameters_are_found_again() {
        for (count, theta, factor, bounds) in [
            (64, 500_000.0, 8.0, [1.0, 4.0]),
            (32, 500_000.0, 32.0, [1.0, 4.0]),
            (64, 10_000.0, 4.0, [2.5, 9.25]),
            (8, 500_000.0, 8.0, [256.0, 1024.0]),
            (16, 500_000.0, 8.0, [300.0, 700.0]),
        ] {
            let points = points(count, theta, factor, bounds);
            let same = |[low, high]: &[f64; 2]| {
                let near = |p: &(f64, f64)| expected(p.0, factor, [*low, *high]) / p.1 - 1.0;
                points.iter().all(|p| near(p).abs() < TOLERANCE)
            };
            let found: Vec<_> = fitted(&points, factor).into_iter().filter(same).collect();
            assert!(!found.is_empty(), "{count} {bounds:?}");
            if points.iter().filter(|p| 1.0 < p.1 && p.1 < factor).count() > 1 {
                assert_eq!(found, [bounds]);
            }
        }
    }
}
