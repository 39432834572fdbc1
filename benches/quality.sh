#!/bin/bash
# Quality: an independent scorer (transformers, f32) reads our export, and our own verifier reads the bundle; both beside a peer's lines.
# Usage: quality.sh CHECKPOINT TEXT [BITS...]   (default bits: 4 3 2)
#   SHARDWRIGHT our binary (default target/release/shardwright)
#   HF_PYTHON   a Python with torch and transformers
#   EVAL_HF     the scorer: EVAL_HF ORIGINAL CANDIDATE TEXT --windows N prints one JSON line
#   MLX_CONVERT mlx_lm.convert; plain affine codes are the peer of the same size
#   MLX_CHECKPOINT  the same checkpoint with its config as mlx-lm reads it, where that differs (default: CHECKPOINT)
#   METHODS     methods to compare (default: minmax search)
#   WINDOWS     windows of 256 tokens to score (default: 64)
set -euo pipefail
. "$(dirname "$0")/lib.sh"
[ $# -ge 2 ] || die "usage: quality.sh CHECKPOINT TEXT [BITS...]"
checkpoint=$1
text=$2
windows=${WINDOWS:-64}
shift 2
[ $# -gt 0 ] && bits_list=("$@") || bits_list=(4 3 2)
need SHARDWRIGHT "the shardwright binary"
need HF_PYTHON "a Python with torch and transformers"
need_file EVAL_HF "the scoring script"
need MLX_CONVERT "the mlx_lm.convert program"
need_file checkpoint "a checkpoint directory (first argument)"
need_file text "a text that no calibration has seen (second argument)"

# score LABEL CANDIDATE BITS_PER_WEIGHT OWN_KLD: one row from the scorer; without BITS_PER_WEIGHT, the scorer's own count.
score() {
  "$HF_PYTHON" "$EVAL_HF" "$checkpoint" "$2" "$text" --windows "$windows" >"$SCRATCH/score.json" 2>"$SCRATCH/log" ||
    { tail -5 "$SCRATCH/log" >&2; die "scoring $1 failed"; }
  local size=$3 mean tail same
  [ -n "$size" ] || size=$(field "$SCRATCH/score.json" bpw)
  mean=$(field "$SCRATCH/score.json" kld_mean)
  tail=$(field "$SCRATCH/score.json" kld_p99)
  same=$(field "$SCRATCH/score.json" top1)
  row "$1" "$size" "$mean" "$tail" "$same" "$4"
}

# own LABEL BITS METHOD: convert, verify with our verifier, export, score; the last column is our verifier's own divergence.
own() {
  local bundle="$SCRATCH/bundle" export="$SCRATCH/export" size divergence
  "$SHARDWRIGHT" convert "$checkpoint" -o "$bundle" --bits "$2" --group-size 64 --method "$3" --threads "$THREADS" \
    --json >"$SCRATCH/convert.json"
  "$SHARDWRIGHT" verify "$bundle" --against "$checkpoint" --text "$text" --window 256 --windows "$windows" --json \
    >"$SCRATCH/verify.json"
  "$SHARDWRIGHT" export "$bundle" --to hf -o "$export" >"$SCRATCH/log"
  size=$(field "$SCRATCH/convert.json" summary.bits_per_weight)
  divergence=$(field "$SCRATCH/verify.json" divergence.kld_mean)
  score "$1" "$export" "$size" "$divergence"
  drop "$bundle"
  drop "$export"
}

header candidate "bits/weight" "mean KLD" "99 % KLD" "same top" "mean KLD, shardwright verify"
for bits in "${bits_list[@]}"; do
  "$MLX_CONVERT" --hf-path "${MLX_CHECKPOINT:-$checkpoint}" --mlx-path "$SCRATCH/mlx" -q --q-bits "$bits" \
    --q-group-size 64 >"$SCRATCH/log" 2>&1 || { tail -5 "$SCRATCH/log" >&2; die "mlx_lm.convert failed"; }
  score "mlx affine $bits-bit g64" "mlx:$SCRATCH/mlx" "" "-"
  drop "$SCRATCH/mlx"
  for method in ${METHODS:-minmax search}; do own "shardwright $method $bits-bit g64" "$bits" "$method"; done
done
