//! `inspect`: what a checkpoint or bundle holds, from headers and manifest alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use serde::Serialize;
use shardwright_format::census::{Census, Tally};
use shardwright_format::checkpoint::{Quantization, flash_moe, gguf};
use shardwright_format::manifest::{Excerpt, Ignored, Manifest, Shard};
use shardwright_format::model::{AttentionSpec, Ffn, Mixer, ModelSpec};
use shardwright_format::shown::shown;
use shardwright_format::weights::Weights;
use shardwright_format::{Role, TensorEntry, Unit};

use crate::args::InspectArgs;
use crate::bytes;
use crate::cmd::trace;
use crate::failure::Failure;
use crate::inputs;
use crate::output::{Output, Table};

/// What `inspect` prints.
#[derive(Serialize)]
struct Report {
    kind: &'static str,
    model_type: String,
    /// Those of the text model.
    parameters: Parameters,
    /// What else there is.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parts: Vec<PartRow>,
    /// Bits per weight of the text model's tensors of two or more dimensions, scales and biases
    /// included.
    bits_per_weight: f64,
    /// Bytes of the text model's tensors, without alignment.
    tensor_bytes: u64,
    model: ModelSpec,
    roles: Vec<RoleRow>,
    #[serde(skip_serializing_if = "Option::is_none")]
    checkpoint: Option<CheckpointPart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bundle: Option<BundlePart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tensors: Option<Vec<TensorRow>>,
}

#[derive(Serialize)]
struct Parameters {
    total: u64,
    /// Those that one token's pass uses: all but the experts it does not visit.
    active: u64,
}

/// A part besides the text model.
#[derive(Serialize)]
struct PartRow {
    role: Role,
    parameters: u64,
    bytes: u64,
    /// Why a bundle works without it, where this is no bundle.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    tensors: Vec<String>,
}

/// All tensors of one role that are stored alike.
#[derive(Serialize)]
struct RoleRow {
    role: Role,
    stored: String,
    tensors: u64,
    parameters: u64,
    bytes: u64,
}

#[derive(Serialize)]
struct CheckpointPart {
    files: Vec<FileRow>,
    ignored: Vec<Ignored>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quantization: Option<Quantization>,
}

#[derive(Serialize)]
struct BundlePart {
    generator: String,
    recipe: serde_json::Value,
    alignment: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    excerpt: Option<Excerpt>,
    files: Vec<FileRow>,
    /// Tensors of the checkpoint that are not here.
    left_out: Vec<Ignored>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shards: Option<Vec<ShardRow>>,
}

#[derive(Serialize)]
struct FileRow {
    path: String,
    kind: &'static str,
    bytes: u64,
}

#[derive(Serialize)]
struct ShardRow {
    shard: String,
    file: String,
    offset: u64,
    len: u64,
    blake3: String,
}

#[derive(Serialize)]
struct TensorRow {
    unit: String,
    role: Role,
    stored: String,
    rows: u64,
    cols: u64,
    bytes: u64,
    source: String,
}

/// Runs the command.
///
/// # Errors
/// A directory that is neither a sound checkpoint nor a sound bundle.
pub fn run(args: &InspectArgs, output: Output) -> Result<(), Failure> {
    if let Some(trace) = &args.trace {
        return trace::run(trace, output);
    }
    let weights = inputs::model(args.path.as_deref().unwrap_or(Path::new("")), &args.arch)?;
    let report = Report::new(&weights, args.tensors)?;
    output.report(&report, &report.text())
}

impl Report {
    fn new(weights: &Weights, list: bool) -> Result<Self, Failure> {
        let spec = weights.spec();
        let census = weights.census()?;
        let row = |((role, stored), tally): ((Role, &str), Tally)| RoleRow {
            role,
            stored: stored.to_owned(),
            tensors: tally.tensors,
            parameters: tally.weights,
            bytes: tally.bytes,
        };
        let text = census.text();
        let bundle = weights
            .bundle()
            .map(|b| BundlePart::new(b.manifest(), list));
        let kind = if bundle.is_some() { "bundle" } else { "checkpoint" };
        Ok(Self {
            kind,
            model_type: spec.model_type.clone(),
            bits_per_weight: census.bits_per_weight(),
            parameters: Parameters { total: text.weights, active: active(spec, &census) },
            parts: PartRow::all(weights)?,
            tensor_bytes: text.bytes,
            model: spec.clone(),
            roles: census.by_encoding().into_iter().map(row).collect(),
            checkpoint: CheckpointPart::new(weights),
            bundle,
            tensors: if list { Some(TensorRow::all(weights)?) } else { None },
        })
    }

    fn text(&self) -> String {
        let mut out = self.heading();
        let mut roles = Table::new(&["role", "stored", ">tensors", ">parameters", ">size"]);
        for row in &self.roles {
            let (tensors, parameters) = (row.tensors.to_string(), bytes::count(row.parameters));
            let size = bytes::disk(row.bytes);
            roles.row([row.role.to_string(), row.stored.clone(), tensors, parameters, size]);
        }
        let _ = write!(out, "\n{roles}");
        self.files(&mut out);
        if let Some(shards) = self.bundle.as_ref().and_then(|b| b.shards.as_ref()) {
            let _ = write!(out, "\n{}", ShardRow::table(shards));
        }
        if let Some(tensors) = &self.tensors {
            let _ = write!(out, "\n{}", TensorRow::table(tensors));
        }
        out
    }

    fn heading(&self) -> String {
        let (total, active) = (self.parameters.total, self.parameters.active);
        let mut out = format!("{} {}\n", shown(&self.model_type), self.kind);
        let _ = write!(out, "  parameters       {}", bytes::count(total));
        if active != total {
            let _ = write!(out, ", {} active per token", bytes::count(active));
        }
        out.push('\n');
        for part in &self.parts {
            let (role, count, size) = (part.role, part.parameters, bytes::disk(part.bytes));
            let (count, tensors) = (bytes::count(count), part.tensors.len());
            let _ = writeln!(
                out,
                "  {role:16} {count} parameters beside those, in {tensors} tensors, {size}"
            );
        }
        let _ = writeln!(out, "  layers           {}", layers(&self.model));
        let _ = writeln!(out, "  attention        {}", mixers(&self.model));
        if let Some(experts) = experts(&self.model) {
            let _ = writeln!(out, "  experts          {experts}");
        }
        let _ = writeln!(
            out,
            "  weights          {}, {:.3} bits per weight",
            bytes::disk(self.tensor_bytes),
            self.bits_per_weight
        );
        let checkpoint = self.checkpoint.as_ref();
        if let Some(quantization) = checkpoint.and_then(|c| c.quantization.as_ref()) {
            let _ = write!(out, "{}", quantized(quantization));
        }
        if let Some(bundle) = &self.bundle {
            let align = bytes::memory(bundle.alignment);
            let _ = writeln!(out, "  shards           on multiples of {align}");
            let _ = writeln!(out, "  written by       {}", shown(&bundle.generator));
            if let Some(excerpt) = bundle.excerpt {
                let _ = writeln!(out, "  {excerpt}");
            }
        }
        out
    }

    fn files(&self, out: &mut String) {
        let checkpoint = self.checkpoint.as_ref().map(|c| &c.files);
        let Some(files) = checkpoint.or(self.bundle.as_ref().map(|b| &b.files)) else { return };
        let mut table = Table::new(&["file", "kind", ">size"]);
        for file in files {
            table.row([file.path.clone(), file.kind.to_owned(), bytes::disk(file.bytes)]);
        }
        let _ = write!(out, "\n{table}");
        for line in self
            .checkpoint
            .iter()
            .flat_map(|c| Ignored::lines(&c.ignored))
        {
            let _ = writeln!(out, "ignored: {}", shown(&line));
        }
        for line in self.bundle.iter().flat_map(|b| Ignored::lines(&b.left_out)) {
            let _ = writeln!(out, "left out: {}", shown(&line));
        }
    }
}

/// Parameters of the text model that a token uses: experts are alike, and of each layer's it visits
/// `num_experts_per_tok`.
fn active(spec: &ModelSpec, census: &Census) -> u64 {
    let used = |(layer, role, _, tally): (Option<u32>, Role, &str, Tally)| {
        let ffn = layer
            .and_then(|layer| spec.layers.get(layer as usize))
            .map(|l| &l.ffn);
        match ffn {
            Some(Ffn::Moe(moe)) if role.is_expert() => {
                let experts = u64::from(moe.num_experts.max(1));
                tally.weights / experts * u64::from(moe.num_experts_per_tok)
            }
            _ if role.is_extra() => 0,
            _ => tally.weights,
        }
    };
    census.kinds().map(used).sum()
}

fn layers(spec: &ModelSpec) -> String {
    let sparse = spec.layers.iter().filter(|l| l.num_experts() > 0).count();
    let kind = match sparse {
        0 => "dense".to_owned(),
        n if n == spec.layers.len() => "with experts".to_owned(),
        n => format!("{n} with experts"),
    };
    let tied = if spec.tie_word_embeddings { ", head tied to the embedding" } else { "" };
    let (count, hidden, vocab) = (spec.layers.len(), spec.hidden_size, spec.vocab_size);
    format!("{count} ({kind}), hidden size {hidden}, vocabulary {vocab}{tied}")
}

/// The mixers, kind by kind in the order of their first layers.
fn mixers(spec: &ModelSpec) -> String {
    let mut kinds: Vec<(String, usize)> = Vec::new();
    for layer in &spec.layers {
        let kind = mixer(&layer.mixer);
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => kinds.push((kind, 1)),
        }
    }
    let alone = kinds.len() == 1;
    let shown = kinds
        .into_iter()
        .map(|(kind, count)| if alone { kind } else { format!("{kind} in {count} layers") });
    shown.collect::<Vec<_>>().join("; ")
}

fn mixer(mixer: &Mixer) -> String {
    match mixer {
        Mixer::Attention(spec) => attention(spec),
        Mixer::Latent(spec) => format!(
            "latent attention, {} heads of {} over latents of {}",
            spec.heads,
            spec.qk_nope_head_dim + spec.qk_rope_head_dim,
            spec.kv_lora_rank
        ),
        Mixer::DeltaNet(spec) => format!(
            "gated delta net, {} value heads of {} over {} key heads of {}",
            spec.value_heads, spec.value_head_dim, spec.key_heads, spec.key_head_dim
        ),
        Mixer::ShortConv(spec) => {
            format!("short convolution over {} positions", spec.conv_kernel)
        }
    }
}

fn attention(spec: &AttentionSpec) -> String {
    let AttentionSpec { heads, kv_heads, head_dim, .. } = spec;
    let limit = match (spec.sliding_window, spec.attention_chunk_size) {
        (Some(window), _) => format!(", sliding window of {window}"),
        (None, Some(chunk)) => format!(", chunks of {chunk}"),
        (None, None) => String::new(),
    };
    let rope = if spec.rope.is_none() { ", no positions" } else { "" };
    let sinks = if spec.sinks { ", sinks" } else { "" };
    let gate = if spec.output_gate { ", gated" } else { "" };
    format!("{heads} heads of {head_dim} over {kv_heads} key/value heads{limit}{rope}{sinks}{gate}")
}

fn experts(spec: &ModelSpec) -> Option<String> {
    let moe = spec.layers.iter().find_map(|l| match &l.ffn {
        Ffn::Moe(moe) => Some(moe),
        Ffn::Dense(_) => None,
    })?;
    let shared = if moe.shared_expert.is_some() { ", and a shared one" } else { "" };
    let (count, picked) = (moe.num_experts, moe.num_experts_per_tok);
    Some(format!(
        "{count} per layer, {picked} per token{shared}, width {}",
        moe.moe_intermediate_size
    ))
}

impl PartRow {
    fn all(weights: &Weights) -> Result<Vec<Self>, Failure> {
        let part = |(unit, role): (Unit, Role)| {
            let layout = weights.layout(unit)?;
            let found = weights
                .checkpoint()
                .and_then(|(_, inventory)| inventory.extras.get(&unit));
            let mut row = Self {
                role,
                parameters: 0,
                bytes: 0,
                reason: found.map(|part| part.reason.clone()),
                tensors: Vec::new(),
            };
            for tensor in layout.tensors.iter() {
                row.parameters += tensor.rows * tensor.cols;
                row.bytes += tensor.byte_len()?;
                row.tensors.push(tensor.source.tensor.clone());
            }
            Ok(row)
        };
        let units = weights.extras().into_iter();
        units
            .filter_map(|unit| Some((unit, unit.extra_role()?)))
            .map(part)
            .collect()
    }
}

/// What of a checkpoint is quantized, what its configuration says is not, and what is not though
/// the configuration does not say so.
fn quantized(facts: &Quantization) -> String {
    let each = |(label, count): (&String, &u64)| format!("{label} ({count} tensors)");
    let schemes: Vec<_> = facts.tensors.iter().map(each).collect();
    let schemes = if schemes.is_empty() { "no tensor".to_owned() } else { schemes.join(", ") };
    let mut out = format!("  quantized        {}: {schemes}\n", facts.method);
    let mut list = |what: &str, names: &BTreeMap<String, u64>| {
        if !names.is_empty() {
            let names: Vec<_> = names
                .iter()
                .map(|(name, n)| format!("{name} ({n})"))
                .collect();
            let _ = writeln!(out, "  {what:<16} {}", names.join(", "));
        }
    };
    list("kept as floats", &facts.kept);
    list("floats unnamed", &facts.unnamed);
    if !facts.unread.is_empty() {
        let _ = writeln!(out, "  patterns unread  {}", facts.unread.join(", "));
    }
    out
}

impl CheckpointPart {
    fn new(weights: &Weights) -> Option<Self> {
        let (checkpoint, inventory) = weights.checkpoint()?;
        let row = |file: &shardwright_format::checkpoint::CheckpointFile| FileRow {
            path: file.name.clone(),
            kind: match &file.name {
                name if name.ends_with(gguf::SUFFIX) => "gguf",
                name if flash_moe::holds_weights(name) => "flash-moe",
                _ => "safetensors",
            },
            bytes: file.file.len(),
        };
        let files = checkpoint.files().iter().map(row).collect();
        let ignored = inventory.ignored.clone();
        Some(Self { files, ignored, quantization: checkpoint.quantization().cloned() })
    }
}

impl BundlePart {
    fn new(manifest: &Manifest, list: bool) -> Self {
        let row = |file: &shardwright_format::manifest::FileEntry| FileRow {
            path: file.path.clone(),
            kind: file.kind.name(),
            bytes: file.size,
        };
        Self {
            generator: manifest.generator.clone(),
            recipe: manifest.recipe.clone(),
            alignment: manifest.alignment,
            excerpt: manifest.checkpoint.excerpt,
            files: manifest.files.iter().map(row).collect(),
            left_out: manifest.checkpoint.ignored.clone(),
            shards: list.then(|| ShardRow::all(manifest)),
        }
    }
}

impl ShardRow {
    fn all(manifest: &Manifest) -> Vec<Self> {
        let row = |shard: Shard<'_>| Self {
            shard: shard.unit.to_string(),
            file: shard.file.to_owned(),
            offset: shard.extent.offset,
            len: shard.extent.len,
            blake3: shard.extent.blake3.to_string(),
        };
        manifest.shards().map(row).collect()
    }

    fn table(rows: &[Self]) -> Table {
        let mut table = Table::new(&["shard", "file", ">offset", ">bytes", "blake3"]);
        for row in rows {
            let numbers = [row.offset, row.len].map(|n| n.to_string());
            let hash = format!("{}…", &row.blake3[..16]);
            let cells = [row.shard.clone(), row.file.clone()]
                .into_iter()
                .chain(numbers);
            table.row(cells.chain([hash]));
        }
        table
    }
}

impl TensorRow {
    fn all(weights: &Weights) -> Result<Vec<Self>, Failure> {
        let mut rows = Vec::new();
        for unit in weights.spec().units().chain(weights.extras()) {
            for tensor in weights.layout(unit)?.tensors.iter() {
                rows.push(Self::new(weights, unit, &tensor.in_unit(unit))?);
            }
        }
        Ok(rows)
    }

    fn new(weights: &Weights, unit: Unit, tensor: &TensorEntry) -> Result<Self, Failure> {
        let (stored, bytes) = weights.stored_as(tensor)?;
        Ok(Self {
            unit: unit.to_string(),
            role: tensor.role,
            stored,
            rows: tensor.rows,
            cols: tensor.cols,
            bytes,
            source: tensor.source.tensor.clone(),
        })
    }

    fn table(rows: &[Self]) -> Table {
        let mut table =
            Table::new(&["unit", "role", "stored", ">rows", ">cols", ">bytes", "source"]);
        for row in rows {
            let head = [row.unit.clone(), row.role.to_string(), row.stored.clone()];
            let numbers = [row.rows, row.cols, row.bytes].map(|n| n.to_string());
            table.row(head.into_iter().chain(numbers).chain([row.source.clone()]));
        }
        table
    }
}
