//! A chunk of a prompt reads each expert at most once, in order, and a longer chunk reads less.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;

use serde_json::{Value, json};
use shardwright_format::Unit;
use shardwright_format::weights::Weights;
use shardwright_quant::Encoding;
use shardwright_runtime::plan::ChunkRoom;
use shardwright_runtime::trace::Visit;
use shardwright_runtime::{LookAhead, MemoryPlan, Options, Runtime};
use shardwright_testing::models::TestBundle;
use shardwright_testing::{Golden, RawTensors, copy_dir, golden};

const WITH_EXPERTS: [&str; 6] =
    ["qwen3_moe", "gpt_oss", "deepseek_v3", "qwen3_next", "mixtral", "olmoe"];

fn open(case: &Golden) -> Weights {
    Weights::open(&case.path).unwrap()
}

fn options(memory: Option<u64>, chunk: usize) -> Options {
    Options { memory, threads: 2, chunk, context: 64, ..Options::default() }
}

/// The least budget, one that holds half of the rest, and one byte less than all.
fn budgets(case: &Golden) -> [u64; 3] {
    let plan = MemoryPlan::new(&open(case), &options(None, 1)).unwrap();
    let (min, all) = (plan.min_bytes, plan.resident);
    [min, min.midpoint(all), all - 1]
}

/// What became of experts in a text that is read as a prompt up to its last three tokens.
fn visits(case: &Golden, options: &Options) -> (Vec<Visit>, Runtime) {
    let tokens = [case.tokens(), case.tokens()].concat();
    let (prompt, rest) = tokens.split_at(tokens.len() - 3);
    let mut runtime = Runtime::open(open(case), options).unwrap();
    runtime.watch_experts();
    runtime.forward_all(prompt).unwrap();
    for token in rest {
        runtime.forward(*token).unwrap();
    }
    (runtime.take_visits(), runtime)
}

fn ascends(experts: &[u32]) -> bool {
    experts.is_sorted_by(|a, b| a < b)
}

#[test]
fn a_chunk_reads_each_expert_at_most_once_and_in_order() {
    for name in WITH_EXPERTS {
        let case = Golden::named(name);
        let weights = open(&case);
        for budget in budgets(&case) {
            for chunk in [1, 5, 64] {
                let (visits, runtime) = visits(&case, &options(Some(budget), chunk));
                let what = format!("{name}: {budget} bytes, {chunk} tokens");
                let mut misses = 0;
                for visit in &visits {
                    let Visit { layer, picks, hits, reads, bytes, .. } = visit;
                    // Strictly: no expert comes twice.
                    assert!(ascends(reads) && ascends(hits), "{what}: {visit:?}");
                    let found: BTreeSet<u32> = hits.iter().chain(reads).copied().collect();
                    assert_eq!(found, picks.iter().copied().collect(), "{what}");
                    assert_eq!(found.len(), hits.len() + reads.len(), "{what}: {visit:?}");
                    // What arrived of files, not what was asked for.
                    let len = |expert: &u32| {
                        let unit = Unit::Expert { layer: *layer, expert: *expert };
                        weights.layout(unit).unwrap().len
                    };
                    assert_eq!(*bytes, reads.iter().map(len).sum::<u64>(), "{what}");
                    misses += reads.len() as u64;
                }
                assert_eq!(misses, runtime.stats().cache_misses, "{what}");
                let rows: usize = visits.iter().map(|v| v.picks.len() / v.k).sum();
                let layers = visits
                    .iter()
                    .map(|v| v.layer)
                    .collect::<BTreeSet<_>>()
                    .len();
                assert_eq!(rows, layers * 2 * case.tokens().len(), "{what}");
            }
        }
    }
}

/// A bundle of random weights with 64 experts in each of three layers, 4 picks, each as large as the buffers of a few
/// tokens: the proportions of models that are streamed.
fn wide() -> TestBundle {
    let dir = tempfile::tempdir().unwrap();
    copy_dir(&golden("qwen3_moe"), dir.path());
    let config = dir.path().join("config.json");
    let mut json: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    json["mlp_only_layers"] = json!([]);
    json["num_experts"] = 64.into();
    json["num_experts_per_tok"] = 4.into();
    json["moe_intermediate_size"] = 256.into();
    std::fs::write(&config, json.to_string()).unwrap();
    let path = dir.path().join("model.safetensors");
    let mut tensors = RawTensors::read(&path);
    let mut shapes = Vec::new();
    for (name, tensor) in &tensors.header {
        let wider = |shape: &Value| match shape.as_u64() {
            Some(96) => Value::from(256),
            Some(6) => Value::from(64),
            _ => shape.clone(),
        };
        let shape: Vec<Value> = tensor["shape"]
            .as_array()
            .into_iter()
            .flatten()
            .map(wider)
            .collect();
        match name.split_once("experts.0.") {
            Some((layer, role)) => {
                shapes
                    .extend((0..64).map(|i| (format!("{layer}experts.{i}.{role}"), shape.clone())));
            }
            None if name.contains("experts.") || name == "__metadata__" => {}
            None => shapes.push((name.clone(), shape)),
        }
    }
    // The layer between the two with experts becomes one of them.
    shapes.retain(|(name, _)| !name.contains("layers.1.mlp."));
    let first = shapes
        .iter()
        .filter(|(name, _)| name.contains("layers.0.mlp."));
    let second = first.map(|(name, shape)| (name.replace("layers.0.", "layers.1."), shape.clone()));
    shapes.extend(second.collect::<Vec<_>>());
    tensors.header.clear();
    let mut end = 0;
    for (name, shape) in shapes {
        let begin = end;
        end += 2 * shape.iter().map(|n| n.as_u64().unwrap()).product::<u64>();
        let tensor = json!({"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]});
        tensors.header.insert(name, tensor);
    }
    // The values are not looked at.
    tensors.data = vec![0; end as usize];
    std::fs::write(&path, tensors.to_bytes()).unwrap();
    TestBundle::random(dir.path(), &|_| Encoding::Bf16)
}

/// What may change from run to run, and must not change a text: tokens of a prompt together, threads, experts
/// read ahead, tokens tried together. Any two of them meet in every way.
const WAYS: [(usize, usize, LookAhead, usize); 9] = [
    (1, 1, LookAhead::On, 0),
    (1, 2, LookAhead::Auto, 3),
    (2, 1, LookAhead::Off, 3),
    (2, 2, LookAhead::On, 0),
    (16, 1, LookAhead::Auto, 0),
    (16, 2, LookAhead::On, 3),
    (64, 1, LookAhead::On, 3),
    (64, 1, LookAhead::Auto, 0),
    (64, 2, LookAhead::Off, 0),
];

/// Bits of the logits after a prompt and after each of `rest`, of which those that a draft has room for are
/// tried together, every third of them another token first; and how many experts the prompt read.
fn logits(runtime: &mut Runtime, prompt: &[u32], rest: &[u32]) -> (Vec<Vec<u32>>, u64) {
    let bits = |logits: &[f32]| logits.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    let mut all = vec![bits(runtime.forward_all(prompt).unwrap())];
    let (read, mut at) = (runtime.stats().cache_misses, 0);
    while at < rest.len() {
        let end = rest.len().min(at + 1 + runtime.draft_room());
        let mut tried = rest[at..end].to_vec();
        if let Some(token) = tried.get_mut(1 + at % 3) {
            *token = (*token + 1) % 256;
        }
        let before = at;
        let kept = runtime.forward_while(&tried, |row, logits| {
            all.push(bits(logits));
            tried.get(row + 1) == rest.get(before + row + 1)
        });
        at += kept.unwrap();
    }
    (all, read)
}

#[test]
fn long_prompts_take_the_room_of_experts_and_read_less() {
    let bundle = wide();
    let tokens: Vec<u32> = (0..62).map(|i| i * 7919 % 256).collect();
    let (prompt, rest) = tokens.split_at(48);
    let run = |memory, (chunk, threads, look_ahead, draft)| {
        let options = Options { threads, look_ahead, draft, ..options(memory, chunk) };
        let weights = Weights::open(bundle.root.path()).unwrap();
        let mut runtime = Runtime::open(weights, &options).unwrap();
        let (logits, read) = logits(&mut runtime, prompt, rest);
        (logits, read, runtime)
    };
    let plainly = (1, 1, LookAhead::Off, 0);
    let (expected, _, resident) = run(None, plainly);
    let (min, all) = (resident.plan().min_bytes, resident.plan().resident);
    let mut ahead = 0;
    for eighths in 1..8 {
        let budget = min + (all - min) * eighths / 8;
        let (one_by_one, singly, _) = run(Some(budget), plainly);
        assert!(one_by_one == expected, "{budget}");
        for way in WAYS {
            let (found, read, runtime) = run(Some(budget), way);
            assert!(found == expected, "{budget} bytes, {way:?} change the logits");
            ahead += runtime.stats().ahead.guesses.issued;
            let plan = runtime.plan();
            let rooms = &plan.rooms;
            assert!(plan.total <= budget && rooms[0].slots == plan.expert_slots, "{plan:?}");
            let falls = |a: &ChunkRoom, b: &ChunkRoom| a.tokens < b.tokens && a.slots >= b.slots;
            assert!(rooms.is_sorted_by(falls) && rooms.last().unwrap().slots >= 4, "{rooms:?}");
            assert_eq!(rooms.last().unwrap().tokens, plan.chunk);
            let weights = plan.total - plan.reserved - plan.state - plan.scratch;
            assert!(runtime.stats().bytes_resident <= weights, "{plan:?}");
            if eighths < 3 && way == (64, 2, LookAhead::Off, 0) {
                assert!(rooms.len() > 1, "{budget}: {rooms:?}");
                assert!(
                    4 * read < 3 * singly,
                    "{budget}: {read} reads, singly {singly}: {rooms:?}"
                );
            }
        }
    }
    assert!(ahead > 0, "nothing was read ahead");
}
