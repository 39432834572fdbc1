#!/bin/bash
# The ladder: what each step of quality gives at the same bits per weight, scored by our own verifier.
# Usage: ladder.sh CHECKPOINT CALIBRATION_TEXT TEXT [BITS]   (default: 3; groups of 64)
#   SHARDWRIGHT our binary (default target/release/shardwright)
#   TOKENS      calibration tokens (default: 65536)
#   WINDOWS     windows of 256 tokens to score (default: 64)
set -euo pipefail
. "$(dirname "$0")/lib.sh"
[ $# -ge 3 ] || die "usage: ladder.sh CHECKPOINT CALIBRATION_TEXT TEXT [BITS]"
checkpoint=$1
calibration=$2
text=$3
bits=${4:-3}
need SHARDWRIGHT "the shardwright binary"
need_file checkpoint "a checkpoint directory (first argument)"
need_file calibration "a text to calibrate with (second argument)"
need_file text "a text that no calibration has seen (third argument)"
amount=(--calibration-tokens "${TOKENS:-65536}")

# step LABEL OPTIONS...: one row.
step() {
  local label=$1 bundle="$SCRATCH/bundle"
  shift
  "$SHARDWRIGHT" convert "$checkpoint" -o "$bundle" --threads "$THREADS" "$@" --json >"$SCRATCH/convert.json" 2>"$SCRATCH/log" ||
    { tail -1 "$SCRATCH/log" >&2; die "$label failed"; }
  "$SHARDWRIGHT" verify "$bundle" --against "$checkpoint" --text "$text" --window 256 --windows "${WINDOWS:-64}" --json \
    >"$SCRATCH/verify.json" 2>"$SCRATCH/log" || [ $? -eq 1 ]
  row "$label" "$(field "$SCRATCH/convert.json" summary.bits_per_weight)" "$(field "$SCRATCH/verify.json" divergence.kld_mean)" \
    "$(field "$SCRATCH/verify.json" divergence.kld_p99)" "$(field "$SCRATCH/convert.json" seconds)"
  drop "$bundle"
}

"$SHARDWRIGHT" calibrate "$checkpoint" "$calibration" -o "$SCRATCH/statistics" "${amount[@]}" >"$SCRATCH/log" 2>&1
total=$(awk "BEGIN { print $bits + 0.5 }")
text_options=(--calibrate "$calibration" "${amount[@]}")
header step "bits/weight" "mean KLD" "99 % KLD" "seconds"
step minmax --bits "$bits" --method minmax
step search --bits "$bits" --method search
step importance --bits "$bits" --method importance --statistics "$SCRATCH/statistics"
step "gptq, inputs of the original" --bits "$bits" --method gptq --statistics "$SCRATCH/statistics"
step "gptq, inputs behind quantized layers" --bits "$bits" --method gptq "${text_options[@]}"
step "allocation, affine" --target-bpw "$total" --encodings affine "${text_options[@]}"
for states in ${STATES:-10 12 14 16}; do
  step "allocation, trellis of $states state bits" --target-bpw "$total" --state-bits "$states" "${text_options[@]}"
done
