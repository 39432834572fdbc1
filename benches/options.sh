#!/bin/bash
# What options of `run` cost or bring, in pairs: --check-reads resident and streamed, and drafts on code, prose and copied text.
# Usage: options.sh BUNDLE [DRAFT...]   (default drafts: ngram; mtp, or another bundle, may be named besides)
#   SHARDWRIGHT our binary (default target/release/shardwright)
#   CODE, PROSE files to go on from (default: a source file and a text of this project)
#   TOKENS      tokens to decode (default 128)
#   ROUNDS      rounds of both orders (default 3)
# Run it on a machine that does nothing else.
set -euo pipefail
. "$(dirname "$0")/lib.sh"
[ $# -ge 1 ] || die "usage: options.sh BUNDLE [DRAFT...]"
model=$1
shift
[ $# -gt 0 ] && drafts=("$@") || drafts=(ngram)
need SHARDWRIGHT "the shardwright binary"
need_file model "a bundle (first argument)"
root=$(dirname "$0")/..
CODE=${CODE:-$root/crates/runtime/src/store.rs}
PROSE=${PROSE:-$root/fixtures/text/evaluation.txt}
pairs=$root/benches/pairs.py
run=("$SHARDWRIGHT" run "$model" -n "${TOKENS:-128}" --ignore-eos --threads "$THREADS" --json)

# Prompts: the beginning of each text; and a text of which the second copy is only begun.
head -c 2000 "$CODE" >"$SCRATCH/code"
head -c 2000 "$PROSE" >"$SCRATCH/prose"
head -c 1500 "$PROSE" >"$SCRATCH/copied"
{ echo; echo; head -c 400 "$PROSE"; } >>"$SCRATCH/copied"

# Half of what lies between the least that works, with any of the drafts, and what holds all.
least=0
for options in "" "${drafts[@]/#/--draft }"; do
  # shellcheck disable=SC2086 # nothing, or an option and its value
  "${run[@]}" --prompt-file "$SCRATCH/prose" $options >"$SCRATCH/run.json"
  floor=$(field "$SCRATCH/run.json" memory.floor_bytes)
  if [ "$floor" -gt "$least" ]; then
    least=$floor
    all=$(field "$SCRATCH/run.json" memory.resident_bytes)
  fi
done
half=$(((least + all) / 2 + (1 << 20)))
python3 "$pairs" header
for memory in "" "--memory $half"; do
  where="streamed, $((half >> 20)) MiB"
  [ -n "$memory" ] || where=resident
  # shellcheck disable=SC2086 # nothing, or an option and its value
  python3 "$pairs" --rounds "${ROUNDS:-3}" --title "reads, $where" --show checked.shards --show checked.bytes \
    "plain=" "checked=--check-reads" -- "${run[@]}" --prompt-file "$SCRATCH/prose" $memory
  for text in code prose copied; do
    options=("plain=")
    for draft in "${drafts[@]}"; do options+=("$draft=--draft $draft"); done
    # shellcheck disable=SC2086
    python3 "$pairs" --rounds "${ROUNDS:-3}" --title "$text, $where" --show draft.offered --show draft.accepted --show draft.steps --show draft.declined \
      "${options[@]}" -- "${run[@]}" --prompt-file "$SCRATCH/$text" $memory
  done
done
