//! Attention of one position: `cargo bench -p shardwright-quant --bench attention`.
//!
//! An item is a head's position: a score, a weight, and a value added. `near` reads one cache over and over, `far` as
//! many as a model has, which are more than the CPU's own caches hold.

use std::hint::black_box;

use divan::counter::ItemsCount;
use divan::{Bencher, main as run};
use shardwright_quant::{Attention, Backend, CacheType, Kept, VectorLayout, attend};

/// As SmolLM2-135M: heads, heads of keys and values, and the length of each.
const HEADS: usize = 9;
const KV_HEADS: usize = 3;
const DIM: usize = 64;

/// Layers whose caches are read in turn.
const LAYERS: usize = 60;

const POSITIONS: usize = 1024;

fn main() {
    run();
}

fn cases() -> Vec<String> {
    let backends = Backend::available()
        .into_iter()
        .filter(|b| *b != Backend::Scalar);
    let kinds = ["near f16", "far f16", "near q8_0", "far q8_0"];
    backends
        .flat_map(|b| kinds.map(|kind| format!("{} {kind}", b.name())))
        .collect()
}

/// Vectors `[kv_heads, positions]`.
fn cache(layout: VectorLayout) -> Vec<u8> {
    let x: Vec<f32> = (0..layout.len()).map(|i| (i as f32 * 0.7).sin()).collect();
    let mut bytes = vec![0; POSITIONS * KV_HEADS * layout.byte_len()];
    bytes
        .chunks_exact_mut(layout.byte_len())
        .for_each(|vector| layout.write(&x, vector));
    bytes
}

#[divan::bench(args = cases())]
fn attention(bencher: Bencher<'_, '_>, case: &str) {
    let mut words = case.split(' ');
    let [backend, place, dtype] = [(); 3].map(|()| words.next().unwrap());
    let backend = Backend::available()
        .into_iter()
        .find(|b| b.name() == backend)
        .unwrap();
    let dtype = CacheType::ALL
        .into_iter()
        .find(|t| t.name() == dtype)
        .unwrap();
    let layout = VectorLayout::new(dtype, DIM, 0);
    let layers = if place == "near" { 1 } else { LAYERS };
    let caches: Vec<_> = (0..layers)
        .map(|_| [cache(layout), cache(layout)])
        .collect();
    let q: Vec<f32> = (0..HEADS * DIM).map(|i| (i as f32 * 0.3).cos()).collect();
    let (mut out, mut layer) = (vec![0.0; HEADS * DIM], 0);
    bencher
        .counter(ItemsCount::new(HEADS * POSITIONS))
        .bench_local(|| {
            layer = (layer + 1) % layers;
            let group = HEADS / KV_HEADS * DIM;
            for (head, (q, out)) in q.chunks(group).zip(out.chunks_mut(group)).enumerate() {
                let [keys, values] = caches[layer].each_ref().map(|bytes| Kept {
                    layout,
                    bytes: &bytes[head * POSITIONS * layout.byte_len()..],
                    stride: layout.byte_len(),
                });
                let (heads, scale, capacity) = (HEADS / KV_HEADS, 0.125, POSITIONS);
                let attention =
                    Attention { q, heads, keys, values, capacity, scale, cap: None, sinks: None };
                attend(backend, black_box(attention), 0..POSITIONS, out);
            }
        });
}
