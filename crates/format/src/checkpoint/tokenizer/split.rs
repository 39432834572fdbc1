//! How text is cut before its bytes are merged: `configs/tokenizers.json`.

use serde::Deserialize;
use serde_json::{Value as Json, json};

use super::document::byte_level;

const SPLITS: &str = include_str!("../../../../../configs/tokenizers.json");

/// How text is cut before its bytes are merged.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Split {
    /// What `tokenizer.ggml.pre` may be; the first is what is written.
    names: Vec<String>,
    /// Expressions whose matches become pieces, one after the other.
    splits: Vec<String>,
    /// Whether text is normalized, Unicode's form C.
    #[serde(default)]
    nfc: bool,
    /// Whether a piece that is a token is not cut.
    #[serde(default)]
    pub(super) ignore_merges: bool,
    /// Whether a text begins with the token for it where the metadata do not say.
    #[serde(default)]
    pub(in crate::checkpoint) add_bos: bool,
    /// Classes of `tokenizer_config.json` that cut text so before the ranks of a tiktoken file.
    #[serde(default)]
    tiktoken: Vec<String>,
    /// Numbers behind the ranks of such a file that are tokens even where nothing names them.
    #[serde(default)]
    pub(super) reserved: usize,
}

impl Split {
    fn all() -> Vec<Self> {
        serde_json::from_str(SPLITS).expect("built-in tables are tested")
    }

    /// What `tokenizer.ggml.pre` says of a tokenizer that cuts text by these expressions. Unicode's form
    /// decides only between names that differ in nothing else: llama.cpp knows none.
    pub(crate) fn name(splits: &[String], ignore_merges: bool, nfc: bool) -> Option<String> {
        let mut same = Self::all()
            .into_iter()
            .filter(|split| split.splits == splits && split.ignore_merges == ignore_merges);
        let first = same.next()?;
        let found = if first.nfc == nfc { None } else { same.find(|split| split.nfc == nfc) };
        found.unwrap_or(first).names.into_iter().next()
    }

    /// That of a name of `tokenizer.ggml.pre`; otherwise all names there are, sorted.
    pub(in crate::checkpoint) fn find(name: Option<&str>) -> Result<Self, Vec<String>> {
        Self::of_list(name, |split| &split.names)
    }

    /// That of a class of `tokenizer_config.json` with a tiktoken file; otherwise all such classes, sorted.
    pub(super) fn of_class(class: &str) -> Result<Self, Vec<String>> {
        Self::of_list(Some(class), |split| &split.tiktoken)
    }

    fn of_list(
        name: Option<&str>,
        list: impl Fn(&Self) -> &Vec<String>,
    ) -> Result<Self, Vec<String>> {
        let all = Self::all();
        let mut known: Vec<_> = all.iter().flat_map(|split| list(split).clone()).collect();
        known.sort();
        let has = |split: &Self| list(split).iter().any(|known| Some(known.as_str()) == name);
        all.into_iter().find(has).ok_or(known)
    }

    pub(super) fn normalizer(&self) -> Json {
        if self.nfc { json!({"type": "NFC"}) } else { Json::Null }
    }

    pub(super) fn pre_tokenizer(&self) -> Json {
        let pieces = self.splits.iter().map(|expression| {
            json!({"type": "Split", "pattern": {"Regex": expression}, "behavior": "Isolated",
                   "invert": false})
        });
        let pieces: Vec<_> = pieces.chain([byte_level()]).collect();
        json!({"type": "Sequence", "pretokenizers": pieces})
    }
}
