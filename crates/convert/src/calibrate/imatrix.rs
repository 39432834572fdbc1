//! llama.cpp's importance matrices, of both generations, as statistics.
//!
//! Layouts: llama.cpp, `tools/imatrix/imatrix.cpp` (`save_imatrix`, `save_imatrix_legacy`) and its
//! reader in `tools/quantize/quantize.cpp`. For each matrix a file has the sums of the squares of
//! each input and how many were added. llama.cpp permutes the rows of some queries and keys, never
//! columns, so inputs are in our order.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::Path;

use shardwright_format::bytes::Bytes;
use shardwright_format::checkpoint::gguf::{self, Header, MAGIC};
use shardwright_format::model::LayerSpec;
use shardwright_format::{FormatError, ModelSpec, Refusal, mismatch};
use shardwright_quant::Ggml;
use shardwright_runtime::InputSite;

use super::statistics::{Hessian, InputKey, InputStats};
use crate::error::Result;

/// Names of a layer's matrices, after `blk.N.`, and which of its inputs they have.
const LAYER: [(&str, InputSite); 22] = [
    ("attn_q", InputSite::Mixer),
    ("attn_q_a", InputSite::Mixer),
    ("attn_q_b", InputSite::QueryLatent),
    ("attn_kv_a_mqa", InputSite::Mixer),
    ("attn_kv_b", InputSite::KvLatent),
    ("attn_k", InputSite::Mixer),
    ("attn_v", InputSite::Mixer),
    ("attn_qkv", InputSite::Mixer),
    ("attn_output", InputSite::MixerOut),
    ("ffn_gate", InputSite::Ffn),
    ("ffn_up", InputSite::Ffn),
    ("ffn_gate_inp", InputSite::Ffn),
    ("ffn_gate_inp_shexp", InputSite::Ffn),
    ("ffn_gate_shexp", InputSite::Ffn),
    ("ffn_up_shexp", InputSite::Ffn),
    ("ffn_gate_up_shexp", InputSite::Ffn),
    ("ffn_down", InputSite::FfnOut),
    ("ffn_down_shexp", InputSite::SharedOut),
    ("ffn_gate_exps", InputSite::Expert),
    ("ffn_up_exps", InputSite::Expert),
    ("ffn_gate_up_exps", InputSite::Expert),
    ("ffn_down_exps", InputSite::ExpertOut),
];
/// Names of the head; the second where it is the embedding.
const HEAD: &str = "output";
const TIED_HEAD: &str = "token_embd";
/// What the names of matrices end with.
const WEIGHT: &str = ".weight";
/// Tensors that a matrix has in GGUF.
const SUMS: &str = ".in_sum2";
const COUNTS: &str = ".counts";
/// Least bytes of an entry of the older format: three numbers, a letter, a value.
const LEAST_ENTRY: u64 = 3 * 4 + 1 + 4;
/// What is found where no matrix of the model got a row.
const ZEROS: &str = "zeros alone: make it again with a text that goes through the model";
/// Longest name that an older file may begin with.
const LONGEST_NAME: u32 = 256;

/// A file as it is.
#[derive(Debug, Default)]
pub struct Imatrix<'a> {
    /// By matrix.
    entries: BTreeMap<&'a str, Entry<'a>>,
    /// Tokens read, and those of a window; 0 where the file does not say.
    pub tokens: u64,
    pub window: u32,
    /// Names of what is no sum or count.
    others: Vec<&'a str>,
}

/// What a file has of a matrix, or of those of all experts. Little-endian `f32`.
#[derive(Debug)]
struct Entry<'a> {
    /// Sums of squares, `[matrices, cols]`.
    sums: &'a [[u8; 4]],
    /// Rows that they are of, `[matrices]`, or one number for all.
    counts: Vec<f32>,
}

/// A file as statistics of a model.
#[derive(Debug, Default)]
pub struct Mapped {
    /// By key.
    pub inputs: InputStats,
    /// Names that the model has no matrix for.
    pub ignored: Vec<String>,
}

/// Whether a file begins like one of the newer format.
pub fn is_gguf(file: &[u8]) -> bool {
    file.starts_with(MAGIC)
}

/// Whether a file begins like the older format: a number of entries, then a name.
pub fn is_older(file: &[u8]) -> bool {
    let mut bytes = Bytes::new(file);
    let mut name = || {
        bytes.positive("entries")?;
        let len = bytes.positive("letters")?.min(LONGEST_NAME + 1);
        bytes.take(u64::from(len))
    };
    name().is_ok_and(|name| {
        name.len() <= LONGEST_NAME as usize && name.iter().all(u8::is_ascii_graphic)
    })
}

impl<'a> Imatrix<'a> {
    /// Reads a file of the older format: the number of entries; for each the length of its name,
    /// the name, calls, values, and as many sums of squares, to be divided by the calls; then
    /// perhaps the number of windows, then perhaps the text's name. Numbers are `i32`.
    ///
    /// # Errors
    /// What contradicts the layout, expected and found.
    pub fn older(file: &'a [u8]) -> Result<Self, Refusal> {
        let mut bytes = Bytes::new(file);
        let count = bytes.positive("entries")?;
        bytes.check_room(u64::from(count), LEAST_ENTRY, "entries")?;
        let mut read = Self::default();
        for at in 0..count {
            let entry = older_entry(&mut bytes);
            let (name, entry) = entry.map_err(|e| e.at(format_args!("entry {at}")))?;
            if read.entries.insert(name, entry).is_some() {
                return Err(mismatch(format_args!("one entry `{name}`"), "two"));
            }
        }
        if bytes.left() > 0 {
            bytes.u32()?;
        }
        if bytes.left() > 0 {
            let len = bytes.u32()?;
            bytes.take(u64::from(len))?;
        }
        match bytes.left() {
            0 => Ok(read),
            more => Err(mismatch("the end of the file", format_args!("{more} bytes more"))),
        }
    }

    /// Reads GGUF: `NAME.in_sum2` `[cols, matrices]` and `NAME.counts` `[1, matrices]`.
    ///
    /// # Errors
    /// What contradicts the layout, expected and found.
    pub fn gguf(file: &'a [u8]) -> Result<Self, Refusal> {
        let header = Header::parse(file, 0)?;
        let found = header.text("general.type").unwrap_or("none");
        if found != "imatrix" {
            return Err(mismatch("imatrix", found).at("general.type"));
        }
        let number = |key| header.whole(key).and_then(|n| u32::try_from(n).ok());
        let window = number("imatrix.chunk_size").unwrap_or_default();
        let chunks = number("imatrix.chunk_count").unwrap_or_default();
        let tokens = u64::from(chunks) * u64::from(window);
        let tensors = tensors(file, &header)?;
        let mut read = Self { tokens, window, ..Self::default() };
        for (&tensor, &bytes) in &tensors {
            let other = |name: &str, suffix| {
                let other = tensors.get(format!("{name}{suffix}").as_str()).copied();
                other.ok_or_else(|| mismatch(format_args!("{name}{suffix} too"), "none").at(tensor))
            };
            if let Some(name) = tensor.strip_suffix(SUMS) {
                let counts = floats(other(name, COUNTS)?)
                    .iter()
                    .map(|b| f32::from_le_bytes(*b));
                let entry = Entry { sums: floats(bytes), counts: counts.collect() };
                read.entries.insert(name, entry);
            } else if let Some(name) = tensor.strip_suffix(COUNTS) {
                other(name, SUMS)?;
            } else {
                read.others.push(tensor);
            }
        }
        Ok(read)
    }

    /// What it says of the inputs of a model.
    ///
    /// # Errors
    /// Of a file at `path`: matrices that the model has of another size or not at all, values that
    /// are no sums of squares, nothing that the model has.
    pub fn map(&self, path: &Path, spec: &ModelSpec) -> Result<Mapped> {
        let ignored = self.others.iter().map(|name| (*name).to_owned());
        let mut mapped = Mapped { ignored: ignored.collect(), ..Mapped::default() };
        for (name, entry) in &self.entries {
            let Some((layer, site)) = key(name, spec) else {
                mapped.ignored.push((*name).to_owned());
                continue;
            };
            let added = mapped.add(entry, (layer, site), spec);
            added.map_err(|e| FormatError::tensor(path, name, e))?;
        }
        if mapped.inputs.is_empty() {
            let known = self.entries.len() + self.others.len() - mapped.ignored.len();
            let found = if known > 0 { ZEROS } else { "none" };
            let detail = mismatch("importance of the model's matrices", found);
            return Err(FormatError::file(path, detail).into());
        }
        Ok(mapped)
    }
}

/// The bytes of each tensor, little-endian `f32`.
fn tensors<'a>(
    file: &'a [u8],
    header: &Header<'a>,
) -> Result<BTreeMap<&'a str, &'a [u8]>, Refusal> {
    let values = |tensor: &gguf::Tensor<'a>| {
        let (name, found) = (tensor.name, tensor.kind);
        if found != Ggml::F32 {
            return Err(mismatch("F32", found.name()).at(name));
        }
        let mut bytes = Bytes::new(file);
        bytes.take(tensor.offset)?;
        Ok((name, bytes.take(tensor.len)?))
    };
    header.tensors.iter().map(values).collect()
}

fn older_entry<'a>(bytes: &mut Bytes<'a>) -> Result<(&'a str, Entry<'a>), Refusal> {
    let len = bytes.positive("letters")?;
    let name = bytes.text(u64::from(len))?;
    let mut rest = || {
        let calls = bytes.positive("calls")?;
        let values = bytes.positive("values")?;
        let sums = floats(bytes.take(4 * u64::from(values))?);
        Ok::<_, Refusal>(Entry { sums, counts: vec![calls as f32] })
    };
    Ok((name, rest().map_err(|e| e.at(name))?))
}

const fn floats(bytes: &[u8]) -> &[[u8; 4]] {
    bytes.as_chunks().0
}

/// The layer and input of a matrix; none for names that are not known.
fn key(name: &str, spec: &ModelSpec) -> Option<(Option<u32>, InputSite)> {
    let name = name.strip_suffix(WEIGHT)?;
    if name == HEAD || name == TIED_HEAD && spec.tie_word_embeddings {
        return Some((None, InputSite::Head));
    }
    let (layer, name) = name.strip_prefix("blk.")?.split_once('.')?;
    let (_, site) = LAYER.iter().find(|(known, _)| *known == name)?;
    Some((Some(layer.parse().ok()?), *site))
}

impl Mapped {
    fn add(
        &mut self,
        entry: &Entry<'_>,
        (layer, site): (Option<u32>, InputSite),
        spec: &ModelSpec,
    ) -> Result<(), Refusal> {
        let of_experts = matches!(site, InputSite::Expert | InputSite::ExpertOut);
        let layers = layer.and_then(|layer| spec.layers.get(layer as usize));
        let experts = layers
            .filter(|_| of_experts)
            .map_or(0, LayerSpec::num_experts);
        let expert = of_experts.then_some(0);
        let first = InputKey { layer, expert, site };
        let cols = first.inputs(spec).ok_or("the model has no such matrix")?;
        for (at, means) in (0..).zip(entry.means(experts.max(1) as usize, cols as usize)?) {
            let key = InputKey { expert: expert.map(|_| at), ..first };
            // Matrices of a place have the same inputs: any of them will do.
            if let Some(means) = means {
                self.inputs.insert(key, Hessian::Diagonal(means));
            }
        }
        Ok(())
    }
}

impl Entry<'_> {
    /// Mean squares of the inputs of each of `matrices`, `[cols]`; none where there were none.
    fn means(&self, matrices: usize, cols: usize) -> Result<Vec<Option<Vec<f32>>>, Refusal> {
        let found = self.sums.len();
        if found != matrices * cols {
            return Err(mismatch(format_args!("{matrices} x {cols} inputs"), found));
        }
        let counts = self.counts.len();
        if counts != matrices && counts != 1 {
            return Err(mismatch(format_args!("{matrices} counts"), counts));
        }
        let shared = counts < matrices;
        let each = self.sums.chunks_exact(cols).enumerate();
        each.map(|(at, sums)| means(sums, self.counts[if shared { 0 } else { at }], shared))
            .collect()
    }
}

/// Mean squares, `[cols]`, of `count` rows; none where there were none. Where `count` is `shared`
/// with other matrices, llama.cpp writes it for each input of a matrix that got no row; older programs
/// write zeros, which the inputs of a matrix that is used never all are.
fn means(sums: &[[u8; 4]], count: f32, shared: bool) -> Result<Option<Vec<f32>>, Refusal> {
    if !(count.is_finite() && count >= 0.0) {
        return Err(mismatch("a number of rows", count));
    }
    let sums = sums.iter().map(|bytes| f32::from_le_bytes(*bytes));
    let wrong = |sum: &f32| !(sum.is_finite() && *sum >= 0.0);
    if let Some(sum) = sums.clone().find(wrong) {
        return Err(mismatch("finite sums of squares", sum));
    }
    let all = |value: f32| sums.clone().all(|sum| sum == value);
    if count == 0.0 || all(0.0) || shared && all(count) {
        return Ok(None);
    }
    let means: Vec<f32> = sums.map(|sum| sum / count).collect();
    // A count may be a denormal number.
    let finite = means.iter().all(|mean| mean.is_finite());
    finite
        .then_some(Some(means))
        .ok_or_else(|| mismatch("a number of rows", count))
}
