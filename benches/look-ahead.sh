#!/bin/bash
# What reading likely experts ahead brings where experts are large: off, on and auto in turns, streamed with direct reads.
# Usage: look-ahead.sh CHECKPOINT|BUNDLE [SHARE...]   (default shares: 0.1 0.25 0.5 0.75)
#   A share is how far the memory lies between the least that works and what holds all. The bundle has to be on the disk that is measured.
#   SHARDWRIGHT our binary (default target/release/shardwright)
#   TOKENS      tokens to decode (default 64)
#   ROUNDS      rounds of both orders (default 3)
#   SCRATCH     where a checkpoint's bundle is made (default: a temporary directory, removed afterwards)
# Run it on a machine that does nothing else.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
[ $# -ge 1 ] || die "usage: look-ahead.sh CHECKPOINT|BUNDLE [SHARE...]"
model=$1
shift
[ $# -gt 0 ] && shares=("$@") || shares=(0.1 0.25 0.5 0.75)
need SHARDWRIGHT "the shardwright binary"
need_file model "a checkpoint with experts, or a bundle of one (first argument)"
if [ ! -e "$model/manifest.json" ]; then
  "$SHARDWRIGHT" convert "$model" -o "$SCRATCH/bundle" --bits 4 --quiet >"$SCRATCH/convert.log"
  model=$SCRATCH/bundle
fi
run=("$SHARDWRIGHT" run "$model" --prompt "The memory of a machine" -n "${TOKENS:-64}" --ignore-eos --threads "$THREADS" --temperature 1 --json)
"${run[@]}" >"$SCRATCH/run.json"
[ "$(field "$SCRATCH/run.json" direct_io)" = True ] || die "$model: is not read past the page cache on this file system"
least=$(field "$SCRATCH/run.json" memory.floor_bytes)
all=$(field "$SCRATCH/run.json" memory.resident_bytes)
pairs=$(dirname "$0")/pairs.py
python3 "$pairs" header
for share in "${shares[@]}"; do
  memory=$(python3 -c "print(int($least + $share * ($all - $least)) + (1 << 20))")
  python3 "$pairs" --rounds "${ROUNDS:-3}" --title "$share: $((memory >> 20)) MiB" \
    --show look_ahead.tokens --show look_ahead.issued --show look_ahead.used --show look_ahead.late --show look_ahead.wasted --show look_ahead.stops \
    "off=--look-ahead off" "on=--look-ahead on" "auto=--look-ahead auto" -- "${run[@]}" --memory "$memory"
done
