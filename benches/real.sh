#!/bin/bash
# Two published models, from their GGUF files alone and from checkpoints: every command, and the tokens that transformers continues with.
# Usage: real.sh DIR [TEXT]    (fetched and made in DIR where they are not there yet: see fetch_real.py)
#   SHARDWRIGHT our binary (default target/release/shardwright)
#   HF_PYTHON   a Python with pip, torch, transformers, gguf and sentencepiece, to fetch (default: python3)
#   WINDOWS     windows of 256 tokens of TEXT to read (default: 16)
#   TEXT        a text to read (default: fixtures/text/evaluation.txt)
set -euo pipefail
. "$(dirname "$0")/lib.sh"
[ $# -ge 1 ] || die "usage: real.sh DIR [TEXT]"
dir=$1
text=${2:-$(dirname "$0")/../fixtures/text/evaluation.txt}
HF_PYTHON=${HF_PYTHON:-python3}
need SHARDWRIGHT "the shardwright binary"
"$HF_PYTHON" "$(dirname "$0")/fetch_real.py" "$dir" >&2

# continued MODEL EXPECTED: whether the model continues the prompt of EXPECTED with its tokens.
continued() {
  local prompt count
  prompt=$(field "$2" prompt)
  count=$(python3 -c 'import json, sys; print(len(json.load(open(sys.argv[1]))["ids"]))' "$2")
  "$SHARDWRIGHT" run "$1" --prompt "$prompt" -n "$count" --json --quiet >"$SCRATCH/run.json" 2>"$SCRATCH/log"
  python3 - "$SCRATCH/run.json" "$2" <<'PY'
import json, sys
found, expected = (json.load(open(path))[key] for path, key in zip(sys.argv[1:], ("tokens", "ids")))
print("equal" if found == expected else f"differs after {sum(a == b for a, b in zip(found, expected))}")
PY
}

# steps LABEL MODEL CHECKPOINT: one row. Whatever a command refuses ends the script.
steps() {
  local label=$1 model=$2 expected=$3/expected.json
  for command in inspect plan; do "$SHARDWRIGHT" "$command" "$model" --json --quiet >"$SCRATCH/log" 2>&1 || die "$command $model"; done
  "$SHARDWRIGHT" convert "$model" -o "$SCRATCH/real.bundle" --threads "$THREADS" --json --quiet >"$SCRATCH/convert.json"
  "$SHARDWRIGHT" verify "$SCRATCH/real.bundle" --against "$model" --text "$text" --windows "${WINDOWS:-16}" --json --quiet >"$SCRATCH/verify.json"
  "$SHARDWRIGHT" export "$model" --to hf -o "$SCRATCH/real-hf" --quiet >"$SCRATCH/log"
  row "$label" "$(continued "$model" "$expected")" "$(continued "$SCRATCH/real-hf" "$expected")" "$(field "$SCRATCH/convert.json" summary.bits_per_weight)" \
    "$(field "$SCRATCH/verify.json" divergence.ppl_original)" "$(field "$SCRATCH/verify.json" divergence.ppl)" "$(field "$SCRATCH/verify.json" divergence.kld_mean)"
  drop "$SCRATCH/real.bundle"
  drop "$SCRATCH/real-hf"
}

header model "greedy tokens beside transformers" "the same of its export" "bits/weight of the bundle" perplexity "perplexity of the bundle" "mean KLD"
for pair in smollm2-135m:SmolLM2-135M-Instruct.Q4_1.gguf gemma-3-270m:gemma-3-270m-q4_k_m.gguf; do
  steps "${pair%%:*}, checkpoint" "$dir/${pair%%:*}" "$dir/${pair%%:*}"
  steps "${pair##*:}" "$dir/${pair##*:}" "$dir/${pair%%:*}"
done
