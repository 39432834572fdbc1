#!/usr/bin/env python3
"""Reads a bundle by docs/FORMAT.md alone: an independent check that the text is enough.

    reader.py BUNDLE                      checks the bundle, prints one JSON line per tensor
    reader.py BUNDLE --equals CHECKPOINT  and compares every value with a checkpoint's tensors, exactly

Nothing but the standard library: BLAKE3, the safetensors header and rounding to f32 are written out
here. It is slow (about 1 MB/s of hashing) and meant for small bundles. "§" is a section of FORMAT.md.
Exit status: 0 the bundle is sound, 1 it is not (or values differ), 2 wrong use.
"""

import array
import hashlib
import json
import math
import os
import struct
import sys

PREFIX = b'{\n  "blake3": "'
HEX_LEN = 64
LIMIT = 1 << 64
REALS = set(
    "rms_norm_eps theta clip_qkv factor low_freq_factor high_freq_factor recipe beta_fast beta_slow attention_factor softmax_scale floor_scale"
    " short_factor long_factor embedding_multiplier residual_multiplier logits_scaling logits_cap score_cap attn_scale routed_scaling_factor limit alpha".split()
)


class Refused(Exception):
    """The bundle is not what FORMAT.md asks for."""


def check(condition, *words):
    if not condition:
        raise Refused(" ".join(str(word) for word in words))


# --- BLAKE3: the hash function, from its paper ---------------------------------------------------

IV = (0x6A09E667, 0xBB67AE85, 0x3C6EF372, 0xA54FF53A, 0x510E527F, 0x9B05688C, 0x1F83D9AB, 0x5BE0CD19)
PERMUTATION = (2, 6, 3, 10, 7, 0, 4, 13, 1, 11, 12, 5, 9, 14, 15, 8)
COLUMNS_AND_DIAGONALS = (
    (0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15),
    (0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14),
)  # fmt: skip
CHUNK_START, CHUNK_END, PARENT, ROOT = 1, 2, 4, 8
CHUNK_LEN, BLOCK_LEN = 1024, 64
MASK = 0xFFFFFFFF


def compress(cv, words, counter, length, flags):
    """The first eight words of the compression function's output."""
    v = [*cv, *IV[:4], counter & MASK, counter >> 32, length, flags]
    for _ in range(7):
        pair = iter(words)
        for a, b, c, d in COLUMNS_AND_DIAGONALS:
            va, vb, vc, vd = v[a], v[b], v[c], v[d]
            va = (va + vb + next(pair)) & MASK
            vd ^= va
            vd = (vd >> 16 | vd << 16) & MASK
            vc = (vc + vd) & MASK
            vb ^= vc
            vb = (vb >> 12 | vb << 20) & MASK
            va = (va + vb + next(pair)) & MASK
            vd ^= va
            vd = (vd >> 8 | vd << 24) & MASK
            vc = (vc + vd) & MASK
            vb ^= vc
            v[a], v[b], v[c], v[d] = va, (vb >> 7 | vb << 25) & MASK, vc, vd
        words = [words[p] for p in PERMUTATION]
    return [v[i] ^ v[i + 8] for i in range(8)]


def hash_chunk(data, number, root):
    cv, last = list(IV), max(len(data) - 1, 0) // BLOCK_LEN
    for block in range(last + 1):
        piece = data[block * BLOCK_LEN : (block + 1) * BLOCK_LEN]
        flags = CHUNK_START if block == 0 else 0
        flags |= (CHUNK_END | root) if block == last else 0
        words = struct.unpack("<16I", piece.ljust(BLOCK_LEN, b"\0"))
        cv = compress(cv, words, number, len(piece), flags)
    return cv


def hash_tree(data, number, root):
    """Chaining value of the chunks in `data`, the first of which is the file's chunk `number`."""
    if len(data) <= CHUNK_LEN:
        return hash_chunk(data, number, root)
    chunks = (len(data) + CHUNK_LEN - 1) // CHUNK_LEN
    left = 1 << ((chunks - 1).bit_length() - 1)
    cut = left * CHUNK_LEN
    words = hash_tree(data[:cut], number, 0) + hash_tree(data[cut:], number + left, 0)
    return compress(list(IV), words, 0, BLOCK_LEN, PARENT | root)


def blake3(data):
    return struct.pack("<8I", *hash_tree(bytes(data), 0, ROOT)).hex()


# --- Numbers (§5) --------------------------------------------------------------------------------


def f32(value):
    """A double rounded to f32, nearest with ties to even."""
    try:
        return struct.unpack("<f", struct.pack("<f", value))[0]
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")


def add_to_f32(a, b):
    """a + b rounded once to f32: the sum of doubles, its last bit made odd where it was cut."""
    total = a + b
    if total - total != 0:  # infinite
        return f32(total)
    rest = total - a
    error = (a - (total - rest)) + (b - rest)
    if error != 0:
        bits = struct.unpack("<q", struct.pack("<d", total))[0]
        if bits & 1 == 0:
            bits += 1 if (error > 0) == (total > 0) else -1
        total = struct.unpack("<d", struct.pack("<q", bits))[0]
    return f32(total)


def widen(dtype, data):
    """Little-endian values of a float type as an array of f32."""
    if dtype == "bf16":
        halves = array.array("H", data)
        swap(halves)
        words = array.array("I", (half << 16 for half in halves))
        return array.array("f", words.tobytes())
    if dtype == "f16":
        return array.array("f", (value for (value,) in struct.iter_unpack("<e", data)))
    values = array.array("f", data)
    swap(values)
    return values


def swap(values):
    if sys.byteorder == "big":
        values.byteswap()


SIZES = {"f32": 4, "f16": 2, "bf16": 2}
# Small floats may also have scales that are powers of two.
SCALE_SIZES = {**SIZES, "e8m0": 1}
KEYS = {
    "f32": ("kind",), "f16": ("kind",), "bf16": ("kind",),
    "affine": ("kind", "bits", "group_size", "scale_dtype"),
    "trellis": ("kind", "bits", "state_bits"),
    "ggml": ("kind", "type"),
    "minifloat": ("kind", "element", "group_size", "scale_dtype"),
}  # fmt: skip
# Bits of an element, those behind its point, and the exponent that stands for none.
ELEMENTS = {"e2m1": (4, 1, 1), "e4m3": (8, 3, 7), "e5m2": (8, 2, 15)}
# Columns, columns of a group, the code for zero, bits, bytes.
BLOCKS = {
    "q4_0": (32, 32, 8, 4, 18), "q4_1": (32, 32, None, 4, 20), "q5_0": (32, 32, 16, 5, 22),
    "q5_1": (32, 32, None, 5, 24), "q8_0": (32, 32, 0, 8, 34), "q2_k": (256, 16, None, 2, 84),
    "q3_k": (256, 16, 4, 3, 110), "q4_k": (256, 32, None, 4, 144), "q5_k": (256, 32, None, 5, 176),
    "q6_k": (256, 16, 32, 6, 210), "iq4_nl": (32, 32, 0, 4, 18), "iq4_xs": (256, 32, 0, 4, 136),
    "iq3_s": (256, 32, 0, 3, 110), "iq3_xxs": (256, 32, 0, 3, 98), "iq2_s": (256, 16, 0, 2, 82),
    "iq2_xs": (256, 16, 0, 2, 74), "iq2_xxs": (256, 32, 0, 2, 66),
}  # fmt: skip
# Of types with points: columns of a point, what scales are counted in, what a point's bits choose among.
POINTS = {
    "iq3_s": (4, 1, range(1, 16, 2)), "iq3_xxs": (4, 1 / 4, (4, 12, 20, 28, 36, 44, 52, 62)),
    "iq2_s": (8, 1 / 8, (8, 25, 43)), "iq2_xs": (8, 1 / 8, (8, 25, 43)), "iq2_xxs": (8, 1 / 8, (8, 25, 43)),
}  # fmt: skip
# What codes stand for in the other types that begin with an i.
LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def part_sizes(encoding, rows, cols):
    """Bytes of weight, scales and biases (§5)."""
    kind = encoding.get("kind") if isinstance(encoding, dict) else None
    check(kind in KEYS, "unknown encoding", encoding)
    fields(encoding, KEYS[kind], "encoding")
    if kind == "ggml":
        check(encoding["type"] in BLOCKS, "type", encoding["type"])
        columns, _, _, _, size = BLOCKS[encoding["type"]]
        check(cols % columns == 0, "blocks of", columns, "do not divide", cols)
        return rows * cols // columns * size, 0, 0
    if kind == "minifloat":
        group, size = encoding["group_size"], SCALE_SIZES.get(encoding["scale_dtype"])
        check(encoding["element"] in ELEMENTS, "element", encoding["element"])
        check(group in (16, 32, 64, 128), "group_size", group)
        check(size, "scale_dtype", encoding["scale_dtype"])
        check(cols % max(group, 32) == 0, "group_size", group, "does not divide", cols)
        return rows * cols * ELEMENTS[encoding["element"]][0] // 8, size * rows * (cols // group), 0
    if kind == "trellis":
        check(encoding["bits"] in (2, 3, 4), "bits", encoding["bits"])
        check(encoding["state_bits"] in (10, 12, 14, 16), "state_bits", encoding["state_bits"])
        check(cols > 0 and cols % 16 == 0, "a trellis of", cols, "columns")
        return -(-rows // 8) * cols * encoding["bits"], 2 * rows, 0
    if kind != "affine":
        return SIZES[kind] * rows * cols, 0, 0
    bits, group = encoding["bits"], encoding["group_size"]
    check(bits in (2, 3, 4, 6, 8), "bits", bits)
    check(group in (32, 64, 128), "group_size", group)
    check(encoding["scale_dtype"] in SIZES, "scale_dtype", encoding["scale_dtype"])
    check(cols % group == 0, "group_size", group, "does not divide", cols)
    scales = SIZES[encoding["scale_dtype"]] * rows * (cols // group)
    return rows * cols * bits // 8, scales, scales


def dequantize(encoding, rows, cols, data):
    """The values of a stored matrix, row-major f32 (§5.1, §5.2, §5.4)."""
    weight, scales, _ = part_sizes(encoding, rows, cols)
    if encoding["kind"] == "ggml":
        kind, values = encoding["type"], array.array("f")
        size = BLOCKS[kind][4]
        for at in range(0, len(data), size):
            values.extend(block_values(kind, data[at : at + size]))
        return values
    if encoding["kind"] == "trellis":
        scale = widen("bf16", data[weight : weight + scales])
        return rotated_back(trellis_values(encoding, rows, cols, data), scale, cols)
    if encoding["kind"] == "minifloat":
        return minifloat_values(encoding, rows * cols, data[:weight], data[weight:])
    if encoding["kind"] != "affine":
        return widen(encoding["kind"], data)
    bits, group = encoding["bits"], encoding["group_size"]
    scale = widen(encoding["scale_dtype"], data[weight : weight + scales])
    bias = widen(encoding["scale_dtype"], data[weight + scales :])
    values, tables = array.array("f"), {}
    group_bytes = group * bits // 8
    for g in range(len(scale)):
        pair = (scale[g], bias[g])
        if pair not in tables:
            tables[pair] = [add_to_f32(pair[0] * q, pair[1]) for q in range(1 << bits)]
        stream = int.from_bytes(data[g * group_bytes : (g + 1) * group_bytes], "little")
        table, mask = tables[pair], (1 << bits) - 1
        values.extend([table[stream >> (c * bits) & mask] for c in range(group)])
    return values


def element_value(element, code):
    """What a small float stands for (§5.5)."""
    bits, fraction, bias = ELEMENTS[element]
    sign = -1.0 if code >> (bits - 1) else 1.0
    exponent, rest = code >> fraction & (1 << (bits - 1 - fraction)) - 1, code & (1 << fraction) - 1
    if (element, code & 127) == ("e4m3", 127) or (element == "e5m2" and exponent == 31):
        return sign * math.inf if (element, rest) == ("e5m2", 0) else math.nan
    whole = rest if exponent == 0 else rest + (1 << fraction)
    return sign * math.ldexp(whole, max(exponent, 1) - bias - fraction)


def minifloat_values(encoding, count, codes, scales):
    """The values of small floats (§5.5)."""
    element, group = encoding["element"], encoding["group_size"]
    if encoding["scale_dtype"] == "e8m0":
        scale = [math.nan if power == 255 else math.ldexp(1.0, power - 127) for power in scales]
    else:
        scale = widen(encoding["scale_dtype"], scales)
    table = [element_value(element, code) for code in range(1 << ELEMENTS[element][0])]
    if element == "e2m1":
        halves = (codes[at : at + 16] for at in range(0, len(codes), 16))
        codes = [byte >> shift & 15 for half in halves for shift in (0, 4) for byte in half]
    # A product of 4 and 24 bits is exact in 64, and rounded once as it becomes 32.
    return array.array("f", [table[codes[at]] * scale[at // group] for at in range(count)])


def listed_points(kind):
    """The points of a type, which only the document lists (§12.6)."""
    path = os.path.join(os.path.dirname(__file__), "..", "docs", "FORMAT.md")
    with open(path, encoding="utf-8") as document:
        text = document.read()
    text = text.split("<!-- points: remade by tests/format_doc.rs -->")[1].split("<!--")[0]
    count, digits = text.split(f"\n{kind}, ")[1].split(" points\n")[:2]
    digits = digits.split("iq")[0].replace("`", "").replace("\n", "")
    points = [int(digits[at : at + 4], 16) for at in range(0, 4 * int(count), 4)]
    check(len(digits) == 4 * int(count), "points of", kind)
    columns, _, levels = POINTS[kind]
    bits = 16 // columns
    return [[levels[point >> bits * c & (1 << bits) - 1] for c in range(columns)] for point in points]


GRIDS = {}


def point_values(kind, block):
    """The values of a block of points (§5.4)."""
    (columns, unit, _), group = POINTS[kind], BLOCKS[kind][1]
    grid = GRIDS.get(kind) or GRIDS.setdefault(kind, listed_points(kind))
    d, data = struct.unpack("<e", block[:2])[0], block[2:]
    count, bits = 256 // columns, {"iq3_s": 1, "iq2_s": 2}.get(kind, 0)
    words, fours, signs = [], [], []
    if kind == "iq2_xs":
        words = struct.unpack("<32H", data[:64])
        points, fours = [word & 511 for word in words], data[64:]
        signs = [word >> 9 for word in words]
    elif kind == "iq2_xxs":
        points = [data[8 * (k // 4) + k % 4] for k in range(32)]
        words = [int.from_bytes(data[8 * g + 4 : 8 * g + 8], "little") for g in range(8)]
    elif kind == "iq3_xxs":
        points, words = data[:64], struct.unpack("<8I", data[64:])
    else:
        low, rest = data[:count], data[count:]
        signs, high = (rest[8:40], rest[:8]) if kind == "iq3_s" else (rest[:32], rest[32:40])
        each = 8 // bits
        points = [low[k] | (high[k // each] >> bits * (k % each) & (1 << bits) - 1) << 8 for k in range(count)]
        fours = rest[40:]
    if kind.endswith("xxs"):
        f = [2 * (word >> 28) + 1 for word in words]
        signs = [words[a // 4] >> 7 * (a % 4) & 127 for a in range(32)]
    else:
        f = [2 * (fours[g // 2] >> 4 * (g % 2) & 15) + 1 for g in range(256 // group)]
    if bits == 0:
        signs = [seven | (seven.bit_count() & 1) << 7 for seven in signs]
    levels = [level for point in points for level in grid[point]]
    return [
        f32(d * unit * f[i // group] * level * (-1 if signs[i // 8] >> i % 8 & 1 else 1))
        for i, level in enumerate(levels)
    ]


def block_values(kind, block):
    """The values of a block (§5.4)."""
    if kind in POINTS:
        return point_values(kind, block)
    columns, group, zero, _, _ = BLOCKS[kind]
    taken = 0

    def part(length):
        nonlocal taken
        taken += length
        return block[taken - length : taken]

    def half():
        return struct.unpack("<e", part(2))[0]

    f, m, down = [1] * 16, [1] * 16, 0.0
    if columns == 32:
        d = half()
        down = -half() if zero is None else 0.0
        high = int.from_bytes(part(4), "little") if kind[1] == "5" else 0
        if kind == "q8_0":
            codes = struct.unpack("<32b", part(32))
        else:
            low = part(16)
            codes = [low[i % 16] >> 4 * (i // 16) & 15 | (high >> i & 1) << 4 for i in range(32)]
    elif kind == "q2_k":
        both, codes = part(16), pairs(part(64))
        f, m = [byte & 15 for byte in both], [byte >> 4 for byte in both]
        d, down = half(), half()
    elif kind == "q3_k":
        thirds, low, sixes = part(32), pairs(part(64)), part(12)
        codes = [low[i] | (thirds[i % 32] >> i // 32 & 1) << 2 for i in range(256)]
        f = [
            (sixes[g % 8] >> 4 * (g // 8) & 15 | (sixes[8 + g % 4] >> 2 * (g // 4) & 3) << 4) - 32
            for g in range(16)
        ]
        d = half()
    elif kind == "q6_k":
        low, high = part(128), pairs(part(64))
        codes = [low[i // 128 * 64 + i % 64] >> 4 * (i // 64 % 2) & 15 | high[i] << 4 for i in range(256)]
        f = struct.unpack("<16b", part(16))
        d = half()
    elif kind == "iq4_xs":
        d, twos, fours, low = half(), part(2), part(4), part(128)
        f = [
            (fours[g // 2] >> 4 * (g % 2) & 15 | (twos[g // 4] >> 2 * (g % 4) & 3) << 4) - 32
            for g in range(8)
        ]
        codes = [low[i // 32 * 16 + i % 16] >> 4 * (i // 16 % 2) & 15 for i in range(256)]
    else:
        d, down, six = half(), half(), part(12)
        f = [six[g] & 63 if g < 4 else six[g + 4] & 15 | six[g - 4] >> 6 << 4 for g in range(8)]
        m = [six[g + 4] & 63 if g < 4 else six[g + 4] >> 4 | six[g] >> 6 << 4 for g in range(8)]
        highs = part(32) if kind == "q5_k" else bytes(32)
        fours = part(128)
        codes = [
            fours[i // 64 * 32 + i % 32] >> 4 * (i // 32 % 2) & 15 | (highs[i % 32] >> i // 32 & 1) << 4
            for i in range(256)
        ]
    if kind[0] == "i":
        codes = [LEVELS[code] for code in codes]
    if zero is not None:
        return [f32(d * f[i // group] * (codes[i] - zero)) for i in range(columns)]
    return [add_to_f32(d * f[i // group] * codes[i], -(down * m[i // group])) for i in range(columns)]


def pairs(part):
    """Two bits of each of 256 codes."""
    return [part[i // 128 * 32 + i % 32] >> 2 * (i // 32 % 4) & 3 for i in range(256)]


TILE_ROWS = 256


def trellis_values(encoding, rows, cols, data):
    """The value of every state, row-major f32, still rotated (§5.2)."""
    bits, mask = encoding["bits"], (1 << encoding["state_bits"]) - 1
    values, known, at = array.array("f", bytes(4 * rows * cols)), {}, 0
    for first in range(0, rows, TILE_ROWS):
        count = min(TILE_ROWS, rows - first)
        length = -(-count // 8) * bits
        for c in range(cols):
            stream = int.from_bytes(data[at : at + length], "little")
            stream |= stream << 8 * length
            at += length
            for r in range(count):
                state = stream >> bits * r & mask
                if state not in known:
                    product = state * 0x8E9E37D1 & MASK
                    known[state] = (sum(product.to_bytes(4, "little")) - 510) / 128
                values[(first + r) * cols + c] = known[state]
    return values


def rotated_back(values, scale, cols):
    """Each row by blocks of columns: Hadamard, then scales and signs (§5.2). The sums are exact."""
    block = min(cols & -cols, 256)
    factor = f32(1 / f32(block**0.5))
    for start in range(0, len(values), block):
        row_factor = f32(scale[start // cols] * factor)
        z, half = values[start : start + block], 1
        while half < block:
            for j in range(block):
                if not j & half:
                    z[j], z[j + half] = z[j] + z[j + half], z[j] - z[j + half]
            half *= 2
        for j in range(block):
            values[start + j] = f32(z[j] * row_factor) * sign((start + j) % cols)
    return values


def sign(column):
    spread = (column + 1) * 0x9E3779B9 & MASK
    spread = (spread ^ spread >> 15) * 0x9E3779B9 & MASK
    return -1 if spread >> 31 else 1


# --- Manifest (§2, §3) ---------------------------------------------------------------------------


STEERING = set(map(chr, (*range(32), *range(127, 160), 0x61C, 0x200E, 0x200F, 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))))


def check_values(value, depth=0):
    """Nothing is nested deeply, no string steers a terminal, no number is infinite (§2)."""
    check(depth <= 64, "the manifest is nested deeper than", 64)
    if isinstance(value, str):
        check(not set(value) & STEERING, "string", ascii(value))
    elif isinstance(value, float):
        check(math.isfinite(value), "number", value)
    elif isinstance(value, (list, dict)):
        for item in value if isinstance(value, list) else (*value, *value.values()):
            check_values(item, depth + 1)


def check_record(record):
    """The checkpoint's files and the tensors left out ascend (§2.2)."""
    fields(record, ("files", "ignored", "excerpt"), "checkpoint", ("excerpt",))
    for listed, name in ((record["files"], "name"), (record["ignored"], "tensor")):
        names = [entry[name].encode() for entry in listed]
        check(all(a < b for a, b in zip(names, names[1:])), "checkpoint out of order:", name)


def check_hashes(value, name=""):
    """Every hash is 64 digits in lower case (§2.1)."""
    if isinstance(value, dict):
        for key, item in value.items():
            if key != "recipe":
                check_hashes(item, key)
    elif isinstance(value, list):
        for item in value:
            check_hashes(item, name)
    elif name.endswith("blake3") and value is not None:
        digits = isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")
        check(digits, name, value)


def refuse_repeated(pairs):
    names = [name for name, _ in pairs]
    check(len(names) == len(set(names)), "a field appears twice among", names)
    return dict(pairs)


def fields(value, expected, place, optional=()):
    """The fields of an object are these; numbers among them are whole and below 2^64."""
    check(isinstance(value, dict), place, "is not an object")
    missing = set(expected) - set(optional) - set(value)
    unknown = set(value) - set(expected)
    check(not missing, place, "lacks", sorted(missing))
    check(not unknown, place, "has unknown fields", sorted(unknown))
    for name in set(value) - REALS:
        items = value[name] if isinstance(value[name], list) else [value[name]]
        for item in items:
            whole = not isinstance(item, float) and not (isinstance(item, int) and not 0 <= item < LIMIT)
            check(whole, place, name, "has value", item)


def read_manifest(root):
    with open(os.path.join(root, "manifest.json"), "rb") as file:
        data = file.read()
    check(data.startswith(PREFIX), "manifest.json does not begin with its hash")
    start, end = len(PREFIX), len(PREFIX) + HEX_LEN
    found = blake3(data[:start] + b"0" * HEX_LEN + data[end:])
    check(data[start:end] == found.encode(), "manifest.json has hash", found)
    check(len(data) <= 1 << 28, "manifest.json has", len(data), "bytes")
    manifest = json.loads(data, object_pairs_hook=refuse_repeated)
    check_values(manifest)
    check_hashes(manifest)
    names = "blake3 format version generator alignment model recipe checkpoint calibration files dense experts"
    fields(manifest, names.split(), "manifest", ("calibration",))
    check(manifest["format"] == "shardwright-bundle", "format", manifest["format"])
    check(manifest["version"] == 1, "version", manifest["version"])
    check(manifest["alignment"] in [1 << n for n in range(12, 21)], "alignment")
    check_record(manifest["checkpoint"])
    if manifest.get("calibration") is not None:
        check_calibration(manifest["calibration"])
    return manifest


def check_calibration(calibration):
    """Line hashes are ascending and of a text that is named (§2.7)."""
    optional = ("text_blake3", "statistics_blake3", "line_hashes")
    fields(calibration, ("tokens", "window", *optional), "calibration", optional)
    text, statistics = calibration.get("text_blake3"), calibration.get("statistics_blake3")
    check(text is not None or statistics is not None, "calibration of nothing")
    digits = calibration.get("line_hashes", "")
    hashes = [digits[at : at + 16] for at in range(0, len(digits), 16)]
    check(len(hashes) <= 4096 and len(digits) % 16 == 0, "line_hashes, of length", len(digits))
    check(set(digits) <= set("0123456789abcdef"), "line_hashes, digits", set(digits))
    check(all(a < b for a, b in zip(hashes, hashes[1:])), "line_hashes out of order", "")
    check(not hashes or text is not None, "line_hashes of no text", "")


def check_paths(files):
    last = b""
    for entry in files:
        fields(entry, ("path", "kind", "size", "blake3"), "files")
        path = entry["path"]
        names = path.split("/")
        plain = all(n not in ("", ".", "..") and not set(n) & set("\\:\0") for n in names)
        check(plain and path.lower() != "manifest.json", "path", path)
        check(path.encode() > last, "files out of order at", path)
        check(entry["kind"] in ("shards", "copy", "report"), "kind", entry["kind"])
        check((entry["kind"] == "report") == (path == "report.json"), "kind of", path)
        last = path.encode()
    check(len({entry["path"].lower() for entry in files}) == len(files), "paths differ in case alone", "")
    check(any(entry["path"] == "report.json" for entry in files), "no report.json", "")


def check_files(root, manifest):
    """Every listed file is there with its size and hash, and no other file (§1, §8)."""
    listed = {entry["path"]: entry for entry in manifest["files"]}
    found = set()
    for directory, folders, names in os.walk(root):
        check(folders or names, directory, "is empty")
        for name in (*folders, *names):
            check(not os.path.islink(os.path.join(directory, name)), name, "is a symbolic link")
        for name in names:
            path = os.path.relpath(os.path.join(directory, name), root).replace(os.sep, "/")
            found.add(path)
    check(found - {"manifest.json"} == set(listed), "files:", sorted(found ^ set(listed)))
    for path, entry in listed.items():
        with open(os.path.join(root, path), "rb") as file:
            data = file.read()
        check(len(data) == entry["size"], path, "has", len(data), "bytes")
        check(blake3(data) == entry["blake3"], path, "has hash", blake3(data))


# --- Model (§4.1, §6) ----------------------------------------------------------------------------


MODEL = (
    "model_type vocab_size hidden_size tie_word_embeddings rms_norm_eps max_position_embeddings"
    " eos_token_ids bos_token_id norm_plus_one embedding_multiplier residual_multiplier logits_scaling logits_cap layers"
)
ATTENTION = (
    "kind heads kv_heads head_dim rope qk_norm qkv_bias o_bias sliding_window clip_qkv attention_chunk_size sinks output_gate"
    " softmax_scale score_cap inner_norm temperature"
)
LLAMA3 = "kind factor low_freq_factor high_freq_factor original_max_position_embeddings"
YARN = "kind factor beta_fast beta_slow original_max_position_embeddings attention_factor truncate"
LONGROPE = "kind short_factor long_factor original_max_position_embeddings attention_factor"
SCALINGS = {"none": "kind", "linear": "kind factor", "llama3": LLAMA3, "yarn": YARN, "longrope": LONGROPE, "dynamic": "kind original_max_position_embeddings"}
MIXERS = {
    "attention": ATTENTION,
    "latent": "kind heads q_lora_rank kv_lora_rank qk_nope_head_dim qk_rope_head_dim v_head_dim rope softmax_scale bias index_topk",
    "delta_net": "kind key_heads value_heads key_head_dim value_head_dim conv_kernel projection",
    "short_conv": "kind conv_kernel",
}
FFNS = {
    "dense": "kind intermediate_size bias activation ungated inner_norm",
    "moe": "kind num_experts num_experts_per_tok moe_intermediate_size norm_topk_prob shared_expert scoring router_bias"
    " correction_bias groups routed_scaling_factor weights_on_input expert_bias activation",
}
OPTIONAL = (
    "bos_token_id norm_plus_one embedding_multiplier residual_multiplier logits_scaling logits_cap output_norms no_input_norms rope sliding_window clip_qkv"
    " score_cap inner_norm ungated"
    " attention_chunk_size sinks output_gate softmax_scale temperature q_lora_rank index_topk rotary_dim"
    " pairing shared_expert scoring router_bias correction_bias groups routed_scaling_factor weights_on_input expert_bias activation"
).split()


def check_model(model):
    """Every field that §6 names and no other; shapes are checked where they are used."""
    fields(model, MODEL.split(), "model", OPTIONAL)
    check(1 <= len(model["layers"]) <= 4096, "layers")
    for number, layer in enumerate(model["layers"]):
        place = f"layer {number}"
        fields(layer, ("mixer", "ffn", "output_norms", "no_input_norms"), place, OPTIONAL)
        mixer, ffn = layer["mixer"], layer["ffn"]
        check(mixer["kind"] in MIXERS, place, "mixer", mixer["kind"])
        fields(mixer, MIXERS[mixer["kind"]].split(), place, OPTIONAL)
        if mixer["kind"] == "attention":
            check(mixer["heads"] % mixer["kv_heads"] == 0, place, "kv_heads", mixer["kv_heads"])
            check(mixer["head_dim"] % 2 == 0, place, "head_dim", mixer["head_dim"])
        if mixer.get("rope"):
            fields(mixer["rope"], ("theta", "scaling", "rotary_dim", "pairing"), place, OPTIONAL)
            scaling = mixer["rope"]["scaling"]
            fields(scaling, SCALINGS[scaling["kind"]].split(), place)
        fields(ffn, FFNS[ffn["kind"]].split(), place, OPTIONAL)
        if ffn.get("shared_expert"):
            fields(ffn["shared_expert"], ("intermediate_size", "gated"), place)


def attention_shapes(spec, hidden):
    q, kv = spec["heads"] * spec["head_dim"], spec["kv_heads"] * spec["head_dim"]
    norms = {"per_head": (spec["head_dim"],) * 2, "per_head_rotated": (spec["head_dim"],) * 2, "full": (q, kv)}.get(spec["qk_norm"])
    gated = 2 * q if spec.get("output_gate") else q
    for letter, rows in (("q", gated), ("k", kv), ("v", kv)):
        yield f"attention.{letter}_proj", rows, hidden
        if spec["qkv_bias"]:
            yield f"attention.{letter}_bias", 1, rows
    if norms:
        yield "norm.q", 1, norms[0]
        yield "norm.k", 1, norms[1]
    if spec.get("sinks"):
        yield "attention.sinks", 1, spec["heads"]
    if spec.get("inner_norm"):
        yield "norm.mixer_inner", 1, q
    yield "attention.o_proj", hidden, q
    if spec["o_bias"]:
        yield "attention.o_bias", 1, hidden


def biased(prefix, rows, cols, bias):
    yield f"{prefix}_proj", rows, cols
    if bias:
        yield f"{prefix}_bias", 1, rows


def latent_shapes(spec, hidden):
    heads, latent, rank = spec["heads"], spec["kv_lora_rank"], spec["q_lora_rank"]
    nope, rope, value = (spec[f"{name}_head_dim"] for name in ("qk_nope", "qk_rope", "v"))
    if rank:
        yield from biased("attention.q_a", rank, hidden, spec["bias"])
        yield "norm.q_a", 1, rank
        yield "attention.q_b_proj", heads * (nope + rope), rank
    yield from biased("attention.kv_a", latent + rope, hidden, spec["bias"])
    yield "norm.kv_a", 1, latent
    yield "attention.kv_b_proj", heads * (nope + value), latent
    if not rank:
        yield "attention.q_proj", heads * (nope + rope), hidden
    yield from biased("attention.o", hidden, heads * value, spec["bias"])


def delta_net_shapes(spec, hidden):
    heads, values = spec["value_heads"], spec["value_heads"] * spec["value_head_dim"]
    conv = 2 * spec["key_heads"] * spec["key_head_dim"] + values
    inputs = {"grouped": {"qkvz": conv + values, "ba": 2 * heads}, "split": {"qkv": conv, "z": values, "b": heads, "a": heads}}
    for name, rows in inputs[spec["projection"]].items():
        yield f"delta_net.in_proj_{name}", rows, hidden
    yield "delta_net.conv1d", conv, spec["conv_kernel"]
    yield "delta_net.a_log", 1, heads
    yield "delta_net.dt_bias", 1, heads
    yield "norm.delta_net", 1, spec["value_head_dim"]
    yield "delta_net.out_proj", hidden, values


def short_conv_shapes(spec, hidden):
    yield "short_conv.in_proj", 3 * hidden, hidden
    yield "short_conv.conv", hidden, spec["conv_kernel"]
    yield "short_conv.out_proj", hidden, hidden


SHAPES = {"attention": attention_shapes, "latent": latent_shapes, "delta_net": delta_net_shapes, "short_conv": short_conv_shapes}


def gated_shapes(prefix, width, hidden, bias=False):
    for name, rows, cols in (("gate", width, hidden), ("up", width, hidden), ("down", hidden, width)):
        yield f"{prefix}.{name}_proj", rows, cols
        if bias:
            yield f"{prefix}.{name}_bias", 1, rows


def layer_shapes(layer, hidden):
    mixer, ffn = layer["mixer"], layer["ffn"]
    if not layer.get("no_input_norms"):
        yield "norm.input", 1, hidden
    yield from SHAPES[mixer["kind"]](mixer, hidden)
    if layer.get("output_norms"):
        yield "norm.mixer_out", 1, hidden
    if not layer.get("no_input_norms"):
        yield "norm.post_attention", 1, hidden
    if ffn["kind"] == "dense":
        shapes = gated_shapes("mlp", ffn["intermediate_size"], hidden, ffn["bias"])
        for shape in shapes:
            if shape[0] == "mlp.down_proj" and ffn.get("inner_norm"):
                yield "norm.ffn_inner", 1, ffn["intermediate_size"]
            if not (ffn.get("ungated") and shape[0].startswith("mlp.gate_")):
                yield shape
        if layer.get("output_norms"):
            yield "norm.ffn_out", 1, hidden
        return
    yield "router", ffn["num_experts"], hidden
    if ffn.get("router_bias"):
        yield "router.bias", 1, ffn["num_experts"]
    if ffn.get("correction_bias"):
        yield "router.correction_bias", 1, ffn["num_experts"]
    shared = ffn.get("shared_expert")
    if shared and shared["gated"]:
        yield "shared_expert_gate", 1, hidden
    if shared:
        yield from gated_shapes("shared_expert", shared["intermediate_size"], hidden)


def head_shapes(model):
    yield "norm.final", 1, model["hidden_size"]
    if not model["tie_word_embeddings"]:
        yield "lm_head", model["vocab_size"], model["hidden_size"]


def dense_units(model):
    """Every unit that is not an expert, with the shapes of its tensors."""
    yield "embedding", [("embed_tokens", model["vocab_size"], model["hidden_size"])]
    for number, layer in enumerate(model["layers"]):
        yield {"layer": number}, list(layer_shapes(layer, model["hidden_size"]))
    yield "head", list(head_shapes(model))


PARTS = ["vision", "mtp", "indexer"]


def part_units(shards):
    """The parts besides the text model, their shapes from those in the checkpoint (§4.5)."""
    free = list(PARTS)
    for shard in shards:
        unit = shard["unit"]
        check(unit in free, "dense: found", unit, "expected one of", free)
        free = free[free.index(unit) + 1 :]
        names = [tensor["source"]["tensor"].encode() for tensor in shard["tensors"]]
        check(names and all(a < b for a, b in zip(names, names[1:])), unit, "names", names)
        yield unit, [whole(unit, tensor["source"]) for tensor in shard["tensors"]]


def whole(role, source):
    shape = source["shape"]
    cut = {0: 0, 1: 0, 3: 2}.get(len(shape), 1)
    rows, cols = math.prod(shape[:cut]), math.prod(shape[cut:])
    steps = [source[name] for name in ("start", "row_stride", "col_stride")]
    check(steps == [0, cols, 1] and not source.get("expert_stride"), role, "is not whole", source)
    return role, rows, cols


# --- Shards (§4) ---------------------------------------------------------------------------------


SOURCE = "tensor dtype shape start row_stride col_stride expert_stride decoder"


def last_value(source, rows, cols, expert):
    """The last value of a view, counted in its tensor (§7)."""
    start = source["start"] + expert * source.get("expert_stride", 0)
    return start + (rows - 1) * source["row_stride"] + (cols - 1) * source["col_stride"]


def check_source(tensor, experts, place):
    source, values = tensor["source"], 1
    fields(source, SOURCE.split(), place, ("expert_stride", "decoder"))
    decoder = source.get("decoder", {"scheme": "none"})
    check(isinstance(decoder, dict) and isinstance(decoder.get("scheme"), str), place, "has decoder", decoder)
    for dimension in source["shape"]:
        values *= dimension
    last = last_value(source, tensor["rows"], tensor["cols"], experts - 1)
    check(last < values, place, "source leaves", source["shape"])


def check_tensors(place, shapes, tensors, length, alignment, experts=1):
    """Roles, shapes and offsets must be those that the model gives (§4.1, §4.2)."""
    found = [(t["role"], t["rows"], t["cols"]) for t in tensors]
    check(found == shapes, place, "expected", shapes, "found", found)
    end = 0
    for tensor in tensors:
        fields(tensor, ("role", "encoding", "rows", "cols", "offset", "source"), place)
        check_source(tensor, experts, place)
        start = -(-end // alignment) * alignment
        check(tensor["offset"] == start, place, tensor["role"], "offset: expected", start)
        end = start + sum(part_sizes(tensor["encoding"], tensor["rows"], tensor["cols"]))
    check(end == length, place, "length: expected", end, "found", length)


def shards(manifest):
    """Every shard: its name, file, offset, length, hash, tensors, expert."""
    model = manifest["model"]
    check_model(model)
    units = list(dense_units(model))
    units.extend(part_units(manifest["dense"][len(units) :]))
    check(len(units) == len(manifest["dense"]), "dense has", len(manifest["dense"]), "shards")
    for (unit, shapes), shard in zip(units, manifest["dense"]):
        fields(shard, ("unit", "file", "offset", "len", "blake3", "tensors"), "dense")
        check(shard["unit"] == unit, "dense: expected", unit, "found", shard["unit"])
        check_tensors(unit, shapes, shard["tensors"], shard["len"], 64)
        keys = ("file", "offset", "len", "blake3", "tensors")
        yield (unit, *(shard[key] for key in keys), 0)
    sparse = [n for n, layer in enumerate(model["layers"]) if layer["ffn"]["kind"] == "moe"]
    found = [entry["layer"] for entry in manifest["experts"]]
    check(sparse == sorted(set(found)) and found == sorted(found), "experts: layers", sparse)
    for layer in sparse:
        entries = [entry for entry in manifest["experts"] if entry["layer"] == layer]
        check_entries(entries, model["layers"][layer]["ffn"]["num_experts"], f"experts of layer {layer}")
        for entry in entries:
            yield from expert_shards(model, entry, manifest["alignment"])


def check_entries(entries, count, place):
    """All experts in one entry, or each in one of several (§2.5)."""
    check(len(entries) <= 16, place, len(entries), "entries")
    if len(entries) == 1:
        check("experts" not in entries[0], place, "are listed though they are all")
        entries[0]["experts"] = list(range(count))
    listed = [entry["experts"] for entry in entries]
    check(all(experts == sorted(experts) and experts for experts in listed), place, "are out of order")
    check(listed == sorted(listed), place, "have entries out of order")
    check(sorted(sum(listed, [])) == list(range(count)), place, "are", listed)


def expert_shards(model, entry, alignment):
    names = ("layer", "experts", "file", "stride", "len", "tensors", "blake3")
    place = f"experts of layer {entry['layer']}"
    fields(entry, names, place)
    ffn = model["layers"][entry["layer"]]["ffn"]
    shapes = list(gated_shapes("expert", ffn["moe_intermediate_size"], model["hidden_size"], ffn.get("expert_bias")))
    check_tensors(place, shapes, entry["tensors"], entry["len"], 1, ffn["num_experts"])
    check(len(entry["blake3"]) == len(entry["experts"]), place, "count")
    check(entry["stride"] % alignment == 0, place, "stride", entry["stride"])
    check(entry["len"] <= entry["stride"], place, "are longer than their stride")
    for at, (e, digest) in enumerate(zip(entry["experts"], entry["blake3"])):
        unit = {"expert": {"layer": entry["layer"], "expert": e}}
        offset = at * entry["stride"]
        yield unit, entry["file"], offset, entry["len"], digest, entry["tensors"], e


def check_ranges(manifest, listed):
    """Shards are aligned, apart, and end where their files do (§4.3)."""
    alignment, ends = manifest["alignment"], {}
    kinds = {entry["path"]: entry for entry in manifest["files"] if entry["kind"] == "shards"}
    for unit, file, offset, length, *_ in sorted(listed, key=lambda s: (s[1], s[2])):
        check(file in kinds, unit, "lies in", file)
        check(offset % alignment == 0 and offset >= ends.get(file, 0), unit, "offset", offset)
        ends[file] = offset + length
    check(set(ends) == set(kinds), "shard files without shards:", sorted(set(kinds) - set(ends)))
    for file, end in ends.items():
        check(-(-end // alignment) * alignment == kinds[file]["size"], file, "size")


def read_shard(root, shard):
    unit, file, offset, length, digest, *_ = shard
    with open(os.path.join(root, file), "rb") as source:
        source.seek(offset)
        data = source.read(length)
    check(len(data) == length, unit, "is cut short")
    check(blake3(data) == digest, unit, "has hash", blake3(data))
    return data


def tensors_of(root, manifest, listed):
    """Every tensor: its unit, entry, expert and values."""
    for shard in listed:
        unit, tensors, expert = shard[0], shard[5], shard[6]
        data = read_shard(root, shard)
        for entry in tensors:
            size = sum(part_sizes(entry["encoding"], entry["rows"], entry["cols"]))
            stored = data[entry["offset"] : entry["offset"] + size]
            values = dequantize(entry["encoding"], entry["rows"], entry["cols"], stored)
            yield unit, entry, expert, values


# --- Comparison with a checkpoint (§7) -----------------------------------------------------------


def read_checkpoint(directory):
    """Every tensor of a directory's .safetensors files: dtype, shape and bytes."""
    tensors = {}
    for name in sorted(os.listdir(directory)):
        if not name.endswith(".safetensors"):
            continue
        with open(os.path.join(directory, name), "rb") as file:
            data = file.read()
        (length,) = struct.unpack("<Q", data[:8])
        for tensor, info in json.loads(data[8 : 8 + length]).items():
            if tensor != "__metadata__":
                begin, end = (8 + length + at for at in info["data_offsets"])
                tensors[tensor] = (info["dtype"].lower(), info["shape"], data[begin:end])
    return tensors


def narrow(dtype, values):
    """f32 values as the little-endian bytes of a float type, nearest with ties to even."""
    if dtype == "f16":
        return b"".join(struct.pack("<e", value) for value in values)
    little = array.array("f", values)
    swap(little)
    if dtype == "f32":
        return little.tobytes()
    words = struct.unpack(f"<{len(values)}I", little.tobytes())
    return struct.pack(f"<{len(values)}H", *((w + 0x7FFF + (w >> 16 & 1)) >> 16 for w in words))


def compare(checkpoint, entry, expert, values):
    """Whether the checkpoint holds exactly these values where the source view says."""
    source = entry["source"]
    name = source["tensor"].replace("{expert}", str(expert))
    check(name in checkpoint, name, "is not in the checkpoint")
    dtype, shape, data = checkpoint[name]
    check(shape == source["shape"], name, "has shape", shape, "expected", source["shape"])
    size, rows, cols = SIZES[dtype], entry["rows"], entry["cols"]
    start = source["start"] + expert * source.get("expert_stride", 0)
    row, col = source["row_stride"], source["col_stride"]
    last = last_value(source, rows, cols, expert)
    check((last + 1) * size <= len(data), name, "ends before value", last)
    ours = narrow(dtype, values)
    for r in range(rows):
        for c in range(cols) if col != 1 else (0,):
            run = cols if col == 1 else 1
            at, mine = (start + r * row + c * col) * size, (r * cols + c) * size
            same = data[at : at + run * size] == ours[mine : mine + run * size]
            check(same, name, f"differs in row {r} of", entry["role"])
    return name


def print_vectors():
    """The text of §12.3, from codes and scales that are given by a rule."""
    vectors = (((270, 48), 3, 16, ((0, 0), (255, 44), (256, 0), (269, 44))), ((8, 256), 2, 12, ((0, 0), (7, 252))))
    for (rows, cols), bits, state_bits, places in vectors:
        encoding = {"kind": "trellis", "bits": bits, "state_bits": state_bits}
        codes, scales, _ = part_sizes(encoding, rows, cols)
        data = bytearray(((k + 1) ** 2 * 2654435761 >> 24) & 0xFF for k in range(codes))
        data += struct.pack(f"<{rows}H", *(0x3C00 + r for r in range(rows)))
        raw = narrow("f32", dequantize(encoding, rows, cols, bytes(data)))
        print(f"[{rows}, {cols}], {bits} bits, states of {state_bits}")
        print("BLAKE3 ", blake3(raw))
        for r, c in places:
            four = struct.unpack_from("<4I", raw, (r * cols + c) * 4)
            print(f"row {r:3}, columns {c:3} on ", *(f"{value:08x}" for value in four))
    return 0


def print_blocks():
    """The text of §12.5, from bytes that are given by a rule."""
    halves = {"q4_1": (0, 2), "q5_1": (0, 2), "q2_k": (80, 82), "q3_k": (108,), "q4_k": (0, 2), "q5_k": (0, 2), "q6_k": (208,)}
    for kind, (columns, _, _, _, size) in BLOCKS.items():
        block = bytearray(((k + 1) ** 2 * 2654435761 >> 24) & 0xFF for k in range(size))
        for at, scale in zip(halves.get(kind, (0,)), (0.0625, 0.125)):
            block[at : at + 2] = struct.pack("<e", scale)
        raw = narrow("f32", dequantize({"kind": "ggml", "type": kind}, 1, columns, bytes(block)))
        print(kind, "BLAKE3", blake3(raw))
        for start in (0, columns - 4):
            four = struct.unpack_from("<4I", raw, start * 4)
            print(f"columns {start:3} on ", *(f"{value:08x}" for value in four))
    return 0


def main(arguments):
    if arguments == ["--blocks"]:
        return print_blocks()
    if arguments == ["--vectors"]:
        return print_vectors()
    if len(arguments) not in (1, 3) or (len(arguments) == 3 and arguments[1] != "--equals"):
        sys.stderr.write(__doc__)
        return 2
    root = arguments[0]
    checkpoint = read_checkpoint(arguments[2]) if len(arguments) == 3 else None
    manifest = read_manifest(root)
    check_paths(manifest["files"])
    listed = list(shards(manifest))
    check_ranges(manifest, listed)
    check_files(root, manifest)
    compared = set()
    for unit, entry, expert, values in tensors_of(root, manifest, listed):
        digest = hashlib.sha256(narrow("f32", values)).hexdigest()
        line = {"unit": unit, "role": entry["role"], "rows": entry["rows"], "cols": entry["cols"]}
        print(json.dumps({**line, "first": list(values[:4]), "sha256": digest}))
        if checkpoint is not None:
            compared.add(compare(checkpoint, entry, expert, values))
    if checkpoint is not None:
        ignored = {tensor["tensor"] for tensor in manifest["checkpoint"]["ignored"]}
        left = set(checkpoint) - compared - ignored
        check(not left, "not in the bundle:", sorted(left))
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except (Refused, OSError, KeyError, TypeError, ValueError) as refusal:
        sys.exit(f"reader.py: {type(refusal).__name__}: {refusal}")
