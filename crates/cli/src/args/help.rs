//! Examples under each command's options.

pub const MAIN: &str = "\
The three jobs:
  shardwright convert Qwen3-30B-A3B -o qwen3.bundle      make a bundle for a phone
  shardwright verify qwen3.bundle --against Qwen3-30B-A3B --text eval.txt --max-kld 0.05
                                                         refuse a bad one in CI
  shardwright verify downloaded.bundle                   check somebody else's

Exit codes: 0 done, or the bundle holds; 1 verify found something; 2 could not run (bad input, wrong
options); 130 stopped by ctrl-c.
`shardwright COMMAND --help` shows options and examples.";

pub const INSPECT: &str = "\
Examples:
  shardwright inspect Qwen3-30B-A3B              architecture, parameters, roles, sizes
  shardwright inspect qwen3.bundle --tensors     with the shard table
  shardwright inspect qwen3.bundle --json | jq .bits_per_weight
  shardwright inspect --trace story.trace        what other room and other caches would have found";

pub const PLAN: &str = "\
Examples:
  shardwright plan Qwen3-30B-A3B                           the default recipe
  shardwright plan Qwen3-30B-A3B --recipe q3               a built-in one
  shardwright plan Qwen3-30B-A3B --bits 4 --group-size 32  every matrix alike
  shardwright plan Qwen3-30B-A3B --set 'expert.*=q2' --set lm_head=q8
  shardwright plan Qwen3.5-397B-A17B --set vision=keep --set mtp=q4
  shardwright plan hf://Qwen/Qwen3-30B-A3B                 headers alone, from the hub
  shardwright plan Qwen3-30B-A3B --calibrate calibration.txt --target-bpw 2.6 --save-recipe r.json
  shardwright plan Qwen3-30B-A3B --trace story.trace       what memory buys, by a trace

Encodings of --set: keep, f32, f16, bf16, q2, q3, q4, q6, q8; with a group size q4g32, and with the
type of its scales q4g32:bf16; trellis codes t2, t3, t4, with bits of state t3s16. What is not the text model (roles vision, mtp,
indexer) is left out and listed unless a rule or --set names its role; leave_out says so. Sizes in the plan are those that `convert` writes, to the byte.";

pub const CONVERT: &str = "\
Examples:
  shardwright convert Qwen3-30B-A3B -o qwen3.bundle
  shardwright convert Qwen3-30B-A3B -o qwen3.bundle --recipe q3 --threads 4
  shardwright convert Qwen3-30B-A3B -o qwen3.bundle --calibrate calibration.txt --target-bpw 2.6
  shardwright convert Qwen3-30B-A3B -o qwen3.bundle --resume       after ctrl-c or a crash
  shardwright convert Qwen3-30B-A3B -o two.bundle --layers 0..2    an excerpt to measure on
  shardwright convert hf://Qwen/Qwen3-30B-A3B -o qwen3.bundle      nothing of it is kept
  shardwright convert hf://Qwen/Qwen3-30B-A3B -o q.bundle --keep   its source stays in the cache
  shardwright convert Qwen3-30B-A3B -o qwen3.bundle --part 2/4     one of four parts, for `merge`

Nothing is left under the bundle's name until it is whole. Memory does not grow with the model.
`shardwright plan` takes the same options and writes nothing.";

pub const MERGE: &str = "\
Examples:
  shardwright merge qwen3.bundle.part-*-of-4 -o qwen3.bundle

Every byte of the parts is checked. Parts of other recipes, checkpoints, statistics or versions are
refused. The bundle is the one that `convert` without --part makes, to the byte. Its files are links to those of the
parts where both are on one file system, so that it takes no room of its own; the parts may be removed.";

pub const CALIBRATE: &str = "\
Examples:
  shardwright calibrate Qwen3-30B-A3B calibration.txt -o qwen3.statistics
  shardwright convert Qwen3-30B-A3B -o qwen3.bundle --statistics qwen3.statistics

Conversions with the same statistics give the same bytes on any machine. `convert --calibrate TEXT`
needs no file and knows more: there each layer is observed behind the layers quantized before it.";

pub const RUN: &str = "\
Examples:
  shardwright run qwen3.bundle --prompt 'Once upon a time' -n 100
  shardwright run qwen3.bundle --prompt-file story.txt --memory 512MiB --check-reads
  shardwright run qwen3.bundle --prompt Hello --cache-type-k q8_0 --cache-type-v q8_0
  shardwright run qwen3.bundle --prompt-file code.py --draft ngram
  shardwright run qwen3.bundle --prompt Hello --draft small.bundle
  shardwright run qwen3.5.bundle --prompt Hello --draft mtp
  shardwright run qwen3.bundle --prompt-file manual.txt --session manual.session
  shardwright run qwen3.bundle --prompt-file story.txt --memory 2GiB --trace story.trace
  shardwright run qwen3.bundle --chat --memory-file limit   read again on SIGUSR1
  shardwright run Qwen3-30B-A3B --prompt Hello              the original, unquantized
  shardwright run qwen3.bundle --prompt Hello --temperature 0.8 --top-p 0.95 --seed 7
  shardwright run qwen3.bundle --chat                       a conversation, a line for each turn
  shardwright run qwen3.bundle --chat --system 'Be brief.' --prompt 'Why is the sky blue?'

Text goes to stdout as it is made, statistics to stderr (or all of it to stdout with --json).";

pub const BENCH: &str = "\
Examples:
  shardwright bench qwen3.bundle
  shardwright bench qwen3.bundle -p 128,512 -n 64 -d 0,2048 --threads 4
  shardwright bench qwen3.bundle -p 0 --memory 512MiB       generation alone, streamed

The columns are those of llama-bench: pp512 reads a prompt of 512 tokens, tg128 generates 128, and
d2048 says how many positions were there before. Tokens per second: mean and standard deviation.";

pub const VERIFY: &str = "\
Examples:
  shardwright verify qwen3.bundle                              every byte is the one written
  shardwright verify qwen3.pack                                the same of a packed bundle
  shardwright verify qwen3.bundle --against Qwen3-30B-A3B      and every weight close to its source
  shardwright verify qwen3.bundle --against Qwen3-30B-A3B --text eval.txt --html report.html
  shardwright verify q4.bundle Qwen3-Q4_K_M.gguf Qwen3-mlx-4bit --against Qwen3-30B-A3B \\
      --text eval.txt --html ladder.html                       anybody's quantizations, side by side
  shardwright verify qwen3.bundle --against Qwen3-30B-A3B --reproduce 20
                                                               and 20 random shards exactly what a conversion makes
  shardwright verify from-gguf.bundle --against Qwen3-30B-A3B --other-source
  shardwright verify qwen3.bundle --against Qwen3-30B-A3B --text eval.txt \\
      --max-kld 0.05 --min-same-top 0.9 --max-ppl-ratio 1.05   a gate for CI
  shardwright verify qwen3.bundle --against Qwen3-30B-A3B --text eval.txt \\
      --cache-type-k q8_0 --cache-type-v q8_0                  what a cache of 8 bits costs
  shardwright verify qwen3.bundle --against Qwen3-30B-A3B --text eval.txt --part 1/8 -o eval
  shardwright verify --merge eval.part-*-of-8 --html report.html   the report of one run

Exit codes: 0 holds, 1 found something, 2 could not run.";

pub const COMPARE: &str = "\
Examples:
  shardwright verify q4.bundle --against Qwen3-30B-A3B --text eval.txt --json > q4.json
  shardwright verify q3.bundle --against Qwen3-30B-A3B --text eval.txt --json > q3.json
  shardwright compare q4.json q3.json                      sizes, figures, what differs and drift
  shardwright compare q4.json q3.json --html curve.html    with the curve of divergence by size
  shardwright compare q4.json q3.json --html curve.html --beside others.jsonl

Warns where reports are not comparable: other checkpoints, texts or windows. Exit codes: 0 compared,
2 could not run.";

pub const EXPORT: &str = "\
Examples:
  shardwright export qwen3.bundle --to hf -o qwen3-dequantized
  shardwright export qwen3.bundle --to hf -o qwen3-dequantized --dtype source
  shardwright export qwen3-Q4_K_M.gguf --to hf -o qwen3-from-gguf     weights, config and tokenizer of a GGUF file
  shardwright convert Qwen3-30B-A3B -o qwen3.bundle --bits 4 --for mlx
  shardwright export qwen3.bundle --to mlx -o qwen3-mlx               the bundle's own codes, for mlx-lm
  shardwright convert Qwen3-30B-A3B -o qwen3.bundle --bits 4 --for gguf
  shardwright export qwen3.bundle --to gguf -o qwen3.gguf             for llama.cpp
  shardwright convert Qwen3.5-35B-A3B -o qwen35.bundle --bits 4 --for flash-moe
  shardwright export qwen35.bundle --to flash-moe -o qwen35-packed    for flash-moe and its apps for iOS";

pub const PACK: &str = "\
Examples:
  shardwright pack qwen3.bundle -o qwen3.pack
  shardwright pack qwen3.bundle -o qwen3.pack --resume     after ctrl-c or a crash
  shardwright verify qwen3.pack                            checks it without unpacking
  shardwright unpack qwen3.pack -o qwen3.bundle

The bundle's hashes are checked on the way. The same bundle gives the same file. A bundle is not
read from a packed file: unpack it first.";

pub const UNPACK: &str = "\
Examples:
  shardwright unpack qwen3.pack -o qwen3.bundle
  shardwright unpack qwen3.pack -o qwen3.bundle --resume   after ctrl-c or a crash

Every byte is checked on the way; of a damaged file nothing appears under the bundle's name.";

pub const RECIPES: &str = "\
Examples:
  shardwright recipes                      the built-in ones
  shardwright recipes moe-q3 > mine.json   one as a file, to change and give to --recipe

All are about the text model. What else a checkpoint holds (roles vision, mtp, indexer) is left out
and listed with the reason; `--set vision=keep`, or a rule that names the role, has it in the bundle.";

pub const ARCH: &str = "\
Examples:
  shardwright arch list                             the built-in tables
  shardwright arch show qwen3_moe > mine.json       one as a file, to change and give to --arch
  shardwright arch draft Unknown-9B -o mine.json    a first table for a model that has none
  shardwright arch check Unknown-9B --arch mine.json --against golden.safetensors
                                                    whether it computes what transformers does
  shardwright convert Unknown-9B -o unknown.bundle --arch mine.json

Exit codes of `check`: 0 it agrees, 1 it does not, 2 could not run.";
