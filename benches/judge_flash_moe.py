#!/usr/bin/env python3
"""Reads a folder of flash-moe as its loader does, and compares every value with a checkpoint of `export --to hf`.

    judge_flash_moe.py FOLDER CHECKPOINT      needs numpy, safetensors and torch

Offsets of a record come from config.json alone, as in the loader's compute_expert_offsets; tensors of the dense
part are found by name in model_weights.json.
"""
import json
import sys
from pathlib import Path

import numpy as np
from safetensors import safe_open

GROUP = 64


def bf16(data, shape):
    wide = np.frombuffer(data, "<u2").astype(np.uint32) << 16
    return wide.view(np.float32).reshape(shape)


def codes(data, bits, rows, cols):
    """Lowest bits first, row after row."""
    words = np.frombuffer(data, "<u4").reshape(rows, cols * bits // 32)
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    return ((words[..., None] >> shifts) & ((1 << bits) - 1)).reshape(rows, cols).astype(np.float32)


def affine(weight, scales, biases, bits, rows, cols):
    scales, biases = (np.repeat(bf16(part, (rows, cols // GROUP)), GROUP, axis=1) for part in (scales, biases))
    exact = codes(weight, bits, rows, cols).astype(np.float64) * scales + biases
    return exact.astype(np.float32)


class Dense:
    """One file, or two that follow each other."""

    def __init__(self, folder):
        self.list = json.loads((folder / "model_weights.json").read_text())["tensors"]
        whole = folder / "model_weights.bin"
        names = [whole] if whole.exists() else [folder / f"model_weights_{i}.bin" for i in range(2)]
        self.data = b"".join(name.read_bytes() for name in names)
        self.seen = set()

    def part(self, name, dtype):
        about = self.list[name]
        assert about["dtype"] == dtype and about["offset"] % 64 == 0, name
        self.seen.add(name)
        return self.data[about["offset"]:about["offset"] + about["size"]], about["shape"]

    def matrix(self, module, rows, cols):
        weight, scales, biases = (self.part(f"{module}.{part}", dtype)[0]
                                  for part, dtype in (("weight", "U32"), ("scales", "BF16"), ("biases", "BF16")))
        return affine(weight, scales, biases, 4, rows, cols)


class Checkpoint:
    def __init__(self, root):
        self.files = [safe_open(path, "pt") for path in sorted(root.glob("*.safetensors"))]
        self.of = {name: file for file in self.files for name in file.keys()}
        self.prefix = "model.language_model." if any("language_model" in name for name in self.of) else "model."

    def get(self, name):
        if name != "lm_head.weight":
            name = self.prefix + name
        return self.of[name].get_tensor(name).float().numpy()

    def expert(self, layer, expert):
        """Gate and up, then down: of a stack of all experts, or of tensors for each."""
        at = f"layers.{layer}.mlp.experts."
        if self.prefix + at + "gate_up_proj" in self.of:
            return self.get(f"{at}gate_up_proj")[expert], self.get(f"{at}down_proj")[expert]
        gate, up, down = (self.get(f"{at}{expert}.{name}_proj.weight") for name in ("gate", "up", "down"))
        return np.concatenate([gate, up]), down


def records(folder, text, bits):
    hidden, wide = text["hidden_size"], text["moe_intermediate_size"]
    shapes = [(wide, hidden), (wide, hidden), (hidden, wide)]
    size = sum(rows * cols * bits // 8 + 2 * rows * cols // GROUP * 2 for rows, cols in shapes)
    for layer in range(text["num_hidden_layers"]):
        data = (folder / f"layer_{layer:02}.bin").read_bytes()
        assert len(data) == size * text["num_experts"], (layer, len(data), size)
        for expert in range(text["num_experts"]):
            at, values = expert * size, []
            for rows, cols in shapes:
                lengths = [rows * cols * bits // 8] + 2 * [rows * cols // GROUP * 2]
                parts = []
                for length in lengths:
                    parts.append(data[at:at + length])
                    at += length
                values.append(affine(*parts, bits, rows, cols))
            yield layer, expert, values


def main():
    folder, checkpoint = Path(sys.argv[1]), Checkpoint(Path(sys.argv[2]))
    text = json.loads((folder / "config.json").read_text())["text_config"]
    dense, exact, rounded, worst = Dense(folder), 0, 0, 0.0

    def matrix(module, name):
        nonlocal exact
        expected = checkpoint.get(name)
        assert np.array_equal(dense.matrix(module, *expected.shape), expected), module
        exact += 1

    def floats(name, more=0.0):
        nonlocal exact, rounded, worst
        expected = checkpoint.get(name.removeprefix("model.")) + np.float32(more)
        dtype = "F32" if name.endswith("A_log") else "BF16"
        data, shape = dense.part(name, dtype)
        found = np.frombuffer(data, "<f4") if dtype == "F32" else bf16(data, shape)
        found, expected = found.reshape(-1), expected.reshape(-1)
        same = np.array_equal(found, expected)
        exact, rounded = exact + same, rounded + (not same)
        worst = max(worst, float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30)))

    matrix("model.embed_tokens", "embed_tokens.weight")
    matrix("lm_head", "lm_head.weight")
    floats("model.norm.weight", 1.0)
    for layer, kind in enumerate(text["layer_types"]):
        at = f"layers.{layer}."
        modules = ["mlp.gate", "mlp.shared_expert_gate"]
        modules += [f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down")]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            floats(f"model.{at}{norm}.weight", 1.0)
        if kind == "full_attention":
            modules += [f"self_attn.{name}_proj" for name in "qkvo"]
            floats(f"model.{at}self_attn.q_norm.weight", 1.0)
            floats(f"model.{at}self_attn.k_norm.weight", 1.0)
        else:
            modules += [f"linear_attn.{name}" for name in ("in_proj_qkv", "in_proj_z", "in_proj_b", "in_proj_a", "out_proj")]
            for name in ("conv1d.weight", "A_log", "dt_bias", "norm.weight"):
                floats(f"model.{at}linear_attn.{name}")
        for module in modules:
            matrix(f"model.{at}{module}", f"{at}{module}.weight")
    assert dense.seen == set(dense.list), set(dense.list) - dense.seen

    bits = 4 if (folder / "packed_experts").is_dir() else 2
    packed, experts = folder / ("packed_experts" if bits == 4 else "packed_experts_2bit"), 0
    for layer, expert, (gate, up, down) in records(packed, text, bits):
        fused, last = checkpoint.expert(layer, expert)
        assert np.array_equal(np.concatenate([gate, up]), fused), (layer, expert)
        assert np.array_equal(down, last), (layer, expert)
        experts += 1
    print(f"{exact} tensors and {experts} experts of {bits} bits exactly; {rounded} rounded to bf16, by {worst:.5f} at most")


if __name__ == "__main__":
    main()
