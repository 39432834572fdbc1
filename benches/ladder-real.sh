#!/bin/bash
# Anybody's quantizations of one real model, ranked by one `verify` command, and the time of that against one command for each.
# Usage: ladder-real.sh CHECKPOINT GGUF TEXT [PAGE]
#   CHECKPOINT  16-bit safetensors of a llama or gemma3 model, the original
#   GGUF        a GGUF file of the same model in any type: its metadata are taken, its weights are not
#   TEXT        what all of them read
#   PAGE        the page to write (default: ladder-real.html)
#   SHARDWRIGHT our binary (default target/release/shardwright)
#   HF_PYTHON   a Python with torch, transformers, gguf, mlx-lm and compressed-tensors
#   LLAMA_QUANTIZE  llama.cpp's llama-quantize (default: the one on PATH); without one gguf-py makes Q4_0 and Q8_0
#   EVAL_HF     a scorer by transformers, as in quality.sh: each candidate is exported and scored by it too (default: none)
#   WINDOWS     windows of 256 tokens to read (default: 64)
set -euo pipefail
. "$(dirname "$0")/lib.sh"
[ $# -ge 3 ] || die "usage: ladder-real.sh CHECKPOINT GGUF TEXT [PAGE]"
checkpoint=$1
gguf=$2
text=$3
page=${4:-ladder-real.html}
windows=${WINDOWS:-64}
LLAMA_QUANTIZE=${LLAMA_QUANTIZE:-$(command -v llama-quantize || true)}
need SHARDWRIGHT "the shardwright binary"
need HF_PYTHON "a Python with torch, transformers, gguf, mlx-lm and compressed-tensors"
need_file checkpoint "a checkpoint directory (first argument)"
need_file gguf "a GGUF file of the same model (second argument)"
need_file text "a text that no calibration has seen (third argument)"
make() { "$HF_PYTHON" "$(dirname "$0")/make_candidates.py" "$@" >"$SCRATCH/log" 2>&1 || { tail -5 "$SCRATCH/log" >&2; die "make_candidates.py $1"; }; }

# What is judged, in $SCRATCH under the name that the report shows. The original's tokenizer lies beside the GGUF files: a checkpoint that
# was itself made from a GGUF file may cut text differently, and `verify` compares no models that read unlike tokens.
cp "$checkpoint/tokenizer.json" "$SCRATCH/"
candidates=()
if [ -n "$LLAMA_QUANTIZE" ]; then
  make gguf "$checkpoint" "$gguf" F16 "$SCRATCH/f16.gguf"
  for kind in Q4_0 Q4_K_M; do
    "$LLAMA_QUANTIZE" "$SCRATCH/f16.gguf" "$SCRATCH/$kind.gguf" "$kind" "$THREADS" >"$SCRATCH/log" 2>&1 || die "llama-quantize $kind"
    candidates+=("$SCRATCH/$kind.gguf")
  done
  drop "$SCRATCH/f16.gguf"
else
  for kind in Q4_0 Q8_0; do
    make gguf "$checkpoint" "$gguf" "$kind" "$SCRATCH/$kind.gguf"
    candidates+=("$SCRATCH/$kind.gguf")
  done
fi
make mlx "$checkpoint" "$SCRATCH/mlx-q4-g64"
make gptq "$checkpoint" "$SCRATCH/gptq-int4-g32"
"$SHARDWRIGHT" convert "$checkpoint" -o "$SCRATCH/default.bundle" --threads "$THREADS" --quiet >"$SCRATCH/log"
"$SHARDWRIGHT" convert "$checkpoint" -o "$SCRATCH/bits-4.bundle" --bits 4 --threads "$THREADS" --quiet >"$SCRATCH/log"
candidates+=("$SCRATCH/mlx-q4-g64" "$SCRATCH/gptq-int4-g32" "$SCRATCH/default.bundle" "$SCRATCH/bits-4.bundle")

# judge CANDIDATE... OPTION...: one command that reads all of them; a finding, exit code 1, is a result too.
judge() {
  "$SHARDWRIGHT" verify "$@" --against "$checkpoint" --text "$text" --windows "$windows" --threads "$THREADS" --json --quiet || [ $? -eq 1 ]
}

# hf CANDIDATE: perplexity and mean divergence by transformers, of the candidate exported in 32 bits.
hf() {
  [ -n "${EVAL_HF:-}" ] || { echo "- -"; return; }
  "$SHARDWRIGHT" export "$1" --to hf -o "$SCRATCH/export" --quiet >"$SCRATCH/log"
  "$HF_PYTHON" "$EVAL_HF" "$checkpoint" "$SCRATCH/export" "$text" --windows "$windows" >"$SCRATCH/score.json" 2>"$SCRATCH/log" ||
    { tail -5 "$SCRATCH/log" >&2; die "scoring $1 failed"; }
  drop "$SCRATCH/export"
  echo "$(field "$SCRATCH/score.json" ppl) $(field "$SCRATCH/score.json" kld_mean)"
}

# row_of NUMBER FIELD...: fields of a candidate in the report.
row_of() {
  python3 - "$SCRATCH/ladder.json" "$@" <<'PY'
import json, sys
from functools import reduce
report = json.load(open(sys.argv[1]))["candidates"][int(sys.argv[2])]
print(*(reduce(lambda node, name: node[name], key.split("."), report) for key in sys.argv[3:]))
PY
}

started=$(date +%s.%N)
judge "${candidates[@]}" --html "$page" >"$SCRATCH/ladder.json"
together=$(awk "BEGIN { print $(date +%s.%N) - $started }")
started=$(date +%s.%N)
for candidate in "${candidates[@]}"; do judge "$candidate" >"$SCRATCH/alone.json"; done
alone=$(awk "BEGIN { print $(date +%s.%N) - $started }")

header candidate "bits/weight" perplexity "mean KLD" "99 % KLD" "same top" "perplexity, transformers" "mean KLD, transformers"
for at in "${!candidates[@]}"; do
  read -r bits ppl mean tail same < <(row_of "$at" bits_per_weight divergence.ppl divergence.kld_mean divergence.kld_p99 divergence.same_top)
  read -r hf_ppl hf_mean < <(hf "${candidates[$at]}")
  row "$(basename "${candidates[$at]}")" "$bits" "$ppl" "$mean" "$tail" "$same" "$hf_ppl" "$hf_mean"
done
echo
header "" "wall s"
row "one command for all" "$together"
row "one after the other" "$alone"
echo
echo "$page"
