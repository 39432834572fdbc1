//! One validator, called on every manifest read and before every manifest written.
//!
//! What it accepts cannot make a reader leave the directory, overlap two shards, or find another
//! shape than the model's.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ALIGNMENTS, Calibration, DenseShard, ExpertShards, FORMAT, FileEntry, FileKind, MANIFEST_FILE,
    MAX_EXPERT_ENTRIES, Manifest, REPORT_FILE, VERSION, strict,
};
use crate::io::stays_inside;
use crate::layout::{place_dense, place_expert};
use crate::refusal::{Refusal, mismatch};
use crate::role::Role;
use crate::unit::{SourceView, TensorEntry, Unit, UnitLayout, whole_matrix};

type Check = Result<(), Refusal>;

impl Manifest {
    /// Checks everything that the manifest alone can tell.
    ///
    /// # Errors
    /// The first contradiction: where, what was expected, what was found.
    pub fn validate(&self) -> Check {
        expect("format", &FORMAT, &self.format.as_str())?;
        expect("version", &VERSION, &self.version)?;
        if !self.alignment.is_power_of_two() || !ALIGNMENTS.contains(&self.alignment) {
            let range =
                format!("a power of two from {} to {}", ALIGNMENTS.start(), ALIGNMENTS.end());
            return Err(mismatch(range, self.alignment).at("alignment"));
        }
        strict::check_values(&self.to_value(), 0)?;
        self.model.validate()?;
        self.calibration
            .as_ref()
            .map_or(Ok(()), Calibration::validate)?;
        let layers = self.model.layers.len();
        let excerpt = self.checkpoint.excerpt;
        excerpt.map_or(Ok(()), |excerpt| excerpt.validate(layers))?;
        let files = self.check_files()?;
        self.check_dense_units()?;
        self.check_sparse_layers()?;
        self.check_record()?;
        self.check_left_out()?;
        let mut claims = Claims::default();
        for shard in &self.dense {
            self.check_dense(shard, &mut claims)?;
        }
        self.check_expert_entries()?;
        for experts in &self.experts {
            self.check_experts(experts, &mut claims)?;
        }
        claims.check(&files, self.alignment)
    }

    fn check_files(&self) -> Result<BTreeMap<&str, &FileEntry>, Refusal> {
        let (mut files, mut folded) = (BTreeMap::new(), BTreeMap::new());
        let mut last = "";
        for file in &self.files {
            check_path(&file.path)?;
            // One file on disks that do not tell upper case from lower.
            if let Some(other) = folded.insert(file.path.to_lowercase(), &file.path)
                && *other != file.path
            {
                let path = &file.path;
                return Err(format!("files: `{other}` and `{path}` differ in case alone").into());
            }
            if file.path.as_str() <= last {
                return Err(format!("files: `{}` is repeated or out of order", file.path).into());
            }
            last = &file.path;
            check_kind(file)?;
            files.insert(file.path.as_str(), file);
        }
        if !files.contains_key(REPORT_FILE) {
            return Err(mismatch(format_args!("`{REPORT_FILE}`"), "none").at("files"));
        }
        Ok(files)
    }

    fn check_dense_units(&self) -> Check {
        let layers = self.model.layers.len() as u32;
        let expected = std::iter::once(Unit::Embedding)
            .chain((0..layers).map(Unit::Layer))
            .chain([Unit::Head]);
        let fewest = layers as usize + 2;
        if self.dense.len() < fewest {
            expect("dense: shards", &fewest, &self.dense.len())?;
        }
        for (unit, shard) in expected.zip(&self.dense) {
            if unit != shard.unit {
                return Err(mismatch(unit, shard.unit).at("dense"));
            }
        }
        let mut free = Unit::EXTRAS.into_iter();
        match self
            .extras()
            .iter()
            .find(|s| !free.any(|unit| unit == s.unit))
        {
            None => Ok(()),
            Some(shard) => Err(mismatch(
                "vision, mtp and indexer after the head, each at most once and in this order",
                shard.unit,
            )
            .at("dense")),
        }
    }

    /// The checkpoint's files and the tensors left out are sorted, none of them twice.
    fn check_record(&self) -> Check {
        let record = &self.checkpoint;
        let ascending = |what: &str, names: Vec<&String>| match names
            .windows(2)
            .find(|pair| pair[0] >= pair[1])
        {
            None => Ok(()),
            Some(pair) => {
                let wrong = format!("`{}` is repeated or out of order", pair[1]);
                Err(Refusal::from(wrong).at(format_args!("checkpoint: {what}")))
            }
        };
        ascending("files", record.files.iter().map(|f| &f.name).collect())?;
        ascending("ignored", record.ignored.iter().map(|i| &i.tensor).collect())
    }

    /// Nothing of the text model is left out for its role, and nothing that a part holds.
    fn check_left_out(&self) -> Check {
        let parts = self.extras().iter().flat_map(|shard| shard.tensors.iter());
        let stored: BTreeSet<_> = parts.map(|entry| entry.source.tensor.as_str()).collect();
        for ignored in &self.checkpoint.ignored {
            let tensor = &ignored.tensor;
            match ignored.role {
                Some(role) if !role.is_extra() => {
                    return Err(mismatch("role vision, mtp or indexer", role)
                        .at(format_args!("checkpoint: ignored: `{tensor}`")));
                }
                _ if stored.contains(tensor.as_str()) => {
                    return Err(format!(
                        "checkpoint: ignored: `{tensor}`: expected a tensor that no shard holds"
                    )
                    .into());
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn check_sparse_layers(&self) -> Check {
        let layers = self.model.layers.iter().zip(0u32..);
        let sparse: Vec<_> = layers
            .filter(|(l, _)| l.num_experts() > 0)
            .map(|(_, i)| i)
            .collect();
        let layers = self.experts.chunk_by(|a, b| a.layer == b.layer);
        let found: Vec<_> = layers.map(|entries| entries[0].layer).collect();
        if sparse != found {
            return Err(mismatch(format_args!("layers {sparse:?}"), format_args!("{found:?}"))
                .at("experts"));
        }
        Ok(())
    }

    fn check_expert_entries(&self) -> Check {
        let mut layers = self.experts.chunk_by(|a, b| a.layer == b.layer);
        layers.try_for_each(|entries| {
            let layer = entries[0].layer;
            let count = self.model.layers[layer as usize].num_experts();
            let checked = check_entries(entries, count);
            checked.map_err(|e| e.at(format_args!("layer {layer} experts")))
        })
    }

    fn check_dense<'a>(&'a self, shard: &'a DenseShard, claims: &mut Claims<'a>) -> Check {
        let place = shard.unit.to_string();
        self.check_tensors(shard.unit, &shard.tensors, shard.len)?;
        claims.add(&shard.file, place, shard.offset, shard.len)
    }

    fn check_experts<'a>(&'a self, experts: &'a ExpertShards, claims: &mut Claims<'a>) -> Check {
        let ExpertShards { layer, stride, len, .. } = *experts;
        let place = format!("layer {layer} experts");
        self.check_tensors(experts.first(), &experts.tensors, len)?;
        if len > stride {
            return Err(format!("{place}: {len} bytes in a stride of {stride}").into());
        }
        for expert in experts.numbers() {
            let extent = experts
                .extent(expert)
                .ok_or_else(|| format!("{place}: stride too large"))?;
            let place = Unit::Expert { layer, expert }.to_string();
            claims.add(&experts.file, place, extent.offset, extent.len)?;
        }
        Ok(())
    }

    /// The tensors must be the model's, in order of use, or whole tensors of the part; each where
    /// the layout rule puts it.
    fn check_tensors(&self, unit: Unit, tensors: &[TensorEntry], len: u64) -> Check {
        match unit.extra_role() {
            Some(role) => check_part(unit, role, tensors)?,
            None => self.check_shapes(unit, tensors)?,
        }
        let experts = match unit.layer() {
            Some(layer) if matches!(unit, Unit::Expert { .. }) => {
                self.model.layers[layer as usize].num_experts()
            }
            _ => 1,
        };
        for entry in tensors {
            check_source(entry, experts.into())
                .map_err(|e| e.at(format_args!("{unit} {}", entry.role)))?;
        }
        let placed = place_again(unit, tensors).map_err(|e| format!("{unit}: {e}"))?;
        for (right, entry) in placed.tensors.iter().zip(tensors) {
            expect(&format!("{unit} {}: offset", entry.role), &right.offset, &entry.offset)?;
        }
        expect(&format!("{unit}: length"), &placed.len, &len)
    }

    fn check_shapes(&self, unit: Unit, tensors: &[TensorEntry]) -> Check {
        let expected = self.model.tensors(unit);
        let names = |list: Vec<_>| format!("{list:?}");
        let (roles, found): (Vec<_>, Vec<_>) = (
            expected.iter().map(|t| t.role.name()).collect(),
            tensors.iter().map(|t| t.role.name()).collect(),
        );
        if roles != found {
            return Err(mismatch(names(roles), names(found)).at(unit));
        }
        for (shape, entry) in expected.iter().zip(tensors) {
            let place = format!("{unit} {}: shape", entry.role);
            expect(&place, &[shape.rows, shape.cols], &[entry.rows, entry.cols])?;
        }
        Ok(())
    }
}

/// The entries of a layer hold each of its `count` experts once: all in one entry that names none, or some in each,
/// ascending, by their first.
fn check_entries(entries: &[ExpertShards], count: u32) -> Check {
    if entries.len() > MAX_EXPERT_ENTRIES {
        let most = format_args!("at most {MAX_EXPERT_ENTRIES} entries");
        return Err(mismatch(most, entries.len()));
    }
    let mut seen = BTreeSet::new();
    for entry in entries {
        let (named, hashes) = (entry.experts.as_ref().map(Vec::len), entry.blake3.len());
        match named {
            Some(_) if entries.len() == 1 => {
                return Err("one entry: expected no list of experts".into());
            }
            None if entries.len() > 1 => {
                return Err("several entries: expected a list of experts in each".into());
            }
            Some(0) => return Err(mismatch("experts in each entry", "none")),
            _ => expect("hashes", &named.unwrap_or(count as usize), &hashes)?,
        }
        let mut last = None;
        for expert in entry.numbers() {
            let twice = !seen.insert(expert);
            if expert >= count || twice || last.replace(expert) >= Some(expert) {
                let what = "experts of the layer, ascending, each in one entry";
                return Err(mismatch(what, expert));
            }
        }
    }
    if seen.len() != count as usize {
        return Err(mismatch(format_args!("{count} experts"), seen.len()));
    }
    let firsts: Vec<_> = entries.iter().map(|entry| entry.numbers().next()).collect();
    if !firsts.is_sorted() {
        return Err("entries: expected those with lower experts first".into());
    }
    Ok(())
}

/// A part holds whole tensors of the checkpoint, all of its role, in the order of their names.
fn check_part(unit: Unit, role: Role, tensors: &[TensorEntry]) -> Check {
    if tensors.is_empty() {
        return Err(mismatch("tensors", "none").at(unit));
    }
    let mut last = "";
    for entry in tensors {
        let source = &entry.source;
        let place = |what: &str| format!("{unit} `{}`: {what}", source.tensor);
        expect(&place("role"), &role.name(), &entry.role.name())?;
        if source.tensor.as_str() <= last {
            return Err(place("is repeated or out of order").into());
        }
        last = &source.tensor;
        expect(&place("shape"), &whole_matrix(&source.shape), &Some([entry.rows, entry.cols]))?;
        let steps = [source.start, source.row_stride, source.col_stride, source.expert_stride];
        expect(&place("start and strides"), &[0, entry.cols, 1, 0], &steps)?;
    }
    Ok(())
}

/// Every value that an entry claims to come from must lie inside its tensor, whose size is a number; of
/// a matrix of another bundle, where that had it from too.
fn check_source(entry: &TensorEntry, experts: u64) -> Check {
    check_view(entry, &entry.source, experts).map_err(|e| e.at("source"))?;
    match &entry.source.origin {
        None => Ok(()),
        Some(origin) if origin.origin.is_some() => Err("source: origin: has one itself".into()),
        Some(origin) => {
            let checked = check_view(entry, origin, experts);
            checked.map_err(|e| e.at("source: origin"))
        }
    }
}

fn check_view(entry: &TensorEntry, source: &SourceView, experts: u64) -> Check {
    let size = source.dtype.size() as u64;
    let len = source
        .shape
        .iter()
        .try_fold(size, |len, dim| len.checked_mul(*dim));
    let steps = [
        (entry.rows, source.row_stride),
        (entry.cols, source.col_stride),
        (experts, source.expert_stride),
    ];
    let last = steps.iter().try_fold(source.start, |at, (count, stride)| {
        at.checked_add(count.checked_sub(1)?.checked_mul(*stride)?)
    });
    match (len, last) {
        (Some(len), Some(last)) if last < len / size => check_apart(steps),
        _ => Err(format!("leaves its tensor of shape {:?}", source.shape).into()),
    }
}

/// No two values come from one place: each stride, the smallest first, steps over all that those before it reach. Experts
/// without a stride are tensors of their own. `steps` are counts and strides that stay inside a tensor.
fn check_apart(mut steps: [(u64, u64); 3]) -> Check {
    if steps[2].1 == 0 {
        steps[2].0 = 1;
    }
    steps.sort_by_key(|(_, stride)| *stride);
    let mut reached = 1;
    for (count, stride) in steps.into_iter().filter(|(count, _)| *count > 1) {
        if stride < reached {
            let expected =
                format_args!("a stride of at least {reached}, so that no values overlap");
            return Err(mismatch(expected, stride));
        }
        reached += (count - 1) * stride;
    }
    Ok(())
}

fn place_again(
    unit: Unit,
    tensors: &[TensorEntry],
) -> Result<UnitLayout, shardwright_quant::EncodingError> {
    match unit {
        Unit::Expert { .. } => place_expert(tensors.to_vec()),
        _ => place_dense(tensors.to_vec()),
    }
}

fn expect<T: PartialEq + std::fmt::Debug>(place: &str, expected: &T, found: &T) -> Check {
    if expected == found {
        return Ok(());
    }
    Err(mismatch(format_args!("{expected:?}"), format_args!("{found:?}")).at(place))
}

/// Refuses names that could leave the bundle or stand for another file.
pub(crate) fn check_path(path: &str) -> Check {
    if path.to_lowercase() == MANIFEST_FILE || !stays_inside(path) {
        return Err(format!("files: `{path}` is not a path inside the bundle").into());
    }
    Ok(())
}

/// Nothing holds a report's contents against the model, so only the report may be one.
fn check_kind(file: &FileEntry) -> Check {
    let (is_report, named) = (file.kind == FileKind::Report, file.path == REPORT_FILE);
    if is_report == named {
        return Ok(());
    }
    let expected = if named { "the kind" } else { "another kind than" };
    Err(mismatch(format_args!("{expected} report"), file.kind.name())
        .at(format_args!("files: `{}`", file.path)))
}

/// Which bytes of which file each shard claims.
#[derive(Default)]
struct Claims<'a>(BTreeMap<&'a str, Vec<(u64, u64, String)>>);

impl<'a> Claims<'a> {
    fn add(&mut self, file: &'a str, place: String, offset: u64, len: u64) -> Check {
        let end = offset
            .checked_add(len)
            .ok_or_else(|| format!("{place}: range too large"))?;
        self.0.entry(file).or_default().push((offset, end, place));
        Ok(())
    }

    /// Every claimed range lies in a shard file, aligned, apart from the others, and every shard
    /// file ends where its last shard's padding does.
    fn check(mut self, files: &BTreeMap<&str, &FileEntry>, alignment: u64) -> Check {
        for (name, ranges) in &mut self.0 {
            let file = files.get(name).filter(|f| f.kind == FileKind::Shards);
            let file = file.ok_or_else(|| format!("`{name}` is not a shard file of the bundle"))?;
            ranges.sort_unstable();
            let end = check_ranges(ranges, alignment)?;
            if Some(file.size) != end.checked_next_multiple_of(alignment) {
                let found = file.size;
                return Err(mismatch(format_args!("{end} rounded up to {alignment}"), found)
                    .at(format_args!("`{name}`: size")));
            }
        }
        let unclaimed =
            |f: &&&FileEntry| f.kind == FileKind::Shards && !self.0.contains_key(f.path.as_str());
        match files.values().find(unclaimed) {
            Some(file) => Err(format!("`{}` is a shard file without shards", file.path).into()),
            None => Ok(()),
        }
    }
}

/// The end of the last range.
fn check_ranges(ranges: &[(u64, u64, String)], alignment: u64) -> Result<u64, Refusal> {
    let mut last = 0;
    for (start, end, place) in ranges {
        if start % alignment != 0 {
            return Err(format!("{place}: offset {start} is not a multiple of {alignment}").into());
        }
        if *start < last {
            return Err(
                format!("{place}: offset {start} overlaps the shard that ends at {last}").into()
            );
        }
        last = *end;
    }
    Ok(last)
}
