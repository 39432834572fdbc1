//! `ModelOpt`: FP8 as [`super::fp8`] has it (with blocks, `X.weight_scale` may have a dimension of 1 after each of
//! its own), or NVFP4: `X.weight` of pairs of codes beside
//! `X.weight_scale` per group and `X.weight_scale_2` for the tensor. Which it is each weight shows.

use serde_json::Value;
use shardwright_quant::Float;
use shardwright_quant::foreign::NVFP4_GROUP;

use super::Grouping;
use super::fp8::Fp8;
use super::setting::shown;
use crate::checkpoint::files::StoredTensor;
use crate::decoder::Decoder;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::refusal::{Refusal, mismatch};

/// What the names of weights, of scales of groups and of those of a tensor end in.
const WEIGHT: &str = ".weight";
const OF_GROUPS: &str = "weight_scale";
const OF_TENSOR: &str = "weight_scale_2";
/// The member that names what was done, and what of it is read. Source: vLLM, `quantization/modelopt.py`.
pub(super) const ALGORITHM: &str = "quant_algo";
const ALGORITHMS: [&str; 6] =
    ["FP8", "FP8_PER_CHANNEL_PER_TOKEN", "FP8_PB_WO", "NVFP4", "W4A16_NVFP4", "MIXED_PRECISION"];
/// Where its own file has the description, which some put into `config.json` as it is.
const WITHIN: &str = "quantization";

/// The description in what `config.json` has of it.
pub(super) fn described(config: &Value) -> &Value {
    let within = config.get(WITHIN);
    within
        .filter(|within| within.get(ALGORITHM).is_some())
        .unwrap_or(config)
}

/// # Errors
/// Another algorithm.
pub(super) fn check(config: &Value) -> Result<(), Refusal> {
    let found = config.get(ALGORITHM);
    let name = found.and_then(Value::as_str).unwrap_or_default();
    if ALGORITHMS
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known))
    {
        return Ok(());
    }
    let known = ALGORITHMS.join(", ");
    Err(mismatch(format_args!("one of {known} of ModelOpt"), shown(found))
        .at(format_args!("`{ALGORITHM}`")))
}

/// Takes in the weights `X.weight`.
pub(super) fn take(grouping: &mut Grouping<'_>, name: &str, stored: &StoredTensor) -> Result<()> {
    let module = name.strip_suffix(WEIGHT);
    let Some(module) = module.filter(|_| stored.dtype == Dtype::U8) else {
        // Scales of groups are FP8 too, and no weights.
        let scales = name.ends_with(OF_GROUPS);
        return if scales { Ok(()) } else { Fp8::default().take(grouping, name, stored) };
    };
    let [scales, of_tensor] = [OF_GROUPS, OF_TENSOR].map(|part| format!("{module}.{part}"));
    let found = grouping.part(name, &of_tensor, &[Dtype::Float(Float::F32)])?;
    let one = [vec![], vec![1]];
    grouping.check_shape(name, &of_tensor, &found.shape, &one)?;
    let tensor_scale = Some(of_tensor);
    grouping.add_nvfp4((name, name), stored, scales, (tensor_scale, false))
}

/// The weights that scales of this name belong to.
pub(super) fn whole_of(name: &str) -> Option<String> {
    let module = name.strip_suffix(OF_TENSOR);
    module
        .map(|module| format!("{module}weight"))
        .or_else(|| Fp8::whole_of(name))
}

impl Grouping<'_> {
    /// Takes in pairs of codes `codes`, the tensor `name` once they are decoded; the scale for all of
    /// it, if there is one, multiplies or `divided` divides.
    pub(super) fn add_nvfp4(
        &mut self,
        (codes, name): (&str, &str),
        stored: &StoredTensor,
        scales: String,
        (tensor_scale, divided): (Option<String>, bool),
    ) -> Result<()> {
        let [lead @ .., rows, bytes] = &stored.shape[..] else {
            let detail = mismatch("a matrix", format_args!("shape {:?}", stored.shape));
            return Err(self.refused(codes, detail));
        };
        let cols = bytes.saturating_mul(2);
        if !cols.is_multiple_of(NVFP4_GROUP) {
            let detail = mismatch(
                format_args!("rows of whole groups of {NVFP4_GROUP}"),
                format_args!("{cols} codes"),
            );
            return Err(self.refused(codes, detail));
        }
        let found = self.part(codes, &scales, &[Dtype::F8E4m3])?;
        let shape = [lead, &[*rows, cols / NVFP4_GROUP]].concat();
        self.check_shape(codes, &scales, &found.shape, &[shape])?;
        let codes = codes.to_owned();
        let decoder = Decoder::Nvfp4 { codes, scales, tensor_scale, divided };
        self.add(name.to_owned(), Float::F32, [lead, &[*rows, cols]].concat(), decoder)
    }
}
