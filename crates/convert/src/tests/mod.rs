//! Whole conversions of small checkpoints.

mod calibrated;
mod compressed;
mod export;
mod failures;
mod flash_moe;
mod gguf;
mod mlx;
mod own_codes;
mod plans;
mod quantized;
mod resume;
mod sizes;
mod time;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicBool;

use shardwright_format::arch::Inventory;
use shardwright_format::checkpoint::{Checkpoint, header};
use shardwright_quant::{Float, narrow};
use shardwright_testing::{contents, copy_dir, fixture};

use crate::{
    Buffers, Calibration, ConversionReport, ConvertOptions, ExportDtype, ExportOptions, Plan,
    PlanOptions, Progress, Recipe, Result, convert,
};

/// Checkpoints that between them have every layout: one and two files, f16, bf16 and f32, fused
/// and transposed experts, a shared expert, biases, a tied head.
const CHECKPOINTS: &[&str] = &[
    "golden/llama3",
    "golden/llama-bias",
    "golden/qwen2_moe",
    "golden/qwen3-head",
    "golden/qwen3_moe",
    "golden/qwen3_moe-fused",
    "golden/qwen3_moe-fused-t",
    "golden/mixtral",
];

/// A checkpoint, what is in it, and a plan.
pub(crate) struct Case {
    pub(crate) checkpoint: Checkpoint,
    pub(crate) plan: Plan,
}

impl Case {
    #[allow(clippy::needless_pass_by_value)] // made for the call
    fn new(dir: &Path, recipe: &Recipe, options: PlanOptions) -> Result<Self> {
        let checkpoint = Checkpoint::open(dir)?;
        let inventory = Inventory::new(&checkpoint, None)?;
        let plan = Plan::new(&checkpoint, &inventory, recipe, &options)?;
        Ok(Self { checkpoint, plan })
    }

    pub(crate) fn from_fixture(name: &str, recipe: &str) -> Self {
        let recipe = Recipe::builtin(recipe).unwrap();
        Self::new(&fixture(name), &recipe, PlanOptions::default()).unwrap()
    }

    fn convert(&self, out: &Path, threads: usize) -> Result<ConversionReport> {
        let cancel = AtomicBool::new(false);
        self.run(out, &options(threads, false, &cancel), &|_| {})
    }

    fn resume(&self, out: &Path) -> Result<ConversionReport> {
        let cancel = AtomicBool::new(false);
        self.run(out, &options(2, true, &cancel), &|_| {})
    }

    fn run(
        &self,
        out: &Path,
        options: &ConvertOptions<'_>,
        progress: &dyn Fn(Progress),
    ) -> Result<ConversionReport> {
        convert(&self.plan, &self.checkpoint, out, options, progress)
    }
}

/// A Llama of one layer with a hidden size of 64, in one file.
struct Tiny {
    dtype: Float,
    intermediate: u64,
    /// Tensor, value and what it becomes.
    edits: Vec<(&'static str, usize, f32)>,
}

impl Default for Tiny {
    fn default() -> Self {
        Self { dtype: Float::F32, intermediate: 128, edits: Vec::new() }
    }
}

impl Tiny {
    fn write(&self, dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        let config = format!(
            r#"{{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 64,
              "hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
              "num_key_value_heads": 1, "intermediate_size": {}, "rms_norm_eps": 1e-5,
              "max_position_embeddings": 128, "rope_theta": 10000.0, "tie_word_embeddings": true,
              "hidden_act": "silu", "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "{}"}}"#,
            self.intermediate,
            match self.dtype {
                Float::F32 => "float32",
                Float::F16 => "float16",
                Float::Bf16 => "bfloat16",
            }
        );
        std::fs::write(dir.join("config.json"), config).unwrap();
        let wide = self.intermediate;
        let layer = |name: &str| format!("model.layers.0.{name}.weight");
        let tensors = vec![
            ("model.embed_tokens.weight".to_owned(), vec![64, 64]),
            (layer("input_layernorm"), vec![64]),
            (layer("self_attn.q_proj"), vec![64, 64]),
            (layer("self_attn.k_proj"), vec![32, 64]),
            (layer("self_attn.v_proj"), vec![32, 64]),
            (layer("self_attn.o_proj"), vec![64, 64]),
            (layer("post_attention_layernorm"), vec![64]),
            (layer("mlp.gate_proj"), vec![wide, 64]),
            (layer("mlp.up_proj"), vec![wide, 64]),
            (layer("mlp.down_proj"), vec![64, wide]),
            ("model.norm.weight".to_owned(), vec![64]),
        ];
        let path = dir.join("model.safetensors");
        let listed = tensors
            .iter()
            .map(|(name, shape)| (name.as_str(), self.dtype, shape.as_slice()));
        let mut bytes = header::encode(&path, &[], listed).unwrap();
        for (at, (name, shape)) in tensors.iter().enumerate() {
            let mut values = noise(at as u32 + 1, shape.iter().product::<u64>() as usize);
            for (_, index, value) in self
                .edits
                .iter()
                .filter(|(edited, ..)| name.contains(edited))
            {
                values[*index] = *value;
            }
            let start = bytes.len();
            bytes.resize(start + values.len() * self.dtype.size(), 0);
            narrow(self.dtype, &values, &mut bytes[start..]);
        }
        std::fs::write(path, bytes).unwrap();
    }
}

/// Numbers between -1 and 1 that look random.
fn noise(seed: u32, count: usize) -> Vec<f32> {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12345);
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    std::iter::repeat_with(next).take(count).collect()
}

/// So that small checkpoints take every path.
pub const SMALL_BUFFERS: Buffers = Buffers {
    source_tile: 8 << 10,
    weights_tile: 1 << 10,
    record_limit: 12 << 10,
    gather_limit: 48 << 10,
    copy_block: 16 << 10,
    source_block: Some(4 << 10),
    hessians: 64 << 10,
};

/// As [`SMALL_BUFFERS`].
pub const SMALL_EXPORT: ExportOptions = ExportOptions {
    dtype: ExportDtype::F32,
    requantize: false,
    file_limit: 5_000_000_000,
    tile: 1 << 15,
    whole_limit: 16 << 10,
};

fn options(threads: usize, resume: bool, cancel: &AtomicBool) -> ConvertOptions<'_> {
    ConvertOptions {
        threads,
        resume,
        cancel,
        calibration: Calibration::None,
        buffers: SMALL_BUFFERS,
    }
}
