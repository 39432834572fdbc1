//! Geometry of the report's plots: plain numbers that the page's template draws.

mod curve;

use serde::Serialize;

use crate::check::divergence::{Bin, Divergence, LayerDrift};
pub(crate) use curve::{Axis, Curve, curve};

/// A drawing of `width × height` whose data lie in `left..right` and `top..bottom`.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Chart {
    width: f64,
    height: f64,
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
    x_ticks: Vec<Tick>,
    y_ticks: Vec<Tick>,
    bars: Vec<Bar>,
    /// An SVG path through the dots.
    line: String,
    dots: Vec<Dot>,
    marks: Vec<Mark>,
}

/// A place on an axis.
#[derive(Debug, Serialize)]
struct Tick {
    at: f64,
    label: String,
}

/// A rectangle and what to say of it.
#[derive(Debug, Serialize)]
struct Bar {
    x: f64,
    y: f64,
    width: f64,
    height: f64,
    title: String,
}

/// A point and what to say of it.
#[derive(Debug, Serialize)]
struct Dot {
    x: f64,
    y: f64,
    title: String,
}

/// A labelled vertical line.
#[derive(Debug, Serialize)]
struct Mark {
    x: f64,
    /// Where its label goes, so that neighbours do not touch.
    y: f64,
    label: String,
    /// The label lies left of the line.
    before: bool,
}

const WIDTH: f64 = 560.0;
const HEIGHT: f64 = 280.0;

fn area(left: f64, top: f64) -> Chart {
    let (right, bottom) = (WIDTH - 14.0, HEIGHT - 40.0);
    Chart { width: WIDTH, height: HEIGHT, left, right, top, bottom, ..Chart::default() }
}

/// A few round values from 0 to at least `most`.
fn nice_ticks(most: f64) -> Vec<f64> {
    if most.is_nan() || most <= 0.0 || most.is_infinite() {
        return vec![0.0, 1.0];
    }
    let rough = most / 4.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 2.5, 5.0, 10.0]
        .map(|f| f * power)
        .into_iter()
        .find(|s| *s >= rough);
    let step = step.unwrap_or(10.0 * power);
    let count = (most / step).ceil() as u32;
    (0..=count).map(|i| f64::from(i) * step).collect()
}

/// A number in few characters.
pub(crate) fn short(value: f64) -> String {
    let size = value.abs();
    if value == 0.0 {
        return "0".to_owned();
    }
    if !(1e-3..1e6).contains(&size) {
        return format!("{value:.2e}");
    }
    let digits = (3 - size.log10().floor() as i32).clamp(0, 6) as usize;
    let text = format!("{value:.digits$}");
    if !text.contains('.') {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Drift of the residual stream by layer: a line for the whole, bars for what each layer added.
pub(crate) fn drift(layers: &[LayerDrift]) -> Chart {
    let mut chart = area(56.0, 14.0);
    let most = layers.iter().map(|l| l.rmse).fold(0.0, f64::max);
    let ticks = nice_ticks(most);
    let top = ticks.last().copied().unwrap_or(1.0);
    let y = |v: f64| chart.bottom - (chart.bottom - chart.top) * v / top;
    let step = (chart.right - chart.left) / layers.len().max(1) as f64;
    let x = |i: usize| chart.left + (i as f64 + 0.5) * step;
    let every = layers.len().div_ceil(12).max(1);
    let name = |l: &LayerDrift| l.layer.map_or("emb".to_owned(), |layer| layer.to_string());
    let title = |l: &LayerDrift| {
        let place = l
            .layer
            .map_or("embedding".to_owned(), |layer| format!("layer {layer}"));
        let (rmse, increase, cosine) = (short(l.rmse), short(l.increase), l.cosine);
        format!("after {place}: relative RMSE {rmse}, increase {increase}, cosine {cosine:.6}")
    };
    let places = || layers.iter().enumerate();
    let dots: Vec<_> = places()
        .map(|(i, l)| Dot { x: x(i), y: y(l.rmse), title: title(l) })
        .collect();
    let bars = places().map(|(i, l)| {
        let (high, low) = (y(l.increase.max(0.0)), y(l.increase.min(0.0)).min(chart.bottom));
        let (width, height) = ((step * 0.6).min(24.0), (low - high).max(0.0));
        Bar { x: x(i) - width / 2.0, y: high, width, height, title: title(l) }
    });
    let bars = bars.collect();
    let x_ticks = places()
        .step_by(every)
        .map(|(i, l)| Tick { at: x(i), label: name(l) })
        .collect();
    let y_ticks = ticks
        .iter()
        .map(|&v| Tick { at: y(v), label: short(v) })
        .collect();
    chart.line = path(&dots);
    (chart.bars, chart.dots, chart.x_ticks, chart.y_ticks) = (bars, dots, x_ticks, y_ticks);
    chart
}

fn path(dots: &[Dot]) -> String {
    let step = |(i, dot): (usize, &Dot)| {
        format!("{}{:.1} {:.1}", if i == 0 { "M" } else { "L" }, dot.x, dot.y)
    };
    dots.iter()
        .enumerate()
        .map(step)
        .collect::<Vec<_>>()
        .join(" ")
}

/// How many tokens diverge by how much, on a logarithmic axis.
pub(crate) fn histogram(d: &Divergence) -> Chart {
    let mut chart = area(46.0, 56.0);
    let bins = occupied(&d.kld_histogram);
    let (Some(first), Some(last)) = (bins.first(), bins.last()) else { return chart };
    let (low, high) = (first.from.log10(), last.to.log10());
    let x = |v: f64| {
        let share = (v.max(1e-300).log10() - low) / (high - low);
        chart.left + (chart.right - chart.left) * share.clamp(0.0, 1.0)
    };
    let share = |bin: &Bin| 100.0 * bin.tokens as f64 / d.tokens.max(1) as f64;
    let ticks = nice_ticks(bins.iter().map(share).fold(0.0, f64::max));
    let top = ticks.last().copied().unwrap_or(1.0);
    let y = |v: f64| chart.bottom - (chart.bottom - chart.top) * v / top;
    let bars = bins.iter().map(|bin| {
        let (from, to) = (x(bin.from) + 1.0, x(bin.to) - 1.0);
        let (width, height) = ((to - from).max(1.0), chart.bottom - y(share(bin)));
        let (low, high) = (short(bin.from), short(bin.to));
        let title = format!("{low} to {high} nats: {} tokens, {:.2} %", bin.tokens, share(bin));
        Bar { x: from, y: y(share(bin)), width, height, title }
    });
    let bars = bars.collect();
    let decades = low.ceil() as i32..=high.floor() as i32;
    let x_ticks = decades
        .map(|p| Tick { at: x(10f64.powi(p)), label: format!("1e{p}") })
        .collect();
    let y_ticks = ticks
        .iter()
        .map(|&v| Tick { at: y(v), label: format!("{} %", short(v)) })
        .collect();
    let marks = [("median", d.kld_median), ("mean", d.kld_mean), ("99 %", d.kld_p99)];
    let marks = marks.iter().zip([14.0, 28.0, 42.0]).map(|((name, v), y)| {
        let x = x(*v);
        Mark { x, y, label: format!("{name} {}", short(*v)), before: x > WIDTH * 0.7 }
    });
    let marks = marks.collect();
    (chart.bars, chart.marks, chart.x_ticks, chart.y_ticks) = (bars, marks, x_ticks, y_ticks);
    chart
}

/// The bins from the first to the last that hold a token.
fn occupied(bins: &[Bin]) -> &[Bin] {
    let first = bins.iter().position(|b| b.tokens > 0).unwrap_or(0);
    let end = bins
        .iter()
        .rposition(|b| b.tokens > 0)
        .map_or(0, |last| last + 1);
    &bins[first.min(end)..end]
}

/// A figure as a share of a logarithmic axis.
#[derive(Debug, Serialize)]
pub(crate) struct LogBar {
    name: &'static str,
    value: f64,
    /// In percent of the axis.
    width: f64,
}

/// Percentiles of the divergence on one logarithmic axis, the median at its tenth part or above.
pub(crate) fn percentiles(d: &Divergence) -> Vec<LogBar> {
    let list = [
        ("median", d.kld_median),
        ("mean", d.kld_mean),
        ("90 %", d.kld_p90),
        ("95 %", d.kld_p95),
        ("99 %", d.kld_p99),
        ("99.9 %", d.kld_p999),
        ("maximum", d.kld_max),
    ];
    let low = (d.kld_median / 10.0).max(1e-12).log10();
    let span = (d.kld_max.max(1e-12).log10() - low).max(1.0);
    let width = |value: f64| (100.0 * (value.max(1e-300).log10() - low) / span).clamp(0.0, 100.0);
    list.into_iter()
        .map(|(name, value)| LogBar { name, value, width: width(value) })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_reach_the_top() {
        assert_eq!(nice_ticks(0.037), [0.0, 0.01, 0.02, 0.03, 0.04]);
        assert_eq!(nice_ticks(4.0), [0.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(nice_ticks(0.0), [0.0, 1.0]);
        assert_eq!(nice_ticks(f64::NAN), [0.0, 1.0]);
    }

    #[test]
    fn numbers_are_short() {
        let found = [0.0, 1.5, 0.012_345, 1.2e-7, 123_456.0, -0.5].map(short);
        assert_eq!(found, ["0", "1.5", "0.01235", "1.20e-7", "123456", "-0.5"]);
    }

    #[test]
    fn a_chart_of_nothing_is_empty() {
        assert!(histogram(&Divergence::default()).bars.is_empty());
        assert!(drift(&[]).line.is_empty());
    }

    #[test]
    fn the_line_stays_inside() {
        let layer =
            |i, rmse| LayerDrift { layer: Some(i), rmse, increase: rmse / 2.0, cosine: 1.0 };
        let chart = drift(&[layer(0, 0.1), layer(1, 0.35)]);
        let inside = |v: f64| (chart.top..=chart.bottom).contains(&v);
        assert!(chart.dots.iter().all(|d| inside(d.y)) && chart.bars.iter().all(|b| inside(b.y)));
        assert_eq!(chart.line.matches('L').count(), 1);
    }
}
