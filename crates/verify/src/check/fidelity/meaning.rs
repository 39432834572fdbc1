//! Do files beside the weights that differ say the same? What decides is the model, the tokens and the text of a
//! conversation that come of them, not how a file is written, where it lies or what else it has.

use std::sync::OnceLock;

use serde_json::Value;
use shardwright_format::arch::Arch;
use shardwright_format::checkpoint::{
    CHAT_TEMPLATE_NAME, CONFIG_NAME, Checkpoint, TOKENIZER_CONFIG_NAME, TOKENIZER_NAME,
};
use shardwright_format::io::TOKENIZER_LIMIT;
use shardwright_format::manifest::FileKind;
use shardwright_format::weights::Weights;
use shardwright_format::{Bundle, written_json};
use shardwright_runtime::text::{ChatTemplate, Tokenizer};

/// What comes of a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Subject {
    /// The model and the tokens at which it stops.
    Model,
    Tokens,
    /// The text of conversations.
    Chat,
}

/// What comes of each file that is read.
const FILES: [(&str, &[Subject]); 10] = [
    (CONFIG_NAME, &[Subject::Model]),
    ("generation_config.json", &[Subject::Model]),
    (TOKENIZER_NAME, &[Subject::Tokens]),
    ("added_tokens.json", &[Subject::Tokens]),
    ("vocab.json", &[Subject::Tokens]),
    ("merges.txt", &[Subject::Tokens]),
    (TOKENIZER_CONFIG_NAME, &[Subject::Tokens, Subject::Chat]),
    ("special_tokens_map.json", &[Subject::Tokens, Subject::Chat]),
    (CHAT_TEMPLATE_NAME, &[Subject::Chat]),
    ("chat_template.json", &[Subject::Chat]),
];
/// What comes of others, by the ends of their names; of what is none of all these, the bytes decide.
const ENDINGS: [(&str, &[Subject]); 3] =
    [(".model", &[Subject::Tokens]), (".tiktoken", &[Subject::Tokens]), (".jinja", &[])];
/// Vocabularies that a `tokenizer.json` stands in for here, and other programs read: one may be left out, but where
/// both have it, it is the same.
const VOCABULARIES: [&str; 4] = ["vocab.json", "merges.txt", ".model", ".tiktoken"];
/// Settings of a tokenizer that make other tokens, or end a text elsewhere, where another program reads them.
const SETTINGS: [&str; 8] = [
    "add_bos_token",
    "add_eos_token",
    "add_prefix_space",
    "bos_token",
    "do_lower_case",
    "eos_token",
    "legacy",
    "split_special_tokens",
];
/// Objects in `config.json` of which the model is made; any other describes a part besides it.
const OF_THE_MODEL: [&str; 4] =
    ["text_config", "rope_parameters", "rope_scaling", "quantization_config"];
/// Members that a note names.
const NAMED: usize = 6;

/// What comes of a file; none of one on which neither weights nor tokens depend.
fn subjects(path: &str) -> Option<&'static [Subject]> {
    let last = path.rsplit('/').next().unwrap_or(path);
    let named = FILES.iter().find(|(name, _)| *name == last);
    let (_, subjects) = named.or_else(|| ENDINGS.iter().find(|(end, _)| last.ends_with(end)))?;
    // In a folder lies what is for another model, or another part of this one: nothing here reads it.
    Some(if last == path { subjects } else { &[] })
}

/// Whether weights or tokens depend on a file: a model card or a licence may change, and the model is the
/// same.
pub(super) fn matters(path: &str) -> bool {
    subjects(path).is_some()
}

/// Two models' files, of which some differ.
pub(super) struct Meaning<'a> {
    pub(super) bundle: &'a Bundle,
    pub(super) checkpoint: &'a Checkpoint,
    candidate: &'a Weights,
    original: &'a Weights,
    model: OnceLock<bool>,
    tokens: OnceLock<bool>,
    chat: OnceLock<bool>,
}

impl<'a> Meaning<'a> {
    pub(super) fn new(
        (bundle, candidate): (&'a Bundle, &'a Weights),
        (checkpoint, original): (&'a Checkpoint, &'a Weights),
    ) -> Self {
        let (model, tokens, chat) = (OnceLock::new(), OnceLock::new(), OnceLock::new());
        Self { bundle, checkpoint, candidate, original, model, tokens, chat }
    }

    /// What is to be noted of a file that differs, where the same comes of both; none where something else
    /// does.
    pub(super) fn note(&self, path: &str) -> Option<String> {
        let subjects = subjects(path).filter(|all| !all.is_empty())?;
        let [ours, theirs] = [self.candidate, self.original].map(|model| read(model, path));
        let vocabulary = VOCABULARIES.iter().any(|end| path.ends_with(end));
        if vocabulary && ours.is_some() && theirs.is_some() || !self.same(path, subjects) {
            return None;
        }
        let how = match [ours, theirs] {
            _ if !self.is_copied(path) => "only in the checkpoint".to_owned(),
            [_, None] => "not in the checkpoint".to_owned(),
            [Some(ours), Some(theirs)] => {
                format!("other {} in the checkpoint", unlike(&ours, &theirs))
            }
            [None, _] => return None,
        };
        let same = subjects.iter().map(|subject| match subject {
            Subject::Model => "the model and where it stops",
            Subject::Tokens => "the tokens",
            Subject::Chat => "the text of conversations",
        });
        let same = same.collect::<Vec<_>>().join(" and ");
        Some(format!("{path}: {how}; the same comes of both: {same}"))
    }

    /// Whether all that comes of a file is the same.
    fn same(&self, path: &str, subjects: &[Subject]) -> bool {
        subjects.iter().all(|subject| match subject {
            Subject::Model => {
                *self.model.get_or_init(|| self.models())
                    && (path != CONFIG_NAME || self.other_parts())
            }
            Subject::Tokens => *self
                .tokens
                .get_or_init(|| self.tokenizers().unwrap_or(false)),
            Subject::Chat => *self
                .chat
                .get_or_init(|| self.conversations().unwrap_or(false)),
        })
    }

    fn is_copied(&self, path: &str) -> bool {
        let mut files = self.bundle.manifest().files.iter();
        files.any(|file| file.path == path && file.kind == FileKind::Copy)
    }

    /// Whether both configurations describe the same model, whatever the manifest says of it.
    fn models(&self) -> bool {
        let ours = Checkpoint::from_bundle(self.bundle).and_then(|ours| Arch::described(&ours));
        let theirs = Arch::described(self.checkpoint);
        self.is_copied(CONFIG_NAME)
            && ours.is_ok_and(|ours| theirs.is_ok_and(|theirs| ours == theirs))
    }

    /// Whether `config.json` describes the parts besides the text model alike that the bundle has.
    fn other_parts(&self) -> bool {
        let mut units = self.bundle.manifest().units();
        if units.all(|unit| unit.extra_role().is_none()) {
            return true;
        }
        let ours = read(self.candidate, CONFIG_NAME)
            .and_then(|bytes| json(&bytes))
            .unwrap_or_default();
        let theirs = self.checkpoint.config();
        let part = |key: &&String| {
            !OF_THE_MODEL.contains(&key.as_str())
                && (ours[*key].is_object() || theirs[*key].is_object())
        };
        members([&ours, theirs])
            .filter(part)
            .all(|key| ours[key] == theirs[key])
    }

    /// Whether both tokenizers make the same tokens of every text.
    fn tokenizers(&self) -> Option<bool> {
        let ours = Tokenizer::open(self.candidate).ok()?;
        let same = ours.same(&Tokenizer::open(self.original).ok()?);
        let [ours, theirs] = self.settings();
        let text = |value: &Value| value.get("content").unwrap_or(value).clone();
        let unlike = |name: &&str| {
            let [ours, theirs] = [&ours, &theirs].map(|config| text(&config[*name]));
            !ours.is_null() && !theirs.is_null() && ours != theirs
        };
        Some(same && !SETTINGS.iter().any(unlike))
    }

    /// Whether both have the same template for conversations, or none.
    fn conversations(&self) -> Option<bool> {
        let [ours, theirs] = [self.candidate, self.original].map(ChatTemplate::find);
        let same = match (ours.ok()?, theirs.ok()?) {
            (None, None) => true,
            (Some(ours), Some(theirs)) => ours.same(&theirs),
            _ => false,
        };
        // Of several by name, one is for plain conversations; others are for those with tools.
        let [ours, theirs] = self
            .settings()
            .map(|config| config["chat_template"].clone());
        let several = ours.is_array() && theirs.is_array();
        Some(same && (!several || ours == theirs))
    }

    fn settings(&self) -> [Value; 2] {
        let settings = |model| read(model, TOKENIZER_CONFIG_NAME).and_then(|bytes| json(&bytes));
        [self.candidate, self.original].map(|model| settings(model).unwrap_or_default())
    }
}

fn read(model: &Weights, path: &str) -> Option<Vec<u8>> {
    model.companion(path, TOKENIZER_LIMIT).ok()?
}

fn json(bytes: &[u8]) -> Option<Value> {
    written_json::parse(bytes).ok()
}

/// The names of members of two objects.
fn members(objects: [&Value; 2]) -> impl Iterator<Item = &String> {
    let keys = objects.map(|object| object.as_object().into_iter().flat_map(|all| all.keys()));
    keys.into_iter().flatten()
}

/// In what members two files differ, as far as they are objects.
fn unlike(ours: &[u8], theirs: &[u8]) -> String {
    let [ours, theirs] = [ours, theirs].map(|bytes| json(bytes).unwrap_or_default());
    let mut unlike: Vec<_> = members([&ours, &theirs])
        .filter(|key| ours[*key] != theirs[*key])
        .map(|key| format!("`{key}`"))
        .collect();
    unlike.sort();
    unlike.dedup();
    let more = unlike.len().saturating_sub(NAMED);
    unlike.truncate(NAMED);
    match (unlike.is_empty(), more) {
        (true, _) => "bytes".to_owned(),
        (_, 0) => unlike.join(", "),
        _ => format!("{} and {more} more", unlike.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use shardwright_testing::models::{FOUR_BITS, TestBundle};

    use super::super::tests::messages;

    /// A manifest that has the original's model does not speak for another configuration beside it.
    #[test]
    fn a_forged_configuration_under_a_right_manifest_is_found() {
        let bundle = TestBundle::new("llama2", FOUR_BITS);
        let forged = |old: &str, new: &str| {
            let before = std::fs::read_to_string(bundle.path("config.json")).unwrap();
            assert!(before.contains(old), "{before}");
            let text = before.replace(old, new);
            bundle.rewrite(|manifest| {
                let mut files = manifest.files.iter_mut();
                let config = files.find(|file| file.path == "config.json").unwrap();
                config.size = text.len() as u64;
                config.blake3 = blake3::hash(text.as_bytes()).into();
            });
            bundle.edit("config.json", |bytes| *bytes = text.into_bytes());
            let found = messages(&bundle);
            bundle.edit("config.json", |bytes| *bytes = before.into_bytes());
            found
        };
        assert_eq!(forged("\"use_cache\": true", "\"use_cache\": false"), [""; 0]);
        let [found] = &forged("\"rope_theta\": 10000.0", "\"rope_theta\": 10001.0")[..] else {
            panic!("one finding")
        };
        assert!(
            found.starts_with("config.json: copy: BLAKE3 in the checkpoint: expected "),
            "{found}"
        );
    }
}
