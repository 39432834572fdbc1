#!/bin/bash
# Memory must not grow with the model: peak resident memory of a conversion at growing depth, then the same inside a hard limit.
# Usage: memory.sh CHECKPOINT...   (checkpoints that differ in depth alone, say 4, 8 and 16 layers)
#   SHARDWRIGHT our binary (default target/release/shardwright)
#   MEMCAP      a program `memcap LIMIT COMMAND...` that drops caches and runs the command in a memory cgroup
#   LIMIT       that hard limit, page cache counted (default 512M)
set -euo pipefail
. "$(dirname "$0")/lib.sh"
[ $# -ge 1 ] || die "usage: memory.sh CHECKPOINT..."
need SHARDWRIGHT "the shardwright binary"
need MEMCAP "a program 'memcap LIMIT COMMAND...'"
limit=${LIMIT:-512M}

# convert CHECKPOINT [PREFIX...]: one conversion under the prefix command.
convert() {
  local checkpoint=$1
  shift
  drop "$SCRATCH/bundle"
  measure "$@" "$SHARDWRIGHT" convert "$checkpoint" -o "$SCRATCH/bundle" --bits 4 --group-size 64 --method minmax \
    --threads "$THREADS" --json
  drop "$SCRATCH/bundle"
}

header layers "checkpoint GB" "peak RSS MiB" "wall s" "wall s under $limit" "cgroup peak MiB"
for checkpoint in "$@"; do
  need_file checkpoint "a checkpoint directory"
  cold
  convert "$checkpoint"
  free_wall=$wall free_rss=$rss
  convert "$checkpoint" "$MEMCAP" "$limit"
  layers=$(field "$checkpoint/config.json" num_hidden_layers)
  size=$(du -sbL "$checkpoint" | awk '{ printf "%.2f", $1 / 1e9 }')
  peak=$(grep -o 'peak [0-9]*' "$SCRATCH/log" | cut -d' ' -f2)
  row "$layers" "$size" "$free_rss" "$free_wall" "$wall" "$peak"
done
