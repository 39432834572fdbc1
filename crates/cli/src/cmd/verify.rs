//! `verify`: what the checks found, as text, JSON and a page; the verdict as exit code.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde::Serialize;
use shardwright_format::io::replace;
use shardwright_format::{FormatError, Part};
use shardwright_runtime::CacheTypes;
use shardwright_verify::{
    EvalWindows, Ladder, Monitor, Progress, Report, Stage, Thresholds, TrustedKey, Verdict,
    VerifyError, VerifyRequest, merge, verify, verify_part,
};

use crate::args::{ThresholdArgs, VerifyArgs};
use crate::bytes::disk;
use crate::failure::{FOUND, Failure, Outcome};
use crate::inputs;
use crate::output::Output;
use crate::page::{points, write_page};
use crate::process;
use crate::progress::{self, Count, duration};
use crate::reproduce::reproduce;
use crate::signal;

/// What `verify` prints with `--json`: the report of one candidate, or the ladder of several.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    found: Found<'a>,
    seconds: f64,
    peak_memory_bytes: Option<u64>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Found<'a> {
    One(&'a Report),
    Several {
        verdict: Verdict,
        #[serde(flatten)]
        ladder: &'a Ladder,
    },
}

impl<'a> Found<'a> {
    fn new(ladder: &'a Ladder) -> Self {
        match &ladder.candidates[..] {
            [report] => Self::One(report),
            _ => Self::Several { verdict: ladder.verdict(), ladder },
        }
    }
}

/// Runs the command.
///
/// # Errors
/// What prevents a check from running; what a check finds is in the report.
pub fn run(args: &VerifyArgs, output: Output) -> Outcome {
    let cancel = signal::stop_flag()?;
    let started = Instant::now();
    let beside = points(&args.beside)?;
    if let Some((part, out)) = args.part.zip(args.out.as_ref()) {
        return run_part(args, (part.part()?, out), &cancel, output).map(|()| ExitCode::SUCCESS);
    }
    let mut ladder = if args.merge.is_empty() {
        let request = request(args)?;
        watched(output, &cancel, |monitor| verify(request, monitor))?
    } else {
        merge(&args.merge)?
    };
    if let Some(count) = args.reproduce {
        // Of a damaged bundle nothing is known that could be made again.
        let sound = |report: &&mut Report| report.fidelity.is_some();
        let candidates = ladder.candidates.iter_mut().zip(&args.candidates);
        for (report, path) in candidates.filter(|(report, _)| sound(report)) {
            report.reproduced(reproduce(path, count, args, &cancel, output)?);
        }
    }
    if let Some(path) = &args.html {
        write_page(path, &ladder.to_html(&beside))?;
    }
    let shown = Shown {
        found: Found::new(&ladder),
        seconds: started.elapsed().as_secs_f64(),
        peak_memory_bytes: process::peak_memory(),
    };
    output.report(&shown, &ladder.to_string())?;
    Ok(match ladder.verdict() {
        Verdict::Holds => ExitCode::SUCCESS,
        Verdict::Found => ExitCode::from(FOUND),
    })
}

/// A check whose progress is shown.
fn watched<T>(
    output: Output,
    cancel: &AtomicBool,
    check: impl FnOnce(&Monitor<'_>) -> Result<T, VerifyError>,
) -> Result<T, VerifyError> {
    let stages = Stages { output, now: Mutex::new(None) };
    let show = |progress: Progress| stages.show(progress);
    check(&Monitor { progress: &show, cancel })
}

/// What `verify --part` prints.
#[derive(Serialize)]
struct OnePart {
    file: String,
    seconds: f64,
    peak_memory_bytes: Option<u64>,
    part: u32,
    parts: u32,
    /// The first of its windows, from 0, and the one after its last.
    windows: [usize; 2],
    tokens: usize,
    bytes: usize,
}

/// Makes a part. What it found is for the merged report to say.
fn run_part(
    args: &VerifyArgs,
    (part, out): (Part, &Path),
    cancel: &AtomicBool,
    output: Output,
) -> Result<(), Failure> {
    let started = Instant::now();
    let path = part.beside(out);
    if path.symlink_metadata().is_ok() {
        let file = path.display();
        let detail = format!("{file}: already exists; remove it or choose another name");
        return Err(Failure::new(detail));
    }
    let request = request(args)?;
    let made = watched(output, cancel, |monitor| verify_part(request, part, monitor))?;
    replace(&path, |partial| {
        std::fs::write(partial, &made.bytes).map_err(|e| FormatError::io(&path, e))
    })?;
    let report = OnePart {
        file: path.display().to_string(),
        seconds: started.elapsed().as_secs_f64(),
        peak_memory_bytes: process::peak_memory(),
        part: part.index(),
        parts: part.count(),
        windows: [made.windows.start, made.windows.end],
        tokens: made.tokens,
        bytes: made.bytes.len(),
    };
    let OnePart { file, tokens, bytes, seconds, .. } = &report;
    let (windows, took) = (made.windows.len(), duration(*seconds));
    let size = disk(*bytes as u64);
    let (out, count) = (out.display(), part.count());
    let text = format!(
        "{file}: part {part}, {windows} windows, {tokens} tokens predicted, {size}\ntook {took}\n\
         all parts: shardwright verify --merge {out}.part-*-of-{count}\n"
    );
    output.report(&report, &text)
}

fn request(args: &VerifyArgs) -> Result<VerifyRequest<'_>, Failure> {
    let limit = args.windows.map(|n| n as usize);
    let original = args
        .against
        .as_ref()
        .map(|path| Ok::<_, Failure>((path.clone(), inputs::model(path, &args.arch)?)));
    Ok(VerifyRequest {
        candidates: inputs::candidates(&args.candidates, &args.arch)?,
        original: original.transpose()?,
        text: args.text.as_deref(),
        windows: EvalWindows { limit, ..EvalWindows::new(args.window as usize) },
        thresholds: args.thresholds.into(),
        hash_checkpoint: !args.skip_checkpoint_hashes,
        other_source: args.other_source,
        cache: CacheTypes { k: args.cache_type_k.into(), v: args.cache_type_v.into() },
        trusted: args.trusted.as_deref().map(TrustedKey::read).transpose()?,
        threads: args.threads.count(),
    })
}

impl From<ThresholdArgs> for Thresholds {
    fn from(args: ThresholdArgs) -> Self {
        Self {
            max_rmse: args.max_rmse,
            max_bits_per_weight: args.max_bpw,
            max_kld: args.max_kld,
            max_kld_p99: args.max_kld_p99,
            max_kld_p999: args.max_kld_p999,
            min_same_top: args.min_same_top,
            max_ppl_ratio: args.max_ppl_ratio,
        }
    }
}

/// The progress of whichever check is at work.
struct Stages {
    output: Output,
    now: Mutex<Option<(Stage, progress::Stage)>>,
}

impl Stages {
    fn show(&self, progress: Progress) {
        let Ok(mut now) = self.now.lock() else { return };
        if now
            .as_ref()
            .is_none_or(|(stage, _)| *stage != progress.stage)
        {
            // The old bar is taken away before the new one is drawn.
            *now = None;
            let (what, count) = described(progress.stage);
            *now = Some((progress.stage, progress::Stage::new(self.output, what, count)));
        }
        if let Some((_, shown)) = now.as_ref() {
            shown.set(progress.done, progress.total);
        }
    }
}

const fn described(stage: Stage) -> (&'static str, Count) {
    match stage {
        Stage::Integrity => ("hashing the bundle", Count::Bytes),
        Stage::Checkpoint => ("hashing the checkpoint", Count::Bytes),
        Stage::Fidelity => ("comparing weights", Count::Bytes),
        Stage::Finite => ("reading weights", Count::Of("weights")),
        Stage::Layers => ("running the models", Count::Of("layers")),
        Stage::Heads => ("comparing predictions", Count::Of("tokens")),
    }
}
