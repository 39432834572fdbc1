#!/bin/bash
# Decoding side by side: tokens per second resident and with memory limited, beside what the disk gives.
# Usage: decode.sh BUNDLE GGUF_Q4_0 [MEMORY_MIB...]   (default limits: 600 1024)
#   SHARDWRIGHT our binary (default target/release/shardwright)
#   FIO         fio (default: fio on PATH)
#   LLAMA_CLI   llama-completion (or llama-cli) of a CPU build
#   MEMCAP      a program `memcap LIMIT COMMAND...` that drops caches and runs the command in a memory cgroup
set -euo pipefail
. "$(dirname "$0")/lib.sh"
[ $# -ge 2 ] || die "usage: decode.sh BUNDLE GGUF_Q4_0 [MEMORY_MIB...]"
bundle=$1
gguf=$2
shift 2
[ $# -gt 0 ] && limits=("$@") || limits=(600 1024)
need SHARDWRIGHT "the shardwright binary"
need LLAMA_CLI "the llama-completion program"
need MEMCAP "a program 'memcap LIMIT COMMAND...'"
FIO=${FIO:-fio}
need FIO "the fio program"
need_file bundle "a bundle (first argument)"
need_file gguf "a Q4_0 GGUF of the same checkpoint (second argument)"
prompt="The memory of a machine"
tokens=${TOKENS:-32}
all=$(($(free -m | awk '/^Mem:/ { print $2 }') * 3 / 4))

# ours CAP BUDGET: tokens per second of decoding in a memory cgroup of CAP MiB, weights and state inside BUDGET MiB.
ours() {
  "$MEMCAP" "$1M" "$SHARDWRIGHT" run "$bundle" --prompt "$prompt" -n "$tokens" --memory "$2MiB" \
    --threads "$THREADS" --temperature 0 --ignore-eos --json >"$SCRATCH/run.json" 2>"$SCRATCH/run.log" ||
    { tail -5 "$SCRATCH/run.log" >&2; die "shardwright run failed at $1 MiB"; }
  printf '%.2f' "$(field "$SCRATCH/run.json" decode.tokens_per_second)"
}

# peer CAP: the same of llama.cpp, whose weights are mapped and paged by the kernel.
peer() {
  "$MEMCAP" "$1M" "$LLAMA_CLI" -m "$gguf" -p "$prompt" -n "$tokens" -t "$THREADS" -c 256 --temp 0 --ignore-eos \
    --no-repack --no-warmup -no-cnv </dev/null >"$SCRATCH/llama.log" 2>&1 ||
    { tail -5 "$SCRATCH/llama.log" >&2; die "$LLAMA_CLI failed at $1 MiB"; }
  grep ' eval time' "$SCRATCH/llama.log" | grep -v prompt | grep -o '[0-9.]* tokens per second' | cut -d' ' -f1
}

# disk BYTES DEPTH: direct random reads of whole records, GB/s.
disk() {
  "$FIO" --name=records --filename="$gguf" --readonly --rw=randread --bs="$1" --direct=1 --ioengine=psync \
    --numjobs="$2" --thread --norandommap --randrepeat=0 --runtime=10 --time_based --group_reporting \
    --output-format=json 2>/dev/null |
    python3 -c 'import json, sys; print("%.2f" % (json.load(sys.stdin)["jobs"][0]["read"]["bw_bytes"] / 1e9))'
}

# compare NAME CAP BUDGET: one row. Assigned first: a failure inside an argument would go unseen.
compare() {
  local own other
  own=$(ours "$2" "$3")
  other=$(peer "$2")
  row "$1" "$own" "$other"
}

header memory "shardwright tokens/s" "llama.cpp mmap tokens/s"
compare "all resident" "$all" "$((all / 2))"
for limit in "${limits[@]}"; do compare "$limit MiB" "$limit" "$((limit * 5 / 6))"; done
echo
record=${RECORD_BYTES:-2654208}
header "direct random reads of $record bytes" "GB/s"
for depth in 1 4 8 16; do
  rate=$(disk "$record" "$depth")
  row "$depth in flight" "$rate"
done
