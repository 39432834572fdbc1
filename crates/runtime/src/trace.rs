//! What became of experts while a text was computed, and the file that says so: a line of JSON for the
//! model and the room that there was, then a line for each layer of each pass.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use shardwright_format::io::partial_path;
use shardwright_format::model::{Ffn, ModelSpec, MoeSpec};
use shardwright_format::{FormatError, Refusal, mismatch};

use crate::error::Result;
use crate::plan::MemoryPlan;

/// What the first line says that it is.
const VERSION: u32 = 1;

/// Longer lines are refused unread: this holds the picks of tens of thousands of tokens.
const LINE_LIMIT: u64 = 4 << 20;

/// Larger files are refused: this holds hours of a large model.
const FILE_LIMIT: u64 = 256 << 20;

/// What a trace is in messages.
const KIND: &str = "a trace that `run --trace` wrote";

/// More layers, or experts of a layer, than any model has.
const MOST: u32 = 1 << 16;

/// The experts of one layer for tokens that were computed together.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Visit {
    /// Chunks that were computed before.
    pub pass: u64,
    /// From 0.
    pub layer: u32,
    /// Picks of each token.
    pub k: usize,
    /// Of each token in turn, the likeliest first.
    pub picks: Vec<u32>,
    /// Those found in memory, or on their way there, ascending.
    pub hits: Vec<u32>,
    /// Those read when they were picked, ascending, which is the order of their reads.
    pub reads: Vec<u32>,
    /// Those of this layer whose reads were begun before it had picked any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub guessed: Vec<u32>,
    /// Of them, those that were picked and still on their way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub late: Vec<u32>,
    /// Bytes that were read of `reads`.
    pub bytes: u64,
    /// What routing, reading and computing took together.
    pub seconds: f64,
}

/// Whose experts, and what room there was for them.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// That this is a trace, and as of which version.
    pub shardwright_trace: u32,
    /// The model's architecture.
    pub model_type: String,
    /// Layers, with or without experts.
    pub layers: u32,
    /// Experts of the layer that has most.
    pub experts: u32,
    /// Picks of a token in the layer that has most.
    pub picks: u32,
    /// Experts held at a time while tokens were decoded.
    pub slots: usize,
    /// Memory of one of them.
    pub slot_bytes: u64,
    /// Memory of all else when nothing of it is streamed.
    pub other_bytes: u64,
}

impl Header {
    /// That of a model under a plan; none for one without experts.
    pub fn new(spec: &ModelSpec, plan: &MemoryPlan) -> Option<Self> {
        let (experts, picks) = shape(spec)?;
        Some(Self {
            shardwright_trace: VERSION,
            model_type: spec.model_type.clone(),
            layers: spec.layers.len() as u32,
            experts,
            picks,
            slots: plan.expert_slots,
            slot_bytes: plan.expert_slot,
            other_bytes: plan.resident.saturating_sub(plan.experts_bytes),
        })
    }

    /// Memory with room for `slots` experts.
    pub const fn memory(&self, slots: usize) -> u64 {
        (slots as u64)
            .saturating_mul(self.slot_bytes)
            .saturating_add(self.other_bytes)
    }

    /// Refuses a trace of a model of another shape.
    ///
    /// # Errors
    /// Other layers, experts or picks, with both.
    pub fn check(&self, path: &Path, spec: &ModelSpec) -> Result<()> {
        let shown = |layers, experts, picks| {
            format!("a trace of {layers} layers of {experts} experts and {picks} picks")
        };
        let Some((experts, picks)) = shape(spec) else {
            let detail = "is about experts, of which this model has none";
            return Err(FormatError::file(path, detail).into());
        };
        let expected = shown(spec.layers.len(), experts, picks);
        let found = shown(self.layers as usize, self.experts, self.picks);
        if expected == found {
            return Ok(());
        }
        Err(FormatError::file(path, mismatch(expected, found)).into())
    }

    fn validate(&self) -> Result<(), Refusal> {
        let Self { shardwright_trace: version, layers, experts, picks, .. } = *self;
        if version != VERSION {
            return Err(mismatch(format_args!("version {VERSION}"), version));
        }
        for (what, found, most) in
            [("layers", layers, MOST), ("experts", experts, MOST), ("picks", picks, experts)]
        {
            if found == 0 || found > most {
                return Err(mismatch(format_args!("1 to {most}"), found).at(what));
            }
        }
        Ok(())
    }

    /// Refuses what no run can have done after `before`, the pass and layer of the line before.
    fn validate_visit(&self, visit: &Visit, before: Option<(u64, u32)>) -> Result<(), Refusal> {
        let Visit { pass, layer, k, picks, hits, reads, guessed, late, seconds, .. } = visit;
        let ascends = |experts: &[u32]| experts.is_sorted_by(|a, b| a < b);
        let bad =
            |expected: &str, what: &str| Err(Refusal::from(format!("{what}: expected {expected}")));
        if *layer >= self.layers || before.is_some_and(|before| before >= (*pass, *layer)) {
            return bad("layers of the model in order, pass after pass", "layer");
        }
        if *k == 0 || *k > self.picks as usize || picks.is_empty() || picks.len() % k != 0 {
            return bad("the picks of whole tokens", "picks");
        }
        if picks.iter().any(|expert| *expert >= self.experts) {
            return bad("experts of the model", "picks");
        }
        // What was found and what was read are together what was picked, each of it once.
        let picked: BTreeSet<u32> = picks.iter().copied().collect();
        let found: BTreeSet<u32> = hits.iter().chain(reads).copied().collect();
        if !ascends(hits)
            || !ascends(reads)
            || hits.len() + reads.len() != found.len()
            || found != picked
        {
            return bad("every expert that was picked once, ascending", "hits and reads");
        }
        let known = |expert: &u32| *expert < self.experts;
        let came = |expert: &u32| guessed.contains(expert) && hits.contains(expert);
        if !ascends(guessed)
            || !ascends(late)
            || !guessed.iter().all(known)
            || !late.iter().all(came)
        {
            return bad(
                "experts of the model, ascending, late ones among the hits",
                "guessed and late",
            );
        }
        if *seconds < 0.0 {
            return bad("no less than 0", "seconds");
        }
        Ok(())
    }
}

/// Most experts of a layer, and most picks.
fn shape(spec: &ModelSpec) -> Option<(u32, u32)> {
    let moe = spec.layers.iter().filter_map(|layer| match &layer.ffn {
        Ffn::Moe(moe) => Some(moe),
        Ffn::Dense(_) => None,
    });
    let most = |of: fn(&MoeSpec) -> u32| moe.clone().map(of).max();
    Some((most(|moe| moe.num_experts)?, most(|moe| moe.num_experts_per_tok)?))
}

/// A trace that is being written: under its name only when it is whole.
#[derive(Debug)]
pub struct TraceWriter {
    path: PathBuf,
    partial: PathBuf,
    out: Option<BufWriter<File>>,
    lines: u64,
}

impl TraceWriter {
    /// Begins the file beside `path`.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn create(path: &Path, header: &Header) -> Result<Self> {
        let partial = partial_path(path);
        let file = File::create(&partial).map_err(|e| FormatError::io(&partial, e))?;
        let out = Some(BufWriter::new(file));
        let mut writer = Self { path: path.to_owned(), partial, out, lines: 0 };
        writer.line(header)?;
        Ok(writer)
    }

    /// Adds what became of experts.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn write(&mut self, visits: &[Visit]) -> Result<()> {
        self.lines += visits.len() as u64;
        visits.iter().try_for_each(|visit| self.line(visit))
    }

    /// Gives the file its name; says how many lines it has beside the first.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub fn finish(mut self) -> Result<u64> {
        let named = |e| FormatError::io(&self.path, e);
        if let Some(mut out) = self.out.take() {
            let done = out
                .flush()
                .and_then(|()| std::fs::rename(&self.partial, &self.path));
            if done.is_err() {
                // The error that matters is the other one.
                let _ = std::fs::remove_file(&self.partial);
            }
            done.map_err(named)?;
        }
        Ok(self.lines)
    }

    fn line(&mut self, value: &impl Serialize) -> Result<()> {
        let Some(out) = &mut self.out else { return Ok(()) };
        let written = serde_json::to_vec(value)
            .map_err(std::io::Error::from)
            .and_then(|mut line| {
                line.push(b'\n');
                out.write_all(&line)
            });
        Ok(written.map_err(|e| FormatError::io(&self.partial, e))?)
    }
}

impl Drop for TraceWriter {
    fn drop(&mut self) {
        if self.out.take().is_some() {
            // Nothing half-made stays; there is nobody to tell that it does.
            let _ = std::fs::remove_file(&self.partial);
        }
    }
}

/// Reads a trace, showing it line by line to `each`.
///
/// # Errors
/// A file that cannot be read or is no trace; a line that no run can have written.
pub fn read(path: &Path, mut each: impl FnMut(&Visit)) -> Result<Header> {
    // Asked before opening: the open of a pipe waits for a writer that may never come.
    let metadata = path.metadata().map_err(|e| FormatError::io(path, e))?;
    let refuse = |detail: Refusal| FormatError::file(path, detail);
    if !metadata.is_file() || metadata.len() > FILE_LIMIT {
        let expected = format!("expected {KIND}, of at most {FILE_LIMIT} bytes");
        return Err(refuse(expected.into()).into());
    }
    let file = File::open(path).map_err(|e| FormatError::io(path, e))?;
    let (mut lines, mut number) = (BufReader::new(file), 0_u64);
    let mut next = || -> Result<Option<(u64, Vec<u8>)>> {
        let mut line = Vec::new();
        number += 1;
        let read = lines.by_ref().take(LINE_LIMIT).read_until(b'\n', &mut line);
        match read.map_err(|e| FormatError::io(path, e))? {
            0 => Ok(None),
            _ if line.last() == Some(&b'\n') => Ok(Some((number, line))),
            _ => {
                let detail = mismatch(
                    format_args!("a line of at most {LINE_LIMIT} bytes and its end"),
                    "none",
                );
                Err(refuse(detail.at(format_args!("line {number}"))).into())
            }
        }
    };
    let no_trace = || refuse(format!("expected {KIND}").into());
    let (_, first) = next()?.ok_or_else(no_trace)?;
    let header: Header = serde_json::from_slice(&first).map_err(|_| no_trace())?;
    header
        .validate()
        .map_err(|detail| refuse(detail.at("line 1")))?;
    let mut before = None;
    while let Some((number, line)) = next()? {
        let at = |detail: Refusal| refuse(detail.at(format_args!("line {number}")));
        let visit: Visit = serde_json::from_slice(&line)
            .map_err(|e| at(mismatch("a layer's experts as `run --trace` writes them", e)))?;
        header.validate_visit(&visit, before).map_err(at)?;
        before = Some((visit.pass, visit.layer));
        each(&visit);
    }
    Ok(header)
}
