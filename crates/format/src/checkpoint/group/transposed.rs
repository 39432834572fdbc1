//! GPTQ, AWQ and what `AutoRound` packs like either: `X.qweight` with inputs as rows, beside `X.qzeros` and `X.scales`.

use regex::Regex;
use serde_json::Value;
use shardwright_quant::Float;
use shardwright_quant::foreign::word_unit;

use super::Grouping;
use super::setting::{number, shown};
use crate::checkpoint::files::StoredTensor;
use crate::decoder::Decoder;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::refusal::{Refusal, mismatch};

/// What the name of codes ends in.
const CODES: &str = ".qweight";
/// What names of other parts end in.
const ENDINGS: &[&str] = &[".qzeros", ".scales", ".g_idx"];
/// Types of scales.
const SCALE_TYPES: &[Dtype] =
    &[Dtype::Float(Float::F16), Dtype::Float(Float::Bf16), Dtype::Float(Float::F32)];

/// The names of the layout of codes that `GPTQModel` reads under either of its keys, and of these what is
/// read here: others are made for the kernels of one program.
const GPTQ_KEYS: &[&str] = &["checkpoint_format", "format"];
const GPTQ_LAYOUTS: &[&str] = &["gptq", "gptq_v2"];
/// The same of AWQ, whose first programs say `version`.
const AWQ_KEYS: &[&str] = &["version", "checkpoint_format", "format"];
const AWQ_LAYOUTS: &[&str] = &["gemm"];
/// Names of a width, and of a group's columns; `AutoAWQ` and llm-awq have the second.
const BITS: [&str; 2] = ["bits", "w_bit"];
const GROUP_SIZE: [&str; 2] = ["group_size", "q_group_size"];

/// How `AutoRound` packs by the name of its packing, in which kernels may follow that read it.
const PACKINGS: &[(&str, Packing)] = &[
    ("auto_round:auto_gptq", Packing::GPTQ),
    ("auto_round:gptq", Packing::GPTQ),
    ("auto_gptq", Packing::GPTQ),
    ("gptq", Packing::GPTQ),
    ("auto_round:gptqmodel", Packing::GPTQ_V2),
    ("auto_round", Packing::GPTQ_V2),
    ("auto_round:auto_awq", Packing::Awq),
    ("auto_round:awq", Packing::Awq),
    ("auto_awq", Packing::Awq),
    ("awq", Packing::Awq),
];
const KERNELS: &[&str] = &["exllamav2", "exllamav1", "tritonv2", "triton", "cuda", "gemm"];
/// How the names of its types begin that have other scales, which it packs under the same names.
const MICROSCALED: [&str; 2] = ["mx", "nv"];

/// Parameters of either.
pub(super) struct Transposed {
    width: Width,
    /// Those of modules that have their own, by patterns of which the first that fits counts.
    modules: Vec<(Regex, Width)>,
    packing: Packing,
}

#[derive(Clone, Copy)]
struct Width {
    bits: u8,
    /// None for one group of all columns.
    group_size: Option<u64>,
}

#[derive(Clone, Copy)]
enum Packing {
    Gptq { zeros_stored_minus_one: bool },
    Awq,
}

impl Packing {
    /// `AutoGPTQ`'s, of which zero points have one less, and `GPTQModel`'s, which has them as they are.
    const GPTQ: Self = Self::Gptq { zeros_stored_minus_one: true };
    const GPTQ_V2: Self = Self::Gptq { zeros_stored_minus_one: false };
}

/// Sizes of one tensor.
struct Extent {
    rows: u64,
    cols: u64,
    groups: u64,
    /// Columns of a group.
    step: u64,
}

impl Transposed {
    pub(super) fn gptq(config: &Value) -> Result<Self, Refusal> {
        let zeros_stored_minus_one = layout(config, GPTQ_KEYS, GPTQ_LAYOUTS)? != Some("gptq_v2");
        let packing = Packing::Gptq { zeros_stored_minus_one };
        let width = Width::parse(config, None, packing)?;
        let modules = dynamic(config, width, packing)?;
        let mut widths = modules.iter().map(|(_, own)| *own).chain([width]);
        if zeros_stored_minus_one && widths.any(|width| width.bits == 3) {
            refuse_other_zeros(config)?;
        }
        Ok(Self { width, modules, packing })
    }

    /// Refuses another form of GPTQ than this one in another description of the same codes.
    pub(super) fn check_beside(&self, other: &Value) -> Result<(), Refusal> {
        let Packing::Gptq { zeros_stored_minus_one } = self.packing else { return Ok(()) };
        let own = GPTQ_LAYOUTS[usize::from(!zeros_stored_minus_one)];
        match layout(other, GPTQ_KEYS, GPTQ_LAYOUTS)? {
            Some(found) if found != own => {
                let found = format_args!("{found:?}: make both say what the codes are");
                Err(mismatch(format_args!("{own:?}, as config.json has it"), found)
                    .at("the form of GPTQ"))
            }
            _ => Ok(()),
        }
    }

    /// `AutoRound`'s configuration of tensors that are packed as the others do.
    pub(super) fn auto_round(config: &Value) -> Result<Self, Refusal> {
        let packing = auto_round_packing(config)?;
        let data_type = config.get("data_type").and_then(Value::as_str);
        if let Some(found) =
            data_type.filter(|found| MICROSCALED.iter().any(|begin| found.starts_with(begin)))
        {
            return Err(mismatch("\"int\"", format_args!("{found:?}")).at("`data_type`"));
        }
        let width = Width::parse(config, None, packing)?;
        let mut modules = Vec::new();
        let own = config.get("extra_config").and_then(Value::as_object);
        for (name, own) in own.into_iter().flatten() {
            let floats = own.get("bits").and_then(Value::as_u64) == Some(16);
            if !floats {
                let own = Width::parse(own, Some(width), packing)
                    .map_err(|e| e.at(format_args!("`extra_config`: `{name}`")))?;
                modules.push((pattern(&format!("{}$", regex::escape(name)))?, own));
            }
        }
        Ok(Self { width, modules, packing })
    }

    pub(super) fn awq(config: &Value) -> Result<Self, Refusal> {
        layout(config, AWQ_KEYS, AWQ_LAYOUTS)?;
        let width = Width::parse(config, None, Packing::Awq)?;
        Ok(Self { width, modules: Vec::new(), packing: Packing::Awq })
    }

    pub(super) fn take(
        &self,
        grouping: &mut Grouping<'_>,
        name: &str,
        stored: &StoredTensor,
    ) -> Result<()> {
        let Some(module) = name.strip_suffix(CODES) else { return Ok(()) };
        grouping.part(name, name, &[Dtype::I32])?;
        let part = |part: &str| format!("{module}.{part}");
        let called = grouping.files.module_in_files(name);
        let width = self.modules.iter().find(|(pattern, _)| {
            pattern.is_match(module) || called.is_some_and(|called| pattern.is_match(called))
        });
        let width = width.map_or(self.width, |(_, width)| *width);
        let size = self.size(grouping, name, width, stored)?;
        let (scales, zeros) = (part("scales"), part("qzeros"));
        let bits = width.bits;
        let found = grouping.part(name, &scales, SCALE_TYPES)?;
        let scale_dtype = found.dtype.float().unwrap_or(Float::F32);
        grouping.check_shape(name, &scales, &found.shape, &[vec![size.groups, size.rows]])?;
        let (codes, words) = word_unit(bits);
        let found = grouping.part(name, &zeros, &[Dtype::I32])?;
        let shape = vec![size.groups, size.rows.div_ceil(codes) * words];
        grouping.check_shape(name, &zeros, &found.shape, &[shape])?;
        let (codes, group_size) = (name.to_owned(), size.step);
        let decoder = match self.packing {
            Packing::Awq => {
                Decoder::Awq { codes, zero_points: zeros, scales, scale_dtype, group_size }
            }
            Packing::Gptq { zeros_stored_minus_one } => {
                let index = part("g_idx");
                let held = grouping.files.stored.contains_key(&index);
                if held {
                    let found = grouping.part(name, &index, &[Dtype::I32])?;
                    grouping.check_shape(name, &index, &found.shape, &[vec![size.cols]])?;
                }
                let groups = held.then_some(index);
                let zero_points = zeros;
                Decoder::Gptq {
                    codes,
                    zero_points,
                    scales,
                    scale_dtype,
                    groups,
                    bits,
                    group_size,
                    zeros_stored_minus_one,
                }
            }
        };
        let shape = vec![size.rows, size.cols];
        grouping.add(part("weight"), Float::F32, shape, decoder)
    }

    fn size(
        &self,
        grouping: &Grouping<'_>,
        name: &str,
        width: Width,
        stored: &StoredTensor,
    ) -> Result<Extent> {
        let (codes, words) = word_unit(width.bits);
        let [first, second] = stored.shape[..] else {
            let detail = mismatch("two dimensions", format_args!("{:?}", stored.shape));
            return Err(grouping.refused(name, detail));
        };
        if !first.is_multiple_of(words) && matches!(self.packing, Packing::Gptq { .. }) {
            let bits = width.bits;
            let detail = mismatch(
                format_args!("rows in threes for codes of {bits} bits"),
                format_args!("{first} rows"),
            );
            return Err(grouping.refused(name, detail));
        }
        let (rows, cols) = match self.packing {
            Packing::Gptq { .. } => (second, (first / words).saturating_mul(codes)),
            Packing::Awq => (second.saturating_mul(codes), first),
        };
        let group_size = width.group_size.unwrap_or(cols).max(1);
        Ok(Extent { rows, cols, groups: cols.div_ceil(group_size), step: group_size })
    }
}

impl Width {
    /// What `config` says, and where it says nothing `default`.
    fn parse(config: &Value, default: Option<Self>, packing: Packing) -> Result<Self, Refusal> {
        let known: &[u64] = match packing {
            Packing::Gptq { .. } => &[2, 3, 4, 8],
            Packing::Awq => &[4],
        };
        let (bits, columns) = (given(config, BITS), given(config, GROUP_SIZE));
        let bits = match (config.get(bits), default) {
            (None, Some(default)) => default.bits,
            _ => number(config, bits, known)? as u8,
        };
        let group_size = match (config.get(columns), default) {
            (None, Some(default)) => default.group_size,
            _ => group_size(config, columns)?,
        };
        Ok(Self { bits, group_size })
    }
}

/// The key that a configuration has; the first where it has none.
fn given(config: &Value, keys: [&'static str; 2]) -> &'static str {
    let has = |key: &&str| config.get(*key).is_some_and(|found| !found.is_null());
    keys.into_iter().find(has).unwrap_or(keys[0])
}

/// The one of `known` that the configuration has under any of `keys`.
///
/// # Errors
/// Another layout of codes, and keys that disagree.
fn layout(
    config: &Value,
    keys: &[&'static str],
    known: &[&'static str],
) -> Result<Option<&'static str>, Refusal> {
    let mut named: Option<(&str, &'static str)> = None;
    for key in keys {
        let Some(found) = config.get(*key).filter(|found| !found.is_null()) else { continue };
        let at = format!("`{key}`");
        let text = found.as_str().unwrap_or_default();
        let name = known.iter().find(|name| text.eq_ignore_ascii_case(name));
        let name = *name.ok_or_else(|| {
            let known: Vec<_> = known.iter().map(|name| format!("{name:?}")).collect();
            let found = format_args!("{found}: take a copy of the model in that form");
            mismatch(known.join(" or "), found).at(&at)
        })?;
        match named {
            Some((first, other)) if other != name => {
                return Err(mismatch(format_args!("{other:?}, as `{first}` says"), found).at(at));
            }
            _ => named = Some((key, name)),
        }
    }
    Ok(named.map(|(_, name)| name))
}

/// `AutoRound`'s packing; before 0.4 it named a backend in its place, and later one says what runs it.
fn auto_round_packing(config: &Value) -> Result<Packing, Refusal> {
    let key = given(config, ["packing_format", "backend"]);
    let found = config.get(key);
    let name = found.and_then(Value::as_str).unwrap_or_default();
    let base = name
        .rsplit_once(':')
        .filter(|(_, kernel)| KERNELS.contains(kernel));
    let base = base.map_or(name, |(base, _)| base);
    let packing = PACKINGS.iter().find(|(known, _)| *known == base);
    packing.map(|(_, packing)| *packing).ok_or_else(|| {
        let known = "\"auto_round:auto_gptq\", \"auto_round:gptqmodel\" or \"auto_round:auto_awq\"";
        mismatch(known, shown(found)).at(format_args!("`{key}`"))
    })
}

/// Refuses what `GPTQModel` wrote of 3 bits in the older form: from zero points it takes ones in places
/// that are not those of its codes (`convert_gptq_v2_to_v1_format_module`), which no other program
/// puts back.
fn refuse_other_zeros(config: &Value) -> Result<(), Refusal> {
    let written_by = config.get("meta").and_then(|meta| meta.get("quantizer"));
    let written_by = written_by.map(Value::to_string).unwrap_or_default();
    if !written_by.to_lowercase().contains("gptqmodel") {
        return Ok(());
    }
    Err("`bits` 3 in `checkpoint_format` \"gptq\" as GPTQModel writes it has zero points that \
         others read otherwise; save it with format \"gptq_v2\""
        .into())
}

/// `GPTQModel`'s `dynamic`: by expressions that match from the start of a module's name, widths after
/// `+:` or nothing; after `-:` modules that are not quantized.
fn dynamic(
    config: &Value,
    default: Width,
    packing: Packing,
) -> Result<Vec<(Regex, Width)>, Refusal> {
    let mut modules = Vec::new();
    let listed = config.get("dynamic").and_then(Value::as_object);
    for (name, own) in listed.into_iter().flatten() {
        let left_out = name.starts_with("-:");
        let expression = name.trim_start_matches("-:").trim_start_matches("+:");
        let width = if left_out { Ok(default) } else { Width::parse(own, Some(default), packing) };
        let wrong = |e: Refusal| e.at(format_args!("`dynamic`: `{name}`"));
        modules.push((pattern(expression).map_err(wrong)?, width.map_err(wrong)?));
    }
    Ok(modules)
}

/// An expression that must match from the start of a name.
fn pattern(expression: &str) -> Result<Regex, Refusal> {
    Regex::new(&format!("^(?:{expression})")).map_err(|_| "expected a regular expression".into())
}

/// Columns of a group, which stand under `key`; none for -1.
fn group_size(config: &Value, key: &str) -> Result<Option<u64>, Refusal> {
    let found = config.get(key);
    match found.and_then(Value::as_i64) {
        Some(-1) => Ok(None),
        Some(size) if size > 0 => Ok(Some(size as u64)),
        _ => Err(mismatch("a number above 0 or -1", shown(found)).at(format_args!("`{key}`"))),
    }
}

/// The codes that a part of this name belongs to.
pub(super) fn whole_of(name: &str) -> Option<String> {
    let module = ENDINGS.iter().find_map(|ending| name.strip_suffix(ending));
    Some(format!("{}{CODES}", module?))
}
