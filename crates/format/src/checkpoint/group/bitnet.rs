//! `bitnet`: -1, 0 and 1 in bytes of four rows, `X.weight` beside one number in `X.weight_scale`.

use serde_json::Value;
use shardwright_quant::Float;

use super::Grouping;
use super::setting::shown;
use crate::checkpoint::files::StoredTensor;
use crate::decoder::Decoder;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::refusal::{Refusal, mismatch};

/// Rows in a byte.
const ROWS: u64 = 4;
/// What the names of scales have after those of the weights.
const SCALE: &str = "_scale";

/// Its parameters.
pub(super) struct BitNet {
    /// Values are divided by the scale, as the older of the two kinds of layers has it.
    divided: bool,
}

impl BitNet {
    pub(super) fn parse(config: &Value) -> Result<Self, Refusal> {
        let found = config.get("linear_class");
        let divided = match found.map(|class| class.as_str().unwrap_or_default()) {
            None | Some("bitlinear") => true,
            Some("autobitlinear") => false,
            _ => {
                let found = shown(found);
                return Err(
                    mismatch("\"bitlinear\" or \"autobitlinear\"", found).at("`linear_class`")
                );
            }
        };
        if config
            .get("use_rms_norm")
            .is_some_and(|norm| *norm != Value::Bool(false))
        {
            return Err(mismatch("false", "another").at("`use_rms_norm`"));
        }
        Ok(Self { divided })
    }

    /// Takes in `X.weight` `[rows / 4, cols]`.
    pub(super) fn take(
        &self,
        grouping: &mut Grouping<'_>,
        name: &str,
        stored: &StoredTensor,
    ) -> Result<()> {
        if stored.dtype != Dtype::U8 || !name.ends_with(".weight") {
            return Ok(());
        }
        let [rows, cols] = stored.shape[..] else {
            let detail = mismatch("[rows / 4, columns]", format_args!("{:?}", stored.shape));
            return Err(grouping.refused(name, detail));
        };
        let types = [Float::Bf16, Float::F16, Float::F32].map(Dtype::Float);
        let scale = format!("{name}{SCALE}");
        let found = grouping.part(name, &scale, &types)?;
        grouping.check_shape(name, &scale, &found.shape, &[vec![1], vec![]])?;
        let scale_dtype = found.dtype.float().unwrap_or(Float::F32);
        // A quotient has more digits than its divisor.
        let dtype = if self.divided { Float::F32 } else { scale_dtype };
        let shape = vec![rows.saturating_mul(ROWS), cols];
        let codes = name.to_owned();
        let decoder = Decoder::Ternary { codes, scale, scale_dtype, divided: self.divided };
        grouping.add(name.to_owned(), dtype, shape, decoder)
    }
}

/// The weight that a scale of this name belongs to.
pub(super) fn whole_of(name: &str) -> Option<String> {
    let weight = name.strip_suffix(SCALE)?;
    weight.ends_with(".weight").then(|| weight.to_owned())
}
