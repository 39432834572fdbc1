//! Divergence against bits per weight, logarithmic, with a line along the best at each size.

use serde::Serialize;

use super::{Chart, Dot, Tick, nice_ticks, path, short};
use crate::report::curve::Point;

/// The drawing: axes, and what lies between them.
#[derive(Debug, Serialize)]
pub(crate) struct Curve {
    chart: Chart,
    /// What the horizontal axis shows.
    axis: &'static str,
    points: Vec<Placed>,
    /// Lines along the best points, those of `beside` first.
    fronts: Vec<Front>,
    /// Height of the noise floor, if it lies inside, and what to say of it.
    floor: Option<Tick>,
}

#[derive(Debug, Serialize)]
struct Front {
    path: String,
    own: bool,
}

/// A point in the drawing.
#[derive(Debug, Serialize)]
struct Placed {
    x: f64,
    y: f64,
    /// Ends of the error bar.
    high: f64,
    low: f64,
    own: bool,
    title: String,
    label: Option<Label>,
}

#[derive(Clone, Debug, Serialize)]
struct Label {
    x: f64,
    y: f64,
    anchor: &'static str,
    text: String,
}

/// What a curve's horizontal axis shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Axis {
    /// Bits per weight.
    BitsPerWeight,
    /// Size of the weights on disk, in MiB.
    Size,
}

impl Axis {
    const fn name(self) -> &'static str {
        match self {
            Self::BitsPerWeight => "bits per weight",
            Self::Size => "MiB on disk",
        }
    }

    /// Where a point lies on it; 0 where that is not known.
    fn value(self, point: &Point) -> f64 {
        match self {
            Self::BitsPerWeight => point.bits_per_weight,
            Self::Size => point.weight_bytes.unwrap_or(0) as f64 / f64::from(1 << 20),
        }
    }
}

const WIDTH: f64 = 1140.0;
const HEIGHT: f64 = 460.0;
/// Points beside the reports that are larger by more than so many bits per weight are left out: they
/// would press the rest together.
const FARTHER: f64 = 2.0;
/// Of a character of a label, about.
const CHARACTER: f64 = 6.3;
const LINE: f64 = 13.0;

/// `own` are the reports, `beside` what they are measured against. None without two points.
pub(crate) fn curve(
    own: &[Point],
    beside: &[Point],
    floor: Option<f64>,
    axis: Axis,
) -> Option<Curve> {
    let drawable = |p: &&Point| p.kld_mean > 0.0 && axis.value(p) > 0.0;
    let own: Vec<_> = own.iter().filter(drawable).collect();
    let largest = own
        .iter()
        .map(|p| p.bits_per_weight)
        .fold(f64::NEG_INFINITY, f64::max);
    let near = |p: &&Point| own.is_empty() || p.bits_per_weight <= largest + FARTHER;
    let beside: Vec<_> = beside.iter().filter(drawable).filter(near).collect();
    if own.len() + beside.len() < 2 {
        return None;
    }
    let axes = Axes::around(axis, own.iter().chain(&beside).copied());
    let mut points: Vec<_> = own.iter().map(|p| axes.place(p, true)).collect();
    points.extend(beside.iter().map(|p| axes.place(p, false)));
    let names = own.iter().chain(&beside).map(|p| p.name.as_str());
    label(&mut points, &names.collect::<Vec<_>>(), &axes.chart);
    let fronts = [(&beside, false), (&own, true)]
        .into_iter()
        .map(|(points, own)| Front { path: axes.front(points), own })
        .filter(|front| !front.path.is_empty())
        .collect();
    let floor = floor
        .filter(|v| (axes.least..axes.most).contains(&v.log10()))
        .map(|v| Tick { at: axes.y(v), label: format!("noise floor {}", short(v)) });
    Some(Curve { chart: axes.chart, axis: axis.name(), points, fronts, floor })
}

struct Axes {
    chart: Chart,
    axis: Axis,
    /// Values of the horizontal axis at both sides.
    from: f64,
    to: f64,
    /// Decimal logarithms of the divergence at the bottom and the top.
    least: f64,
    most: f64,
}

impl Axes {
    fn around<'a>(axis: Axis, points: impl Iterator<Item = &'a Point> + Clone) -> Self {
        let bits = points.clone().map(|p| axis.value(p));
        let klds = points.map(|p| p.kld_mean.log10());
        let low = |v: &mut dyn Iterator<Item = f64>| v.fold(f64::INFINITY, f64::min);
        let high = |v: &mut dyn Iterator<Item = f64>| v.fold(f64::NEG_INFINITY, f64::max);
        let (from, to) = (low(&mut bits.clone()), high(&mut bits.clone()));
        let margin = ((to - from) * 0.06).max(0.2);
        let (least, most) = (low(&mut klds.clone()) - 0.12, high(&mut klds.clone()) + 0.12);
        let (left, top, right, bottom) = (64.0, 14.0, WIDTH - 20.0, HEIGHT - 44.0);
        let chart =
            Chart { width: WIDTH, height: HEIGHT, left, right, top, bottom, ..Chart::default() };
        let mut axes = Self { chart, axis, from: from - margin, to: to + margin, least, most };
        axes.ticks();
        axes
    }

    fn ticks(&mut self) {
        let step = nice_ticks(self.to - self.from)
            .get(1)
            .copied()
            .unwrap_or(1.0)
            / 2.0;
        let first = (self.from / step).ceil() as i64;
        let last = (self.to / step).floor() as i64;
        let bits = (first..=last).map(|i| i as f64 * step);
        let x_ticks = bits
            .map(|v| Tick { at: self.x(v), label: short(v) })
            .collect();
        let decades = self.least.floor() as i32..=self.most.ceil() as i32;
        let values = decades.flat_map(|p| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(p)));
        let inside = values.filter(|v| (self.least..=self.most).contains(&v.log10()));
        let y_ticks = inside
            .map(|v| Tick { at: self.y(v), label: decimal(v) })
            .collect();
        (self.chart.x_ticks, self.chart.y_ticks) = (x_ticks, y_ticks);
    }

    fn x(&self, bits: f64) -> f64 {
        let share = (bits - self.from) / (self.to - self.from);
        self.chart.left + (self.chart.right - self.chart.left) * share
    }

    fn y(&self, kld: f64) -> f64 {
        let share = (kld.max(1e-300).log10() - self.least) / (self.most - self.least);
        self.chart.bottom - (self.chart.bottom - self.chart.top) * share.clamp(0.0, 1.0)
    }

    fn place(&self, point: &Point, own: bool) -> Placed {
        let Point { name, bits_per_weight: bits, kld_mean: kld, kld_mean_se: se, .. } = point;
        let error = se.unwrap_or(0.0);
        let said = se.map_or(String::new(), |se| format!(" ± {}", short(se)));
        let title = format!("{name}: {}{said} nats at {bits:.3} bits per weight", short(*kld));
        let (high, low) = (self.y(kld + error), self.y(kld - error));
        Placed {
            x: self.x(self.axis.value(point)),
            y: self.y(*kld),
            high,
            low,
            own,
            title,
            label: None,
        }
    }

    /// A path through the points that no smaller one is as good as.
    fn front(&self, points: &[&Point]) -> String {
        let mut sorted = points.to_vec();
        sorted.sort_by(|a, b| {
            let size = self.axis.value(a).total_cmp(&self.axis.value(b));
            size.then(a.kld_mean.total_cmp(&b.kld_mean))
        });
        let mut best = f64::INFINITY;
        let better = |p: &&&Point| {
            let better = p.kld_mean < best;
            best = best.min(p.kld_mean);
            better
        };
        let front: Vec<_> = sorted.iter().filter(better).collect();
        let dot = |p: &&&Point| Dot {
            x: self.x(self.axis.value(p)),
            y: self.y(p.kld_mean),
            title: String::new(),
        };
        if front.len() < 2 {
            String::new()
        } else {
            path(&front.iter().map(dot).collect::<Vec<_>>())
        }
    }
}

/// A tick's value: one digit and its place.
fn decimal(value: f64) -> String {
    if value < 1e-3 { format!("{value:.0e}") } else { short(value) }
}

/// Puts each name where it covers neither a point nor another name; one without a place is left
/// to the point's title.
fn label(points: &mut [Placed], names: &[&str], chart: &Chart) {
    let mut taken: Vec<[f64; 4]> = points
        .iter()
        .map(|p| [p.x - 5.0, p.y - 5.0, p.x + 5.0, p.y + 5.0])
        .collect();
    for (point, name) in points.iter_mut().zip(names) {
        let length = name.chars().count() as f64 * CHARACTER;
        let free = |label: &Label| {
            let rect = extent(label, length);
            let inside = rect[0] >= chart.left && rect[2] <= chart.right;
            inside
                && rect[1] >= 0.0
                && rect[3] <= chart.bottom
                && !taken.iter().any(|other| overlap(&rect, other))
        };
        let found = places(point, name).into_iter().find(free);
        taken.extend(found.as_ref().map(|label| extent(label, length)));
        point.label = found;
    }
}

fn places(point: &Placed, name: &str) -> Vec<Label> {
    let offsets = [
        (9.0, -6.0, "start"),
        (9.0, 4.0, "start"),
        (-9.0, 14.0, "end"),
        (-9.0, 4.0, "end"),
        (9.0, 14.0, "start"),
        (-9.0, -6.0, "end"),
        (0.0, -11.0, "middle"),
        (0.0, 20.0, "middle"),
    ];
    let place = |(dx, dy, anchor)| Label {
        x: point.x + dx,
        y: point.y + dy,
        anchor,
        text: name.to_owned(),
    };
    offsets.map(place).to_vec()
}

/// Left, top, right and bottom of a label.
fn extent(label: &Label, length: f64) -> [f64; 4] {
    let left = match label.anchor {
        "start" => label.x,
        "end" => label.x - length,
        _ => label.x - length / 2.0,
    };
    [left, label.y - LINE + 3.0, left + length, label.y + 3.0]
}

fn overlap(a: &[f64; 4], b: &[f64; 4]) -> bool {
    a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn point(bits_per_weight: f64, kld_mean: f64) -> Point {
        let name = "q".to_owned();
        let weight_bytes = Some((bits_per_weight * 1e6) as u64);
        Point { name, bits_per_weight, kld_mean, kld_mean_se: Some(0.001), weight_bytes }
    }

    #[test]
    fn one_point_is_no_curve() {
        assert!(curve(&[point(4.0, 0.01)], &[], None, Axis::BitsPerWeight).is_none());
        assert!(
            curve(&[point(4.0, 0.01), point(3.0, 0.0)], &[], None, Axis::BitsPerWeight).is_none()
        );
        assert!(
            curve(&[point(4.0, 0.01)], &[point(3.0, 0.1)], None, Axis::BitsPerWeight).is_some()
        );
    }

    #[test]
    fn the_line_leaves_out_what_a_smaller_one_beats() {
        let points = [point(2.0, 0.2), point(3.0, 0.3), point(4.0, 0.01)];
        let drawn = curve(&points, &[], Some(0.05), Axis::BitsPerWeight).unwrap();
        assert_eq!(drawn.fronts.len(), 1);
        assert_eq!(drawn.fronts[0].path.matches('L').count(), 1);
        let [a, b, c] = &drawn.points[..] else { panic!() };
        assert!(a.x < b.x && b.x < c.x && b.y < a.y && a.y < c.y, "up is more divergence");
        assert!(c.high < c.y && c.y < c.low && drawn.floor.is_some());
    }

    #[test]
    fn much_larger_models_beside_are_left_out() {
        let beside = [point(3.0, 0.2), point(6.1, 0.001)];
        let drawn = curve(&[point(4.0, 0.01)], &beside, None, Axis::BitsPerWeight).unwrap();
        assert_eq!(drawn.points.len(), 2);
        assert_eq!(decimal(5e-4), "5e-4");
    }

    #[test]
    fn names_do_not_cover_each_other() {
        let points: Vec<_> = (0..30)
            .map(|i| point(3.0 + f64::from(i) * 1e-3, 0.1))
            .collect();
        let drawn = curve(&points, &[], None, Axis::BitsPerWeight).unwrap();
        let labels: Vec<_> = drawn
            .points
            .iter()
            .filter_map(|p| p.label.as_ref())
            .collect();
        assert!(!labels.is_empty() && labels.len() < 30);
        let extents: Vec<_> = labels.iter().map(|l| extent(l, CHARACTER)).collect();
        for (i, a) in extents.iter().enumerate() {
            assert!(extents[..i].iter().all(|b| !overlap(a, b)));
        }
    }
}
