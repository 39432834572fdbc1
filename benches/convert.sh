#!/bin/bash
# Conversion side by side: wall, CPU and peak resident memory, each command on a cold page cache.
# Usage: convert.sh CHECKPOINT [GGUF_F16]
#   SHARDWRIGHT    our binary (default target/release/shardwright)
#   MLX_CONVERT    mlx_lm.convert
#   LLAMA_QUANTIZE llama-quantize; needs GGUF_F16, the same checkpoint as a 16-bit GGUF
set -euo pipefail
. "$(dirname "$0")/lib.sh"
[ $# -ge 1 ] || die "usage: convert.sh CHECKPOINT [GGUF_F16]"
checkpoint=$1
gguf=${2:-}
need SHARDWRIGHT "the shardwright binary"
need MLX_CONVERT "the mlx_lm.convert program"
need LLAMA_QUANTIZE "the llama-quantize program"
need_file checkpoint "a checkpoint directory (first argument)"
need_file gguf "that checkpoint as a 16-bit GGUF (second argument)"

# timed NAME OUTPUT COMMAND...: one row; the output is removed afterwards.
timed() {
  local name=$1 output=$2
  shift 2
  cold
  measure "$@"
  row "$name" "$wall" "$cpu" "$rss" "$(du -sb "$output" | awk '{ printf "%.3f", $1 / 1e9 }')"
  drop "$output"
}

header step "wall s" "CPU s" "peak RSS MiB" "output GB"
for method in minmax search; do
  timed "shardwright 4-bit g64 $method, $THREADS threads" "$SCRATCH/ours" \
    "$SHARDWRIGHT" convert "$checkpoint" -o "$SCRATCH/ours" --bits 4 --group-size 64 \
    --method "$method" --threads "$THREADS" --json
done
timed "mlx_lm.convert 4-bit g64 (minmax)" "$SCRATCH/mlx" \
  "$MLX_CONVERT" --hf-path "$checkpoint" --mlx-path "$SCRATCH/mlx" -q --q-bits 4 --q-group-size 64
for kind in Q4_0 Q4_K_S; do
  timed "llama-quantize --pure $kind, $THREADS threads" "$SCRATCH/$kind.gguf" \
    "$LLAMA_QUANTIZE" --pure "$gguf" "$SCRATCH/$kind.gguf" "$kind" "$THREADS"
done
