"""Judge exports to MLX by mlx-lm itself: python benches/judge_mlx.py SHARDWRIGHT [--only TEXT] [--published]

Of every golden checkpoint that mlx-lm has a model for: convert (`--for mlx`, 4 bits in groups of 32), export to MLX and to Hugging Face form,
and compare: does mlx-lm load it (strictly); are the weights it dequantizes those of the other export, bit for bit; do its logits, computed
in 32 bits, agree with transformers' of the other export. With `--published` the same for the configurations in `fixtures/published`, with weights
as `fixtures/make_published.py` generates them. Needs what fixtures/requirements.txt names.
"""
import argparse
import json
import re
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import mlx.core as mx
import numpy as np
import torch
import transformers
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model
from safetensors import safe_open
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parent.parent
sys.path += [str(ROOT / "fixtures"), str(ROOT / "fixtures" / "goldens")]
from make_published import class_of, generated, read_config  # noqa: E402
from mlx_forms import dequantized, turned_back  # noqa: E402

TOKENS = [1, 17, 42, 99, 7, 3, 200, 55, 128, 64, 31, 12]


def goldens():
    for path in sorted((ROOT / "fixtures/golden").glob("*/config.json")):
        if not re.search("-(mlx|fp8|int4|awq|gptq|mxfp4|packed)", path.parent.name):
            yield path.parent.name, path.parent


def numbers(text):
    for part in text.split(","):
        first, _, last = part.partition("-")
        yield from range(int(first), int(last or first) + 1)


def names_of(pattern):
    parts = pattern.split(".")
    ranged = [i for i, part in enumerate(parts) if re.fullmatch(r"[0-9,-]+", part)]
    todo = [parts]
    for i in ranged:
        todo = [[*p[:i], str(n), *p[i + 1:]] for p in todo for n in numbers(p[i])]
    return [".".join(p) for p in todo]


def published(scratch):
    for path in sorted((ROOT / "fixtures/published").glob("*.json")):
        case = json.loads(path.read_text())
        folder = scratch / "published" / path.stem.replace(" ", "_").replace(",", "")
        folder.mkdir(parents=True)
        folder.joinpath("config.json").write_text(json.dumps(case["saved" if isinstance(case.get("saved"), dict) and FORM == "saved" else "config"]))
        tensors = {}
        for line in case["tensors"]:
            pattern, shape, dtype = line.split(" ")
            for name in names_of(pattern):
                dims = [int(n) for n in shape.split("x")]
                value = generated(name, dims)
                value = value if isinstance(value, torch.Tensor) else torch.tensor(np.array(value, dtype=np.float32)).reshape(dims)
                tensors[name] = value.to(torch.float32 if dtype == "F32" else torch.bfloat16).contiguous()
        save_file(tensors, str(folder / "model.safetensors"))
        yield path.stem, folder


FORM = "config"


def run(*args):
    done = subprocess.run([str(a) for a in args], capture_output=True, text=True)
    return done.returncode, (done.stderr or done.stdout).strip()


def judge(binary, name, folder, scratch):
    work = Path(tempfile.mkdtemp(dir=scratch))
    bundle, as_mlx, as_hf = work / "bundle", work / "mlx", work / "hf"
    code, said = run(binary, "convert", folder, "-o", bundle, *CONVERT)
    if code:
        return f"convert: {said}"
    code, said = run(binary, "export", bundle, "--to", "mlx", "-o", as_mlx)
    if code:
        return f"refused: {said}"
    code, said = run(binary, "verify", as_mlx, "--against", bundle)
    equal = "verify equal" if code == 0 else f"VERIFY {said[-300:]}"
    run(binary, "export", bundle, "--to", "hf", "-o", as_hf)
    try:
        model, config = load_model(as_mlx, lazy=False, strict=True)
    except Exception as error:
        return f"LOAD {type(error).__name__}: {str(error)[:300]} ({equal})"
    params = dict(tree_flatten(model.parameters()))
    model.set_dtype(mx.float32)
    try:
        found = np.array(model(mx.array([TOKENS])).astype(mx.float32))[0]
    except Exception as error:
        return f"FORWARD {type(error).__name__}: {str(error)[:300]} ({equal})"
    loaded = json.loads((as_hf / "config.json").read_text())
    if loaded["model_type"] == "kimi_k2":
        # Which transformers knows under this name alone.
        loaded["model_type"] = "deepseek_v3"
        (as_hf / "config.json").write_text(json.dumps(loaded))
    try:
        cls = class_of(loaded)
        reference = cls.from_pretrained(as_hf, dtype=torch.float32).eval()
        with torch.no_grad():
            model_of_text = reference.language_model if loaded["model_type"] == "llama4" else reference
            expected = model_of_text(torch.tensor([TOKENS])).logits[0].numpy()
    except Exception as error:
        return f"TRANSFORMERS {type(error).__name__}: {str(error)[:200]} ({equal})"
    off = np.abs(found - expected).max() / np.abs(expected).max()
    same = (found.argmax(1) == expected.argmax(1)).mean()
    values = compare(loaded, params, config, as_hf)
    return f"logits off by {off:.1e} of the largest, top {same:.0%}, {values}, {equal}"


def compare(loaded, params, config, as_hf):
    """mlx-lm's dequantized weights, under the checkpoint's names, against the other export's."""
    kind = loaded["model_type"]
    # Norms have one added only beside delta nets.
    base = dict(model_type=kind if re.match("qwen3_(next|5)", kind) else kind.replace("qwen3", "qwen"))
    plain = dequantized(params, config)
    try:
        back = turned_back(base, plain)
    except Exception as error:
        return f"(names not turned back: {error})"
    theirs = {}
    for path in as_hf.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            theirs.update({key: file.get_tensor(key) for key in file.keys()})
    same = [key for key in back if key in theirs]
    equal = sum(torch.equal(back[key].reshape(theirs[key].shape).float(), theirs[key].float()) for key in same)
    return f"{equal} of {len(same)} tensors equal ({len(back)} in mlx)"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary")
    parser.add_argument("--only", default="")
    parser.add_argument("--published", action="store_true")
    parser.add_argument("--saved", action="store_true")
    parser.add_argument("--convert", default="--for mlx --bits 4 --group-size 32 --align 4KiB")
    args = parser.parse_args()
    global CONVERT, FORM
    CONVERT = args.convert.split()
    FORM = "saved" if args.saved else "config"
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        for name, folder in published(Path(scratch)) if args.published else goldens():
            if args.only in name:
                print(f"{name}: {judge(args.binary, name, folder, scratch)}", flush=True)


main()
