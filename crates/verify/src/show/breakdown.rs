//! The page's tables by role and by layer: bytes, bits, errors, and what each layer is made of.

use std::collections::BTreeMap;

use serde::Serialize;
use shardwright_format::Role;
use shardwright_format::report::LayerCoverage;

use crate::check::divergence::LayerDrift;
use crate::check::fidelity::RoleFidelity;
use crate::report::Report;
use crate::report::allocation::Allocation;

/// Parts of a bar thinner than this, in percent, are left out: norms and biases.
const THIN: f64 = 0.15;

/// What the page shows of a report's allocation.
#[derive(Debug, Serialize)]
pub(crate) struct Breakdown<'a> {
    roles: Vec<RoleRow<'a>>,
    layers: Vec<LayerRow>,
    encodings: Vec<Legend>,
    coverage: Vec<CoverageRow>,
}

/// All tensors of a role that are stored alike.
#[derive(Debug, Serialize)]
struct RoleRow<'a> {
    role: Role,
    encoding: &'a str,
    class: String,
    tensors: u64,
    weights: u64,
    /// Of all weights.
    share: f64,
    bytes: u64,
    bits: f64,
    errors: Option<&'a RoleFidelity>,
    /// Pooled error and that of the farthest tensor, in percent of the axis.
    width: f64,
    worst: f64,
}

/// What belongs together: a layer, the embedding, the head.
#[derive(Debug, Default, Serialize)]
struct LayerRow {
    name: String,
    weights: u64,
    share: f64,
    bytes: u64,
    bits: f64,
    /// Root of the mean squared relative errors of its tensors, by weights.
    rmse: Option<f64>,
    drift: Option<f64>,
    increase: Option<f64>,
    /// As the conversion says.
    output_error: Option<f64>,
    parts: Vec<BarSegment>,
}

/// A part of a layer's bar.
#[derive(Debug, Serialize)]
struct BarSegment {
    class: String,
    /// In percent of the axis.
    width: f64,
    title: String,
}

/// A colour and what it stands for.
#[derive(Debug, Serialize)]
struct Legend {
    class: String,
    encoding: String,
    /// Of all bytes.
    share: f64,
}

/// How evenly the calibration reached a layer's experts.
#[derive(Debug, Serialize)]
struct CoverageRow {
    layer: u32,
    experts: usize,
    least: u64,
    median: u64,
    most: u64,
    starved: Vec<u32>,
    /// An area of 100 × 20 under the counts, largest first.
    area: String,
}

/// The colour of an encoding, by its label: `q4 g64 bf16`, `t2 s16`, `bf16`.
fn class(encoding: &str) -> String {
    match encoding.split(' ').next() {
        Some(code) if code.starts_with(['q', 't']) && code.len() == 2 => code.to_owned(),
        Some("f32") => "wide".to_owned(),
        _ => "plain".to_owned(),
    }
}

/// Where an entry's row stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    Embedding,
    Layer(u32),
    Head,
}

impl Place {
    const fn new(layer: Option<u32>, role: Role) -> Self {
        match (layer, role) {
            (Some(layer), _) => Self::Layer(layer),
            (None, Role::EmbedTokens) => Self::Embedding,
            (None, _) => Self::Head,
        }
    }
}

impl<'a> Breakdown<'a> {
    pub(crate) fn new(report: &'a Report) -> Self {
        let weights = report.allocation.iter().map(|a| a.weights).sum::<u64>();
        Self {
            roles: roles(report, weights),
            layers: layers(report, weights),
            encodings: legend(&report.allocation),
            coverage: coverage(report),
        }
    }
}

fn share(part: u64, whole: u64) -> f64 {
    part as f64 / whole.max(1) as f64
}

fn bits(bytes: u64, weights: u64) -> f64 {
    8.0 * share(bytes, weights)
}

fn legend(allocation: &[Allocation]) -> Vec<Legend> {
    let mut encodings = BTreeMap::<&str, (u64, u64)>::new();
    for a in allocation {
        let (bytes, weights) = encodings.entry(&a.encoding).or_default();
        (*bytes, *weights) = (*bytes + a.bytes, *weights + a.weights);
    }
    let total = allocation.iter().map(|a| a.bytes).sum();
    let mut sorted: Vec<_> = encodings.into_iter().collect();
    sorted.sort_by(|(_, a), (_, b)| bits(a.0, a.1).total_cmp(&bits(b.0, b.1)));
    let legend = sorted.into_iter().map(|(encoding, (bytes, _))| Legend {
        class: class(encoding),
        encoding: encoding.to_owned(),
        share: share(bytes, total),
    });
    legend.collect()
}

fn roles(report: &Report, weights: u64) -> Vec<RoleRow<'_>> {
    let mut sums = BTreeMap::<(Role, &str), (u64, u64, u64)>::new();
    for a in &report.allocation {
        let sum = sums.entry((a.role, &a.encoding)).or_default();
        *sum = (sum.0 + a.tensors, sum.1 + a.weights, sum.2 + a.bytes);
    }
    let found = report.fidelity.as_ref().map_or(&[][..], |f| &f.roles);
    let most = found
        .iter()
        .map(|r| r.worst_rmse)
        .fold(f64::MIN_POSITIVE, f64::max);
    let row = |((role, encoding), (tensors, count, bytes)): ((Role, &'_ str), _)| {
        let errors = found
            .iter()
            .find(|r| r.role == role && r.encoding == encoding);
        let bar = |value: fn(&RoleFidelity) -> f64| errors.map_or(0.0, |r| 100.0 * value(r) / most);
        RoleRow {
            role,
            encoding: report
                .allocation
                .iter()
                .find(|a| a.encoding == encoding)
                .map_or("", |a| &a.encoding),
            class: class(encoding),
            tensors,
            weights: count,
            share: share(count, weights),
            bytes,
            bits: bits(bytes, count),
            errors,
            width: bar(|r| r.rmse),
            worst: bar(|r| r.worst_rmse),
        }
    };
    sums.into_iter().map(row).collect()
}

fn layers(report: &Report, weights: u64) -> Vec<LayerRow> {
    let mut groups = BTreeMap::<Place, Vec<&Allocation>>::new();
    for a in &report.allocation {
        groups
            .entry(Place::new(a.layer, a.role))
            .or_default()
            .push(a);
    }
    let bytes = |group: &Vec<&Allocation>| group.iter().map(|a| a.bytes).sum::<u64>();
    let most = groups.values().map(bytes).max().unwrap_or(0);
    let errors = errors(report);
    let row = |(place, group): (Place, Vec<&Allocation>)| {
        let (bytes, count) = (bytes(&group), group.iter().map(|a| a.weights).sum());
        let parts = group.iter().map(|a| segment(a, most));
        let drift = drift(report, place);
        LayerRow {
            name: match place {
                Place::Embedding => "embedding".to_owned(),
                Place::Layer(layer) => layer.to_string(),
                Place::Head => "head".to_owned(),
            },
            weights: count,
            share: share(count, weights),
            bytes,
            bits: bits(bytes, count),
            rmse: errors.get(&place).copied(),
            drift: drift.map(|d| d.rmse),
            increase: drift.map(|d| d.increase),
            output_error: output_error(report, place),
            parts: parts.filter(|p| p.width >= THIN).collect(),
        }
    };
    groups.into_iter().map(row).collect()
}

fn segment(a: &Allocation, most: u64) -> BarSegment {
    let (size, bits) = (crate::show::text::bytes(a.bytes), a.bits_per_weight());
    BarSegment {
        class: class(&a.encoding),
        width: 100.0 * share(a.bytes, most),
        title: format!("{}: {}, {size}, {bits:.2} bits per weight", a.role, a.encoding),
    }
}

/// By weights over the tensors of a row; rows in which nothing was lost have 0.
fn errors(report: &Report) -> BTreeMap<Place, f64> {
    let mut sums = BTreeMap::<_, (f64, f64)>::new();
    for t in report.fidelity.iter().flat_map(|f| &f.worst) {
        let weights = t.weights as f64;
        let (squares, all) = sums.entry(Place::new(t.layer, t.role)).or_default();
        (*squares, *all) = (*squares + weights * t.rmse * t.rmse, *all + weights);
    }
    let root = |(squares, all): (f64, f64)| (squares / all.max(1.0)).sqrt();
    sums.into_iter().map(|(at, sum)| (at, root(sum))).collect()
}

fn drift(report: &Report, place: Place) -> Option<&LayerDrift> {
    let layer = match place {
        Place::Embedding => None,
        Place::Layer(layer) => Some(layer),
        Place::Head => return None,
    };
    let layers = &report.divergence.as_ref()?.layers;
    layers.iter().find(|l| l.layer == layer)
}

fn output_error(report: &Report, place: Place) -> Option<f64> {
    let conversion = report.calibration.as_ref()?.conversion.as_ref()?;
    let mut layers = conversion.layers.iter();
    let found = layers.find(|l| place == Place::Layer(l.layer))?;
    Some(found.relative_output_error)
}

fn coverage(report: &Report) -> Vec<CoverageRow> {
    let conversion = report
        .calibration
        .as_ref()
        .and_then(|c| c.conversion.as_ref());
    let layers = conversion.map_or(&[][..], |c| &c.coverage);
    layers.iter().map(coverage_row).collect()
}

fn coverage_row(layer: &LayerCoverage) -> CoverageRow {
    let mut sorted = layer.tokens.clone();
    sorted.sort_unstable_by(|a, b| b.cmp(a));
    let most = sorted.first().copied().unwrap_or(0);
    let step = 100.0 / sorted.len().max(1) as f64;
    let stair = |(at, tokens): (usize, &u64)| {
        let (x, y) = (at as f64 * step, 20.0 - 20.0 * share(*tokens, most));
        format!("L{x:.2} {y:.2}L{:.2} {y:.2}", x + step)
    };
    let stairs: Vec<_> = sorted.iter().enumerate().map(stair).collect();
    CoverageRow {
        layer: layer.layer,
        experts: sorted.len(),
        least: sorted.last().copied().unwrap_or(0),
        median: sorted.get(sorted.len() / 2).copied().unwrap_or(0),
        most,
        starved: layer.starved.clone(),
        area: format!("M0 20{}L100 20Z", stairs.concat()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encodings_have_colours() {
        let found = ["q4 g64 bf16", "t2 s16", "bf16", "f32", "f16"].map(class);
        assert_eq!(found, ["q4", "t2", "plain", "wide", "plain"]);
    }

    #[test]
    fn experts_are_sorted_by_what_reached_them() {
        let layer = LayerCoverage { layer: 3, tokens: vec![10, 0, 40, 5], starved: vec![1] };
        let row = coverage_row(&layer);
        assert_eq!((row.experts, row.least, row.median, row.most), (4, 0, 5, 40));
        assert!(
            row.area
                .starts_with("M0 20L0.00 0.00L25.00 0.00L25.00 15.00"),
            "{}",
            row.area
        );
        assert_eq!(coverage_row(&LayerCoverage::default()).area, "M0 20L100 20Z");
    }
}
