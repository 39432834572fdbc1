use super::*;

/// The llama table with one text replaced.
fn spoiled(text: &str, replacement: &str) -> String {
    let json = include_str!("../../../../../configs/arch/llama.json");
    assert!(json.contains(text), "{text}");
    let json = json.replacen(text, replacement, 1);
    let refused = Arch::parse(Path::new("own.json"), &json).unwrap_err();
    // Where in the text depends on the table, not on what is tested.
    refused
        .to_string()
        .split(" at line ")
        .next()
        .unwrap()
        .to_owned()
}

#[test]
fn every_builtin_table_parses_and_is_for_its_name() {
    assert!(BUILTIN.is_sorted());
    for (name, json) in BUILTIN {
        let arch = Arch::parse(Path::new(name), json).unwrap();
        assert_eq!(arch.model_type(), *name);
    }
    let files = fs::read_dir(golden("../../configs/arch")).unwrap();
    assert_eq!(files.count(), BUILTIN.len(), "a table is not built in");
}

#[test]
fn unknown_words_are_refused() {
    let refused = spoiled(r#""norm.input""#, r#""norm.inpt""#);
    assert!(refused.starts_with("own.json: tensors: expected one of embed_tokens, norm.input,"));
    assert!(refused.ends_with("indexer, found role `norm.inpt`"), "{refused}");
    assert_eq!(
        spoiled(r#""mlp": {"bias""#, r#""mlp": {"bais""#),
        "own.json: unknown field `bais`, expected one of `bias`, `activation`, `intermediate_size`, \
         `adjusted`, `ungated`, `inner_norm`"
    );
    assert_eq!(spoiled("{", "["), "own.json: expected `,` or `]`");
}

#[test]
fn names_must_have_the_numbers_of_their_role() {
    assert_eq!(
        spoiled("{layer}.input_layernorm", "0.input_layernorm"),
        "own.json: `model.layers.0.input_layernorm.weight` for norm.input: expected 1 `{layer}` \
         between dots, found 0"
    );
    assert_eq!(
        spoiled("{layer}.input_layernorm", "{layer}.{expert}.input_layernorm"),
        "own.json: `model.layers.{layer}.{expert}.input_layernorm.weight` for norm.input: expected 0 \
         `{expert}` between dots, found 1"
    );
}

#[test]
fn a_name_stands_for_one_thing() {
    assert_eq!(
        spoiled("self_attn.k_proj.weight", "self_attn.q_proj.weight"),
        "own.json: `model.layers.{layer}.self_attn.q_proj.weight` stands for two things"
    );
    assert_eq!(
        spoiled(r#""attention.k_proj""#, r#""attention.q_proj""#),
        "own.json: `attention.q_proj` appears twice"
    );
}

#[test]
fn a_parameter_that_is_needed_must_be_in_the_table() {
    let json = include_str!("../../../../../configs/arch/llama.json");
    let json = json.replace(r#""mlp_bias": {"default": false},"#, "");
    let arch = Arch::parse(Path::new("own.json"), &json).unwrap();
    let checkpoint = Checkpoint::open(&golden("llama2")).unwrap();
    assert_eq!(
        message(&golden("llama2"), arch.spec(&checkpoint)),
        "own.json: parameters: expected `mlp_bias`, found none"
    );
}
