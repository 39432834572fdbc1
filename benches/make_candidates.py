"""What ladder-real.sh judges, made by others' code: make_candidates.py FORM CHECKPOINT ... OUT

    gguf CHECKPOINT TEMPLATE TYPE OUT    a GGUF file with the metadata of TEMPLATE and the checkpoint's weights, by gguf-py; TYPE F16, Q4_0 or Q8_0
    mlx  CHECKPOINT OUT                  mlx-lm's 4 bits in groups of 64
    gptq CHECKPOINT OUT                  the layout of GPTQ in 4 bits, rounded to nearest, as the packer of the fixtures writes it
"""
import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np


def tensors(checkpoint):
    """Name and values in 32 bits of each tensor, one after the other."""
    from safetensors import safe_open
    for path in sorted(Path(checkpoint).glob("model*.safetensors")):
        with safe_open(path, "pt") as held:
            for name in held.keys():
                yield name, held.get_tensor(name)


def gguf_values(name, values, config):
    """Values as llama.cpp has them: rows of llama's heads in turns, one added to Gemma's norms."""
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config.get("num_key_value_heads") or config["num_attention_heads"]}
    match = re.search(r"\.(q_proj|k_proj)\.weight$", name)
    if config["model_type"] in ("llama", "mistral") and match:
        count = heads[match[1]]
        return values.reshape(count, 2, len(values) // count // 2, -1).swapaxes(1, 2).reshape(values.shape)
    return values + 1 if config["model_type"].startswith("gemma") and "norm" in name else values


def gguf(checkpoint, template, kind, out):
    import gguf as g
    config = json.loads((Path(checkpoint) / "config.json").read_text())
    reader = g.GGUFReader(template)
    arch = reader.get_field("general.architecture").contents()
    writer = g.GGUFWriter(out, arch)
    for field in reader.fields.values():
        if field.name not in ("general.architecture", "general.file_type", "general.quantization_version") and not field.name.startswith("GGUF."):
            sub = field.types[-1] if field.types[0] == g.GGUFValueType.ARRAY else None
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=sub)
    of_arch = next(a for a, n in g.MODEL_ARCH_NAMES.items() if n == arch)
    names = g.get_tensor_name_map(of_arch, config["num_hidden_layers"])
    for name, values in tensors(checkpoint):
        values = gguf_values(name, values.float().numpy(), config)
        fits = values.ndim == 2 and values.shape[-1] % 32 == 0
        to = g.GGMLQuantizationType[kind if fits else "F16" if values.ndim == 2 else "F32"]
        writer.add_tensor(names.get_name(name, try_suffixes=(".weight", ".bias")), g.quants.quantize(values, to), raw_dtype=to)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def mlx(checkpoint, out):
    from mlx_lm import convert
    convert(hf_path=checkpoint, mlx_path=out, quantize=True, q_bits=4, q_group_size=64)


def gptq(checkpoint, out):
    sys.path.insert(0, str(Path(__file__).parent.parent / "fixtures"))
    import safetensors.torch
    from goldens import packed
    made = {}
    for name, w in tensors(checkpoint):
        if w.dim() == 2 and ".layers." in name:
            parts, _ = packed.gptq(name, w.float().numpy())
            made.update({f"{name.removesuffix('weight')}{part}": t.contiguous() for part, t in parts.items()})
        else:
            made[name] = w
    Path(out).mkdir()
    for path in Path(checkpoint).glob("*.json"):
        if not path.name.endswith("index.json"):
            shutil.copy(path, out)
    config = json.loads((Path(out) / "config.json").read_text()) | {"quantization_config": packed.GPTQ_CONFIG}
    (Path(out) / "config.json").write_text(json.dumps(config, indent=2))
    safetensors.torch.save_file(made, Path(out) / "model.safetensors", metadata={"format": "pt"})


if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in ("gguf", "mlx", "gptq"):
        sys.exit(__doc__)
    globals()[sys.argv[1]](*sys.argv[2:])
