#!/bin/bash
# The curve: divergence against bits per weight of calibrated conversions for given totals, with affine codes alone and with all encodings.
# An independent scorer (transformers, f32) reads the exported bundle; the last column is our own verifier's figure.
# Usage: curve.sh CHECKPOINT CALIBRATION_TEXT TEXT [BITS_PER_WEIGHT...]   (default: 2.2 2.5 2.7 3.0 3.2 3.5 4.0 4.35 4.7)
#   SHARDWRIGHT our binary (default target/release/shardwright)
#   HF_PYTHON   a Python with torch and transformers
#   EVAL_HF     the scorer: EVAL_HF ORIGINAL CANDIDATE TEXT --windows N prints one JSON line
#   ENCODINGS   which to choose from (default: affine all)
#   TOKENS      calibration tokens (default: 65536)
#   WINDOWS     windows of 256 tokens to score (default: 64)
#   OPTIONS     more options of convert, such as --state-bits 16
#   KEEP        a directory for the reports of `verify`, for `shardwright compare --html`
set -euo pipefail
. "$(dirname "$0")/lib.sh"
[ $# -ge 3 ] || die "usage: curve.sh CHECKPOINT CALIBRATION_TEXT TEXT [BITS_PER_WEIGHT...]"
checkpoint=$1
calibration=$2
text=$3
shift 3
[ $# -gt 0 ] && targets=("$@") || targets=(2.2 2.5 2.7 3.0 3.2 3.5 4.0 4.35 4.7)
windows=${WINDOWS:-64}
need SHARDWRIGHT "the shardwright binary"
need HF_PYTHON "a Python with torch and transformers"
need_file EVAL_HF "the scoring script"
need_file checkpoint "a checkpoint directory (first argument)"
need_file calibration "a text to calibrate with (second argument)"
need_file text "a text that no calibration has seen (third argument)"
reports=${KEEP:-$SCRATCH}

# point ENCODINGS TARGET: one row.
point() {
  local bundle="$SCRATCH/bundle" export="$SCRATCH/export" report="$reports/$1-$2.json"
  # shellcheck disable=SC2086 # several options
  "$SHARDWRIGHT" convert "$checkpoint" -o "$bundle" --calibrate "$calibration" --calibration-tokens "${TOKENS:-65536}" \
    --target-bpw "$2" --encodings "$1" ${OPTIONS:-} --threads "$THREADS" --json >"$SCRATCH/convert.json" 2>"$SCRATCH/log" ||
    { tail -1 "$SCRATCH/log" >&2; return 0; }
  "$SHARDWRIGHT" verify "$bundle" --against "$checkpoint" --text "$text" --window 256 --windows "$windows" --json \
    >"$report" 2>"$SCRATCH/log" || [ $? -eq 1 ]
  "$SHARDWRIGHT" export "$bundle" --to hf -o "$export" >"$SCRATCH/log"
  "$HF_PYTHON" "$EVAL_HF" "$checkpoint" "$export" "$text" --windows "$windows" >"$SCRATCH/score.json" 2>"$SCRATCH/log" ||
    { tail -5 "$SCRATCH/log" >&2; die "scoring $1 $2 failed"; }
  row "$1" "$2" "$(field "$SCRATCH/convert.json" summary.bits_per_weight)" "$(field "$SCRATCH/score.json" kld_mean)" \
    "$(field "$SCRATCH/score.json" kld_p99)" "$(field "$SCRATCH/score.json" top1)" "$(field "$SCRATCH/convert.json" seconds)" \
    "$(field "$report" divergence.kld_mean)"
  drop "$bundle"
  drop "$export"
}

header encodings "at most" "bits/weight" "mean KLD" "99 % KLD" "same top" "convert, s" "mean KLD, shardwright verify"
for encodings in ${ENCODINGS:-affine all}; do
  for target in "${targets[@]}"; do point "$encodings" "$target"; done
done
