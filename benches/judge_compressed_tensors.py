"""Judge exports to compressed-tensors by compressed-tensors and transformers: python benches/judge_compressed_tensors.py SHARDWRIGHT [--only TEXT] [CHECKPOINT...]

Of every checkpoint (default: golden ones of transformers' linear layers, and fixture-2m): convert (`--for compressed-tensors`, in three ways), export it so and to
Hugging Face form, and compare. Every packed module is unpacked by compressed-tensors' own function: its values must be those of the other export, bit for bit. Where
codes are symmetric, transformers loads the directory, and its logits in 32 bits must be those of the other export. Needs what fixtures/requirements.txt names.
"""
import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch
import transformers
from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32
from safetensors import safe_open

ROOT = Path(__file__).resolve().parent.parent
GOLDENS = ["llama3", "llama-bias", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral"]
WAYS = {
    "4 bits, whole zeros": "--bits 4 --group-size 32",
    "4 bits, symmetric": "--bits 4 --group-size 32 --zeros symmetric",
    "8 and 3 bits": "--bits 3 --group-size 32 --set attention.*=q8g32 --zeros symmetric",
}
TOKENS = torch.tensor([[1, 17, 42, 99, 7, 3, 100, 55, 64, 31, 12]])


def run(*args):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True)
    return done.returncode, (done.stderr or done.stdout).strip()


def tensors(folder):
    held = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            held.update({name: file.get_tensor(name) for name in file.keys()})
    return held


def values(held, module):
    """What compressed-tensors' own unpacking makes of a module, in 32 bits; and whether it has zeros of its own."""
    packed, scale = held[f"{module}.weight_packed"], held[f"{module}.weight_scale"].float()
    rows, cols = held[f"{module}.weight_shape"].tolist()
    bits = packed.shape[1] * 32 // cols
    codes = unpack_from_int32(packed, bits, torch.Size([rows, cols])).float()
    zero = held.get(f"{module}.weight_zero_point")
    if zero is None:
        zeros = torch.zeros_like(scale)
    else:
        zeros = unpack_from_int32(zero, bits, torch.Size(scale.shape), packed_dim=0).float()
    group = cols // scale.shape[1]
    spread = [part.repeat_interleave(group, dim=1) for part in (scale, zeros)]
    return (codes - spread[1]) * spread[0], zero is not None


def logits(folder):
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        return model(TOKENS).logits[0]


def judge(binary, checkpoint, options, work):
    bundle, packed, plain = work / "bundle", work / "ct", work / "hf"
    for args in (
        ["convert", checkpoint, "-o", bundle, *options.split(), "--for", "compressed-tensors", "--align", "4KiB"],
        ["export", bundle, "--to", "compressed-tensors", "-o", packed],
        ["export", bundle, "--to", "hf", "-o", plain],
        ["verify", packed, "--against", checkpoint],
    ):
        code, said = run(binary, *args)
        if code:
            return f"{args[0]}: {said[-300:]}"
    ours, theirs = tensors(packed), tensors(plain)
    modules = [name.removesuffix(".weight_packed") for name in ours if name.endswith(".weight_packed")]
    found = {module: values(ours, module) for module in modules}
    own = [module for module in modules if f"{module}.weight" in theirs]
    equal = sum(torch.equal(found[module][0], theirs[f"{module}.weight"].float()) for module in own)
    said = f"{equal} of {len(own)} modules equal to the bit ({len(modules)} packed)"
    if any(zeros for _, zeros in found.values()):
        return said + ", with zeros of their own"
    try:
        a, b = logits(packed), logits(plain)
    except Exception as error:  # noqa: BLE001: what a loader says is a result
        return f"{said}, LOAD {type(error).__name__}: {str(error)[:200]}"
    off = ((a - b).abs().max() / b.abs().max()).item()
    return f"{said}, logits off by {off:.1e} of the largest, top {(a.argmax(1) == b.argmax(1)).float().mean():.0%}"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("checkpoints", nargs="*", type=Path)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    folders = args.checkpoints or [ROOT / "fixtures/golden" / name for name in GOLDENS] + [ROOT / "fixtures/fixture-2m"]
    for folder in folders:
        for way, options in WAYS.items():
            if args.only in folder.name:
                with tempfile.TemporaryDirectory() as work:
                    print(json.dumps({"checkpoint": folder.name, "way": way, "found": judge(args.binary, folder, options, Path(work))}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
