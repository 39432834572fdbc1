//! `bench`: how fast a model reads prompts and generates.

use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use serde::Serialize;
use shardwright_format::weights::Weights;
use shardwright_quant::Backend;
use shardwright_runtime::Runtime;

use crate::args::BenchArgs;
use crate::bytes;
use crate::engine;
use crate::failure::{Failure, INTERRUPTED, Outcome};
use crate::inputs;
use crate::output::{Output, Table};
use crate::progress::{Count, Stage};
use crate::signal;

/// What `bench` prints with `--json`.
#[derive(Serialize)]
struct Report {
    model: String,
    /// Bytes of the weights as they are stored.
    size_bytes: u64,
    parameters: u64,
    backend: &'static str,
    threads: usize,
    planned_bytes: u64,
    /// Tokens of a prompt that are computed together.
    chunk: usize,
    tests: Vec<Measured>,
}

/// One line of the table.
#[derive(Serialize)]
struct Measured {
    test: String,
    /// Tokens computed in each sample.
    tokens: usize,
    /// Positions that were there before.
    depth: usize,
    /// Mean of the samples.
    tokens_per_second: f64,
    /// Standard deviation of the samples; 0 for one.
    deviation: f64,
    samples: Vec<f64>,
}

/// What to time.
#[derive(Clone, Copy)]
enum Test {
    /// A prompt of so many tokens.
    Prompt(usize),
    /// So many tokens one after the other.
    Generate(usize),
}

impl Test {
    const fn tokens(self) -> usize {
        match self {
            Self::Prompt(tokens) | Self::Generate(tokens) => tokens,
        }
    }

    fn name(self, depth: usize) -> String {
        let name = match self {
            Self::Prompt(tokens) => format!("pp{tokens}"),
            Self::Generate(tokens) => format!("tg{tokens}"),
        };
        if depth == 0 { name } else { format!("{name} @ d{depth}") }
    }

    /// Seconds that it takes behind `depth` positions.
    fn time(self, runtime: &mut Runtime, depth: usize) -> Result<f64, Failure> {
        let tokens = tokens(runtime.spec().vocab_size, depth + self.tokens());
        let (before, timed) = tokens.split_at(depth);
        runtime.reset();
        if depth > 0 {
            runtime.advance(before)?;
        }
        let start = Instant::now();
        match self {
            Self::Prompt(_) => runtime.forward_all(timed).map(drop)?,
            Self::Generate(_) => {
                for token in timed {
                    runtime.forward(*token)?;
                }
            }
        }
        Ok(start.elapsed().as_secs_f64())
    }
}

/// Tokens that are the same on every machine and spread over the vocabulary.
fn tokens(vocab_size: u32, count: usize) -> Vec<u32> {
    let token = |i: u64| (i * 7919 % u64::from(vocab_size)) as u32;
    (1..=count as u64).map(token).collect()
}

/// Runs the command.
///
/// # Errors
/// Nothing to measure; a model that cannot be used; a budget below the least that works.
pub fn run(args: &BenchArgs, output: Output) -> Outcome {
    let stop = signal::stop_flag()?;
    let prompts = args.prompt.iter().map(|n| Test::Prompt(*n));
    let tests: Vec<Test> = prompts
        .chain(args.tokens.iter().map(|n| Test::Generate(*n)))
        .filter(|test| test.tokens() > 0)
        .collect();
    let longest = tests.iter().map(|test| test.tokens()).max();
    let (Some(longest), Some(deepest)) = (longest, args.depth.iter().max()) else {
        return Err(Failure::new("expected something to measure, found neither -p nor -n"));
    };
    let weights = inputs::runnable(&args.model, &args.arch)?;
    let (size_bytes, parameters) = sizes(&weights)?;
    let threads = args.threads.count();
    let mut options = engine::options(args.memory, threads, longest + deepest, None);
    (options.cache, options.look_ahead) = (args.cache.into(), args.ahead.into());
    let mut runtime = engine::open(weights, &options)?;
    let tests = measure(&mut runtime, &tests, args, &stop, output)?;
    let report = Report {
        model: args.model.display().to_string(),
        size_bytes,
        parameters,
        backend: Backend::detect().name(),
        threads,
        planned_bytes: runtime.plan().total,
        chunk: runtime.plan().chunk,
        tests,
    };
    output.report(&report, &report.table())?;
    let stopped = stop.load(Ordering::Relaxed);
    Ok(if stopped { ExitCode::from(INTERRUPTED) } else { ExitCode::SUCCESS })
}

/// Every test at every depth, each once before it counts; those that were complete when the user
/// stopped.
fn measure(
    runtime: &mut Runtime,
    tests: &[Test],
    args: &BenchArgs,
    stop: &AtomicBool,
    output: Output,
) -> Result<Vec<Measured>, Failure> {
    let repeat = usize::from(args.repeat);
    let all = (tests.len() * args.depth.len() * (repeat + 1)) as u64;
    let stage = Stage::new(output, "measuring", Count::Of("runs"));
    let (mut measured, mut done) = (Vec::new(), 0);
    for &depth in &args.depth {
        for &test in tests {
            let mut samples = Vec::with_capacity(repeat);
            for sample in 0..=repeat {
                if stop.load(Ordering::Relaxed) {
                    return Ok(measured);
                }
                let seconds = test.time(runtime, depth)?;
                if sample > 0 {
                    samples.push(test.tokens() as f64 / seconds.max(1e-9));
                }
                done += 1;
                stage.set(done, all);
            }
            measured.push(Measured::new(test, depth, samples));
        }
    }
    Ok(measured)
}

impl Measured {
    fn new(test: Test, depth: usize, samples: Vec<f64>) -> Self {
        let n = samples.len() as f64;
        let mean = samples.iter().sum::<f64>() / n;
        let squares: f64 = samples.iter().map(|x| (x - mean).powi(2)).sum();
        let deviation = if samples.len() > 1 { (squares / (n - 1.0)).sqrt() } else { 0.0 };
        let (name, tokens) = (test.name(depth), test.tokens());
        Self { test: name, tokens, depth, tokens_per_second: mean, deviation, samples }
    }
}

impl Report {
    /// The columns of llama-bench.
    fn table(&self) -> String {
        let header = ["model", ">size", ">params", "backend", ">threads", ">test", ">t/s"];
        let mut table = Table::new(&header);
        for test in &self.tests {
            table.row([
                self.model.clone(),
                bytes::memory(self.size_bytes),
                bytes::count(self.parameters),
                self.backend.to_owned(),
                self.threads.to_string(),
                test.test.clone(),
                format!("{:.2} ± {:.2}", test.tokens_per_second, test.deviation),
            ]);
        }
        table.to_string()
    }
}

/// Stored bytes and parameters of the text model.
fn sizes(weights: &Weights) -> Result<(u64, u64), Failure> {
    let (mut size, mut parameters) = (0, 0);
    for unit in weights.spec().units() {
        let layout = weights.layout(unit)?;
        size += layout.len;
        let tensors = layout.tensors.iter();
        parameters += tensors.map(|tensor| tensor.rows * tensor.cols).sum::<u64>();
    }
    Ok((size, parameters))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_is_the_standard_deviation_of_the_samples() {
        let measured = Measured::new(Test::Generate(128), 512, vec![9.0, 11.0, 10.0]);
        assert_eq!((measured.tokens_per_second, measured.deviation), (10.0, 1.0));
        assert_eq!(measured.test, "tg128 @ d512");
        let once = Measured::new(Test::Prompt(5), 0, vec![3.0]);
        assert_eq!((once.test.as_str(), once.deviation), ("pp5", 0.0));
    }
}
