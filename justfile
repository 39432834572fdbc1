# `just` lists the recipes. Everything here is a plain command that also works without `just`.

default:
    @just --list

# formatting and lints
check:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets -- -D warnings

# every test that needs Rust alone; no network, no GPU
test *args:
    cargo test --workspace {{ args }}

# the tests that need python3 (its standard library is enough)
test-python:
    cargo test -p shardwright --test e2e -- --ignored

# what the gate runs
ci:
    .ci/run

# convert, verify and run the bundled fixture
demo:
    fixtures/demo.sh

# API documentation
doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

# remake goldens and vectors from transformers and MLX (needs `pip install -r fixtures/requirements.txt`)
golden:
    python3 fixtures/make_goldens.py
    python3 fixtures/make_vectors.py
    git diff --stat fixtures

# write a checkpoint of a published model's true size, without weights; see fixtures/skeletons
skeleton model dir=("skeleton-" + model):
    python3 fixtures/make_skeleton.py {{ model }} {{ dir }}

# count the skeletons' tensors and parameters against what was published
skeleton-check *model:
    python3 fixtures/make_skeleton.py --check {{ model }}

# rewrite the expected output of help texts and reports, and the C header, then show what changed
bless:
    SHARDWRIGHT_BLESS=1 cargo test -p shardwright --test e2e
    SHARDWRIGHT_BLESS=1 cargo test -p shardwright-capi --test header
    git diff --stat tests crates/capi/include

# attack the release build for some minutes: damaged inputs, bundles and small files, kills, surroundings; see tests/torture.rs.
# It goes on behind the seeds that target/torture/log.jsonl tells of; or from a seed, for so many cases of each kind,
# and with those tests alone whose names begin with `kind` (`just torture 1 103141 1 damaged_inputs`)
torture minutes="5" seed="next" cases="1000000" kind="":
    cargo build --release
    SHARDWRIGHT_TORTURE_MINUTES={{ minutes }} SHARDWRIGHT_TORTURE_SEED={{ seed }} \
        SHARDWRIGHT_TORTURE_CASES={{ cases }} SHARDWRIGHT_TORTURE_LOG=$PWD/target/torture/log.jsonl \
        SHARDWRIGHT_TORTURE_BINARY=$PWD/target/release/shardwright \
        cargo test --workspace --test e2e -- --nocapture 'torture::{{ kind }}'

# fuzz one target (`ls fuzz/fuzz_targets`) for some seconds
fuzz target seconds="60":
    cd fuzz && cargo run --example seeds
    cd fuzz && RUSTC_BOOTSTRAP=1 cargo fuzz run --fuzz-dir . {{ target }} -- \
        -max_total_time={{ seconds }} -max_len=65536 -malloc_limit_mb=256

# time of a conversion beside its peers; see docs/BENCHMARKS.md
bench-convert *args:
    benches/convert.sh {{ args }}

# tokens per second, streamed and resident
bench-decode *args:
    benches/decode.sh {{ args }}

# what reading likely experts ahead brings: off, on and auto in turns; CHECKPOINT|BUNDLE [SHARE...]
bench-look-ahead *args:
    benches/look-ahead.sh {{ args }}

# what --check-reads costs and drafts bring on code, prose and copied text: BUNDLE [ngram|mtp|MODEL...]
bench-options *args:
    benches/options.sh {{ args }}

# divergence of each recipe beside its peers
bench-quality *args:
    benches/quality.sh {{ args }}

# divergence against bits per weight of calibrated conversions
bench-curve *args:
    benches/curve.sh {{ args }}

# what each step of quality gives at the same size
bench-ladder *args:
    benches/ladder.sh {{ args }}

# peak memory of a conversion as the model grows
bench-memory *args:
    benches/memory.sh {{ args }}

# rank anybody's quantizations of one real model in one command: CHECKPOINT GGUF TEXT [PAGE]
bench-ladder-real *args:
    benches/ladder-real.sh {{ args }}

# fetch two published models into DIR, take each through every command and compare its tokens with transformers
real dir="real-models" *args:
    benches/real.sh {{ dir }} {{ args }}
