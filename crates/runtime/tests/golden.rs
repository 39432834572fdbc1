//! Both orders of execution against transformers in f32, for every architecture.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use ndarray::{Array2, Axis};
use shardwright_format::model::Mixer;
use shardwright_format::weights::Weights;
use shardwright_runtime::layerwise::LayerPass;
use shardwright_runtime::{Head, Options, Routes, Runtime};
use shardwright_testing::{Golden, each_gguf, each_golden, error};

/// Of the largest logit or channel.
const TOLERANCE: f32 = 1e-4;

#[derive(Default)]
struct Worst {
    logits: f32,
    hidden: f32,
    weights: f32,
}

impl Worst {
    fn check(self, order: &str, case: &str) {
        let Self { logits, hidden, weights } = self;
        println!(
            "{case:20} {order}: logits {logits:.1e}, hidden {hidden:.1e}, routes {weights:.1e}"
        );
        assert!(logits < TOLERANCE, "{case} {order}: logits differ by {logits:e}");
        assert!(hidden < TOLERANCE, "{case} {order}: hidden states differ by {hidden:e}");
        assert!(weights < TOLERANCE, "{case} {order}: routing weights differ by {weights:e}");
    }
}

/// Compares one layer's picks for all tokens; gives the difference of their weights.
fn compare_routes(case: &Golden, layer: usize, found: &Routes) -> f32 {
    let picks = case
        .integers(&format!("router.{layer}"))
        .unwrap_or_default();
    assert_eq!(found.experts, picks, "{}: picks of layer {layer}", case.name);
    let weights = case.floats(&format!("router_weights.{layer}"));
    weights.map_or(0.0, |expected| error(&found.weights, &expected))
}

/// Compares what delta nets remember in the end; gives the largest difference. A golden's
/// convolution state is `[channels, kernel]` and begins with an input that is not needed any more.
fn compare_states(case: &Golden, runtime: &Runtime) -> f32 {
    let mut worst = 0.0_f32;
    for layer in 0..runtime.spec().layers.len() {
        let golden = case.floats(&format!("recurrent_state.{layer}"));
        let state = runtime.delta_state(layer);
        assert_eq!(golden.is_some(), state.is_some(), "{}: layer {layer}", case.name);
        let (Some(golden), Some(state)) = (golden, state) else { continue };
        worst = worst.max(error(state.recurrent(), &golden));
        let golden = case.floats(&format!("conv_state.{layer}")).unwrap();
        let Mixer::DeltaNet(spec) = &runtime.spec().layers[layer].mixer else { unreachable!() };
        let shape = (spec.conv_width() as usize, spec.conv_kernel as usize);
        let golden = Array2::from_shape_vec(shape, golden).unwrap();
        // Ours is by position, oldest first: [kernel - 1, channels].
        let needed = golden.slice_axis(Axis(1), (1..).into());
        let expected: Vec<f32> = needed.t().iter().copied().collect();
        worst = worst.max(error(state.conv(), &expected));
    }
    worst
}

fn check_token_by_token(case: &Golden) {
    let mut runtime = Runtime::open(open(case), &Options::default()).unwrap();
    let layers = runtime.spec().layers.len();
    let mut hidden = vec![Vec::new(); layers + 1];
    let mut logits = Vec::new();
    let mut routes = vec![Routes::default(); layers];
    for token in case.tokens() {
        let mut observe = |i: usize, x: &[f32]| hidden[i].extend_from_slice(x);
        logits.extend_from_slice(runtime.forward_observed(token, &mut observe).unwrap());
        for (all, last) in routes.iter_mut().zip(runtime.last_routes()) {
            all.experts.extend_from_slice(&last.experts);
            all.weights.extend_from_slice(&last.weights);
        }
    }
    let expected = case.floats("logits").unwrap();
    let mut worst = Worst { logits: error(&logits, &expected), ..Worst::default() };
    for (i, x) in hidden.iter().enumerate() {
        worst.hidden = worst
            .hidden
            .max(error(x, &case.floats(&format!("hidden.{i}")).unwrap()));
    }
    for (i, routes) in routes.iter().enumerate() {
        worst.weights = worst.weights.max(compare_routes(case, i, routes));
    }
    worst.hidden = worst.hidden.max(compare_states(case, &runtime));
    worst.check("token by token", &case.name);
}

fn check_layer_by_layer(case: &Golden) {
    let (weights, tokens) = (open(case), case.tokens());
    let mut pass = LayerPass::new(&weights, &tokens, tokens.len(), 2).unwrap();
    let mut worst = Worst::default();
    let compare_hidden =
        |i: u32, x: &[f32]| error(x, &case.floats(&format!("hidden.{i}")).unwrap());
    worst.hidden = compare_hidden(0, pass.hidden());
    while let Some(layer) = pass.step().unwrap() {
        worst.hidden = worst.hidden.max(compare_hidden(layer + 1, pass.hidden()));
        worst.weights = worst
            .weights
            .max(compare_routes(case, layer as usize, pass.routes()));
    }
    let mut head = Head::new(&weights, 2).unwrap();
    let mut logits = vec![0.0; tokens.len() * head.vocab_size()];
    head.logits(pass.hidden(), tokens.len(), &mut logits)
        .unwrap();
    worst.logits = error(&logits, &case.floats("logits").unwrap());
    worst.check("layer by layer", &case.name);
}

fn open(case: &Golden) -> Weights {
    Weights::open(&case.path).unwrap()
}

fn token_by_token(case: &str) {
    check_token_by_token(&Golden::named(case));
}

fn layer_by_layer(case: &str) {
    check_layer_by_layer(&Golden::named(case));
}

fn gguf_token_by_token(case: &str) {
    check_token_by_token(&Golden::gguf(case));
}

fn gguf_layer_by_layer(case: &str) {
    check_layer_by_layer(&Golden::gguf(case));
}

each_golden!(token_by_token);
each_golden!(layer_by_layer);
each_gguf!(gguf_token_by_token);
each_gguf!(gguf_layer_by_layer);
