#!/bin/bash
# Quality in an engine's own format: bundles that are made for it, exported, beside what the engine's own converter makes of the same checkpoint.
# Usage: frontier.sh mlx|gguf CHECKPOINT CALIBRATION_TEXT TEXT [BITS_PER_WEIGHT...]   (default: 3 3.5 4 4.5, for gguf 2.7 too)
#   SHARDWRIGHT our binary (default target/release/shardwright)
#   MLX_CONVERT mlx_lm.convert (mlx)
#   LLAMA       the folder of llama-quantize and llama-imatrix (gguf)
#   TYPES       what llama-quantize makes (gguf; default: its mixes from 2 to 5 bits)
#   TOKENS      calibration tokens, for both (default: 32768)
#   WINDOWS     windows of 256 tokens to score (default: 16)
#   HF_PYTHON, EVAL_HF  where given, score every candidate by transformers as well
set -euo pipefail
. "$(dirname "$0")/lib.sh"
[ $# -ge 4 ] || die "usage: frontier.sh mlx|gguf CHECKPOINT CALIBRATION_TEXT TEXT [BITS_PER_WEIGHT...]"
form=$1
checkpoint=$2
calibration=$3
text=$4
shift 4
case $form in
mlx) [ $# -gt 0 ] || set -- 3 3.5 4 4.5; suffix=; need MLX_CONVERT "the mlx_lm.convert program" ;;
gguf) [ $# -gt 0 ] || set -- 2.7 3 3.5 4 4.5; suffix=.gguf; need_file LLAMA "the folder of llama.cpp's programs" ;;
*) die "$form is neither mlx nor gguf" ;;
esac
need SHARDWRIGHT "the shardwright binary"
need_file checkpoint "a checkpoint directory"
need_file calibration "a text to calibrate with"
need_file text "a text that no calibration has seen"
tokens=${TOKENS:-32768}
quiet() { "$@" >"$SCRATCH/log" 2>&1 || { tail -5 "$SCRATCH/log" >&2; die "failed: $*"; }; }

candidates=()
for bits in "$@"; do
  out="$SCRATCH/ours-$bits$suffix"
  quiet "$SHARDWRIGHT" convert "$checkpoint" -o "$SCRATCH/bundle" --for "$form" --target-bpw "$bits" --calibrate "$calibration" \
    --calibration-tokens "$tokens" --threads "$THREADS"
  quiet "$SHARDWRIGHT" export "$SCRATCH/bundle" --to "$form" -o "$out"
  drop "$SCRATCH/bundle"
  candidates+=("$out")
done
quiet "$SHARDWRIGHT" export "$checkpoint" --to "$form" -o "$SCRATCH/original$suffix"
if [ "$form" = mlx ]; then
  # Bits and group size: 2.5, 3, 3.5, 4 and 4.5 bits per weight.
  for affine in 2-64 2-32 3-64 3-32 4-64; do
    out="$SCRATCH/mlx_lm-$affine"
    quiet $MLX_CONVERT --hf-path "$SCRATCH/original" --mlx-path "$out" -q --q-bits "${affine%-*}" --q-group-size "${affine#*-}"
    candidates+=("$out")
  done
else
  quiet "$LLAMA/llama-imatrix" -m "$SCRATCH/original.gguf" -f "$calibration" -o "$SCRATCH/imatrix.gguf" -c 512 --chunks $((tokens / 512)) -t "$THREADS" --no-ppl
  for type in ${TYPES:-IQ2_XXS IQ2_XS IQ2_S IQ2_M Q2_K IQ3_XXS IQ3_XS IQ3_S IQ3_M Q3_K_S Q3_K_M IQ4_XS IQ4_NL Q4_K_S Q4_K_M}; do
    out="$SCRATCH/$type.gguf"
    quiet "$LLAMA/llama-quantize" --imatrix "$SCRATCH/imatrix.gguf" "$SCRATCH/original.gguf" "$out" "$type" "$THREADS"
    candidates+=("$out")
  done
fi
"$SHARDWRIGHT" verify "${candidates[@]}" --against "$checkpoint" --text "$text" --window 256 --windows "${WINDOWS:-16}" --other-source --json \
  >"$SCRATCH/verify.json" 2>"$SCRATCH/log" || [ $? -eq 1 ] || { tail -5 "$SCRATCH/log" >&2; die "verify failed"; }
for candidate in "${candidates[@]}"; do
  [ -z "${EVAL_HF:-}" ] || "$HF_PYTHON" "$EVAL_HF" "$checkpoint" "$([ "$form" = gguf ] || echo mlx:)$candidate" "$text" --windows "${WINDOWS:-16}" \
    --label "$(basename "$candidate")" >>"$SCRATCH/scores.jsonl" 2>"$SCRATCH/log" || tail -1 "$SCRATCH/log" >&2
done
python3 - "$SCRATCH" <<'PY'
import json, os, sys
scratch = sys.argv[1]
path = f"{scratch}/scores.jsonl"
lines = map(json.loads, open(path)) if os.path.exists(path) else []
scored = {line["cand"]: line for line in lines}
print("| candidate | bits/weight | mean KLD | 99 % KLD | same top | mean KLD by transformers |\n|---|---|---|---|---|---|")
for rung in sorted(json.load(open(f"{scratch}/verify.json"))["candidates"], key=lambda r: r["bits_per_weight"]):
    name, found = rung["name"], rung["divergence"]
    other = scored.get(name, {}).get("kld_mean")
    print(f"| {name} | {rung['bits_per_weight']:.3f} | {found['kld_mean']:.5f} ± {found.get('kld_mean_se_by_window') or found['kld_mean_se']:.5f} | {found['kld_p99']:.4f} | {found['same_top']:.3f} | {'-' if other is None else f'{other:.5f}'} |")
PY
