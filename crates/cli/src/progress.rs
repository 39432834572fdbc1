//! Progress: a bar with rate and time left on a terminal, a line every few seconds elsewhere,
//! JSON lines with `--json`. Always on standard error.

use std::io::IsTerminal;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::bytes;
use crate::output::Output;
use crate::say;

/// Time between two lines where there is no terminal.
const EVERY: Duration = Duration::from_secs(3);

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Count {
    /// Bytes.
    Bytes,
    /// Anything else, by name: `tensors`, `layers`.
    Of(&'static str),
}

impl Count {
    fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Of(name) => name,
        }
    }

    fn amount(self, done: u64, total: u64) -> String {
        match self {
            Self::Bytes => format!("{} of {}", bytes::disk(done), bytes::disk(total)),
            Self::Of(name) => format!("{done} of {total} {name}"),
        }
    }

    fn rate(self, per_second: f64) -> String {
        match self {
            Self::Bytes => format!("{}/s", bytes::disk(per_second as u64)),
            Self::Of(name) => format!("{per_second:.1} {name}/s"),
        }
    }
}

#[derive(Debug)]
enum Face {
    Bar(ProgressBar),
    Lines { json: bool },
    Silent,
}

/// One stage of a long command. Finishes when dropped.
#[derive(Debug)]
pub struct Stage {
    face: Face,
    what: String,
    count: Count,
    started: Instant,
    /// When the last line was written, and how much was done when the stage began (a resumed
    /// conversion does not begin at zero, and its rate must not count what was there).
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    last: Instant,
    first: Option<u64>,
}

impl Stage {
    /// A stage called `what` ("converting").
    pub fn new(output: Output, what: &str, count: Count) -> Self {
        let face = if output.quiet {
            Face::Silent
        } else if output.json {
            Face::Lines { json: true }
        } else if std::io::stderr().is_terminal() {
            Face::Bar(bar(what, count))
        } else {
            Face::Lines { json: false }
        };
        let now = Instant::now();
        let state = Mutex::new(State { last: now, first: None });
        Self { face, what: what.to_owned(), count, started: now, state }
    }

    /// `done` of `total`, from any thread.
    pub fn set(&self, done: u64, total: u64) {
        match &self.face {
            Face::Silent => {}
            Face::Bar(bar) => {
                if bar.length() != Some(total) {
                    // What was done before does not count towards the rate.
                    bar.set_length(total);
                    bar.set_position(done);
                    bar.reset_eta();
                    bar.set_draw_target(ProgressDrawTarget::stderr());
                }
                bar.set_position(done);
            }
            Face::Lines { json } => self.line(*json, done, total),
        }
    }

    fn line(&self, json: bool, done: u64, total: u64) {
        let Ok(mut state) = self.state.lock() else { return };
        let first = *state.first.get_or_insert(done);
        if state.last.elapsed() < EVERY {
            return;
        }
        state.last = Instant::now();
        let rate = done.saturating_sub(first) as f64 / self.started.elapsed().as_secs_f64();
        let left = (rate > 0.0).then(|| total.saturating_sub(done) as f64 / rate);
        if json {
            say::json(&serde_json::json!({
                "progress": self.what, "done": done, "total": total, "unit": self.count.name(),
                "per_second": rate, "seconds_left": left,
            }));
        } else {
            let left = left.map_or_else(String::new, |s| format!(", {} left", duration(s)));
            let (amount, rate) = (self.count.amount(done, total), self.count.rate(rate));
            say::line(&format!("{}: {amount}, {rate}{left}", self.what));
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        if let Face::Bar(bar) = &self.face {
            bar.finish_and_clear();
        }
    }
}

fn bar(what: &str, count: Count) -> ProgressBar {
    let template = match count {
        Count::Bytes => {
            "{msg} {wide_bar} {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} eta {eta}"
        }
        Count::Of(_) => "{msg} {wide_bar} {pos}/{len} {per_sec} eta {eta}",
    };
    // Drawn once there is something to show.
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::hidden());
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar
}

/// Seconds as `0.4s`, `42s`, `3m 05s`, `2h 10m`.
pub fn duration(seconds: f64) -> String {
    if seconds < 9.95 {
        return format!("{seconds:.1}s");
    }
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m {:02}s", s / 60, s % 60),
        _ => format!("{}h {:02}m", s / 3600, s % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_shown_in_two_figures() {
        let shown = [0.42, 9.94, 9.96, 59.4, 185.0, 7800.0].map(duration);
        assert_eq!(shown, ["0.4s", "9.9s", "10s", "59s", "3m 05s", "2h 10m"]);
    }
}
