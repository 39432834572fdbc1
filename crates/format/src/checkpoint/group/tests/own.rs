//! What single modules have for themselves.

use super::*;

/// A name of a test that lasts.
fn lasting(name: String) -> &'static str {
    name.leak()
}

/// Codes of mlx for 8 rows of 64 columns, `words` to a row and `groups` of scales.
fn mlx(module: &str, words: u64, groups: u64) -> [Held; 3] {
    let part =
        |part: &str, dtype, cols| zeros(lasting(format!("{module}.{part}")), dtype, &[8, cols]);
    [part("weight", Dtype::U32, words), part("scales", BF16, groups), part("biases", BF16, groups)]
}

/// What the configuration says of modules it says by the names in the files, whatever is taken off these here.
#[test]
fn modules_of_mlx_are_called_as_in_the_files() {
    let begins = ["model.", "language_model.model.", "model.language_model.", "module.model."];
    for begin in begins {
        let name = |module: &str| format!("{begin}layers.0.{module}");
        let plain = |name: String| zeros(lasting(name), BF16, &[8, 64]);
        let tensors = [
            mlx(&name("usual"), 8, 1).to_vec(),
            mlx(&name("own"), 16, 2).to_vec(),
            mlx(&name("wide"), 16, 1).to_vec(),
            mlx(&name("narrow"), 8, 1).to_vec(),
            vec![plain(name("left.weight")), plain(format!("{begin}embed_tokens.weight"))],
        ];
        let config = json!({
            "group_size": 64, "bits": 4,
            name("own"): { "bits": 8, "group_size": 32 },
            // What a module leaves out is the mode's own.
            name("wide"): { "bits": 8 },
            name("narrow"): { "group_size": null, "mode": "affine" },
            name("left"): false,
        });
        let facts = opened(&config, &tensors.concat());
        let counts = [("mlx q4 g64", 2), ("mlx q8 g32", 1), ("mlx q8 g64", 1)];
        let counts = counts.map(|(label, count)| (label.to_owned(), count));
        assert_eq!(facts.tensors, BTreeMap::from(counts), "{begin}");
        let kept = BTreeMap::from([("model.layers.*.left.weight".to_owned(), 1)]);
        assert_eq!(facts.kept, kept, "{begin}");
    }
    // Keys of a model within another, of which the tensors alone were renamed.
    for begin in ["language_model.model.", "model.language_model."] {
        let key = format!("{begin}layers.0.own");
        let config = json!({ "group_size": 64, "bits": 4, key: { "bits": 8, "group_size": 32 } });
        let facts = opened(&config, &mlx("model.layers.0.own", 16, 2));
        assert_eq!(facts.tensors, BTreeMap::from([("mlx q8 g32".to_owned(), 1)]), "{begin}");
    }
    let lacking = json!({ "group_size": 64 });
    assert_eq!(
        refusal(&lacking, &mlx("a", 8, 1)),
        "DIR/config.json: `quantization_config`: `bits`: expected one of 2, 3, 4, 5, 6, 8, found nothing"
    );
}

/// So are the patterns of `GPTQModel`.
#[test]
fn patterns_of_gptq_fit_names_in_the_files() {
    let part = |part: &str, dtype, shape: &[u64]| {
        zeros(lasting(format!("model.language_model.layers.0.up.{part}")), dtype, shape)
    };
    let tensors = [
        part("qweight", Dtype::I32, &[16, 16]),
        part("qzeros", Dtype::I32, &[1, 4]),
        part("scales", Dtype::Float(Float::F16), &[1, 16]),
        zeros("model.language_model.embed_tokens.weight", BF16, &[8, 64]),
    ];
    for pattern in [r"model\.language_model\.layers\.0\.up", r"model\.layers\.0\.up", ".*up"] {
        let config = json!({ "quant_method": "gptq", "bits": 4, "group_size": 32,
            "dynamic": { pattern: { "bits": 8, "group_size": -1 } } });
        let labels = opened(&config, &tensors).tensors;
        assert_eq!(labels, BTreeMap::from([("gptq int8 g64".to_owned(), 1)]), "{pattern}");
    }
}
