//! `verify`: what the checks found, as text, JSON and a page; the verdict as exit code.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::Instant;

use serde::Serialize;
use shardwright_format::pack::Packed;
use shardwright_verify::{
    Monitor, Point, Progress, Report, Request, Stage, Thresholds, Verdict, VerifyError, Windows,
    verify,
};

use crate::args::{ThresholdArgs, VerifyArgs};
use crate::failure::{FOUND, Failure, Outcome};
use crate::output::Output;
use crate::process;
use crate::progress::{self, Count};
use crate::signal;

/// What `verify` prints with `--json`.
#[derive(Serialize)]
struct Shown<'a> {
    #[serde(flatten)]
    report: &'a Report,
    seconds: f64,
    peak_memory_bytes: Option<u64>,
}

/// Runs the command.
///
/// # Errors
/// What prevents a check from running; what a check finds is in the report.
pub fn run(args: &VerifyArgs, output: Output) -> Outcome {
    let cancel = signal::stop_flag()?;
    let started = Instant::now();
    if !Packed::is_packed(&args.bundle) {
        super::check_directory(&args.bundle)?;
    }
    args.against
        .as_deref()
        .map_or(Ok(()), super::check_checkpoint)?;
    let arch = args
        .arch
        .arch
        .as_deref()
        .map(super::read_arch)
        .transpose()?;
    let request = request(args, arch.as_ref());
    let beside = points(&args.beside)?;
    let stages = Stages { output, now: Mutex::new(None) };
    let show = |progress: Progress| stages.show(progress);
    let report = verify(&request, &Monitor { progress: &show, cancel: &cancel });
    drop(stages);
    let report = report.map_err(failure)?;
    if let Some(path) = &args.html {
        write_page(path, &report.to_html(&beside))?;
    }
    let shown = Shown {
        report: &report,
        seconds: started.elapsed().as_secs_f64(),
        peak_memory_bytes: process::peak_memory(),
    };
    output.report(&shown, &report.to_string())?;
    Ok(match report.verdict {
        Verdict::Holds => ExitCode::SUCCESS,
        Verdict::Found => ExitCode::from(FOUND),
    })
}

/// The points of all files.
///
/// # Errors
/// A file that holds none.
pub fn points(files: &[PathBuf]) -> Result<Vec<Point>, Failure> {
    let read = files.iter().map(|file| Point::read(file));
    Ok(read.collect::<Result<Vec<_>, _>>()?.concat())
}

/// Writes a page.
///
/// # Errors
/// Names the file.
pub fn write_page(path: &Path, page: &str) -> Result<(), Failure> {
    write_whole(path, page).map_err(|e| Failure::new(format!("{}: {e}", path.display())))
}

/// Writes a file under another name beside it, so that the name never stands for half of it. What
/// is there and no plain file, such as a pipe, is written to as it is.
fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    if path.symlink_metadata().is_ok_and(|there| !there.is_file()) {
        return fs::write(path, text);
    }
    let mut partial = path.as_os_str().to_owned();
    partial.push(format!(".{}.partial", std::process::id()));
    let written = fs::write(&partial, text).and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        // The first error says more than that of the clean-up.
        let _ = fs::remove_file(&partial);
    }
    written
}

fn request<'a>(
    args: &'a VerifyArgs,
    arch: Option<&'a shardwright_format::arch::Arch>,
) -> Request<'a> {
    let windows =
        Windows { limit: args.windows.map(|n| n as usize), ..Windows::of(args.window as usize) };
    Request {
        bundle: &args.bundle,
        checkpoint: args.against.as_deref(),
        arch,
        text: args.text.as_deref(),
        windows,
        thresholds: args.thresholds.into(),
        hash_checkpoint: !args.skip_checkpoint_hashes,
        threads: args.threads.count(),
    }
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

fn failure(error: VerifyError) -> Failure {
    match error {
        VerifyError::Cancelled => Failure::interrupted("stopped before the end"),
        other => other.into(),
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
        Stage::Layers => ("running both models", Count::Of("layers")),
        Stage::Heads => ("comparing predictions", Count::Of("tokens")),
    }
}
