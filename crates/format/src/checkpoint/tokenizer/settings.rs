//! What the files beside a vocabulary say of its use: `tokenizer_config.json`, and those that it replaced.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::{Map, Value as Json};

use super::class::{self, SpaceBefore};
use super::document::{Added, template};
use crate::checkpoint::file_names::{CONFIG_NAME, TOKENIZER_CONFIG_NAME};
use crate::error::{FormatError, Result};
use crate::io::{CONFIG_LIMIT, read_limited};
use crate::written_json;

/// Special tokens in older checkpoints.
const SPECIAL_TOKENS: &str = "special_tokens_map.json";
/// Numbers of added tokens in older checkpoints.
const ADDED_TOKENS: &str = "added_tokens.json";
/// Tokens with a use of their own, in the order in which transformers adds those that a vocabulary lacks.
const NAMED: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// The list of more of them, and its name in older checkpoints.
const EXTRA: &str = "extra_special_tokens";
const ADDITIONAL: &str = "additional_special_tokens";

/// A token as a settings file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedToken {
    /// Its text.
    pub content: String,
    /// It is no part of a word.
    pub single_word: bool,
    /// It takes the spaces before it.
    pub lstrip: bool,
    /// It takes the spaces behind it.
    pub rstrip: bool,
    /// It is looked for in the normalized text.
    pub normalized: bool,
    /// It is left out of what is shown.
    pub special: bool,
}

impl NamedToken {
    /// A text, or an object with one and with flags.
    fn new(json: &Json, special: bool) -> Option<Self> {
        let content = json.as_str().or_else(|| json["content"].as_str())?;
        let flag = |name: &str| json[name].as_bool().unwrap_or(false);
        let special = special || flag("special");
        Some(Self {
            content: content.to_owned(),
            single_word: flag("single_word"),
            lstrip: flag("lstrip"),
            rstrip: flag("rstrip"),
            normalized: json["normalized"].as_bool().unwrap_or(!special),
            special,
        })
    }

    const fn at(&self, id: usize) -> Added<'_> {
        let Self { content, single_word, lstrip, rstrip, special, .. } = self;
        Added {
            id,
            content: content.as_str(),
            single_word: *single_word,
            lstrip: *lstrip,
            rstrip: *rstrip,
            normalized: false,
            special: *special,
        }
    }
}

/// What gives the bytes of a model's file, up to a limit; none of one that is not there.
type ReadCompanion<'a> = dyn Fn(&str, u64) -> Result<Option<Vec<u8>>> + 'a;

/// Tokens that the files beside a `tokenizer.json` name. transformers adds those that it lacks, as fine-tuned models
/// need it whose `tokenizer.json` is that of the model before; some classes put spaces where they are used to.
#[derive(Debug, Default)]
pub struct TokensBeside {
    /// Those with numbers, by these; with other flags than the tokenizer gives them they have these.
    pub numbered: Vec<NamedToken>,
    /// Those with a use or in lists, which only count where there is no token of such a text.
    pub named: Vec<NamedToken>,
    /// Where spaces are put before a text, if its `tokenizer.json` does not decide that.
    pub space: Option<SpaceBefore>,
}

impl TokensBeside {
    /// Those of a model's files, of which `read` gives the bytes.
    ///
    /// # Errors
    /// A file that is no JSON, and what `read` refuses.
    pub fn new(read: &ReadCompanion<'_>, root: &Path) -> Result<Self> {
        let settings = Settings::read_by(read, root)?;
        let model = read_json(read, root, CONFIG_NAME)?;
        let class =
            class::deciding(settings.class(), model["model_type"].as_str().unwrap_or_default());
        let [legacy, prefix] = ["legacy", "add_prefix_space"].map(|name| settings.flag(name));
        let space = class::space_before(class, legacy, prefix);
        let Settings { numbered, named, listed, .. } = settings;
        let named = named.into_iter().map(|(_, token)| token).chain(listed);
        Ok(Self { numbered: numbered.into_values().collect(), named: named.collect(), space })
    }
}

/// A file of a model, null if it is not there.
fn read_json(read: &ReadCompanion<'_>, root: &Path, name: &str) -> Result<Json> {
    let Some(bytes) = read(name, CONFIG_LIMIT)? else { return Ok(Json::Null) };
    let refused = |e: serde_json::Error| FormatError::file(&root.join(name), e.to_string());
    written_json::parse(&bytes).map_err(refused)
}

/// What is said of a vocabulary.
#[derive(Debug, Default)]
pub(super) struct Settings {
    config: Json,
    /// By their numbers.
    numbered: BTreeMap<usize, NamedToken>,
    /// By their use.
    named: Vec<(&'static str, NamedToken)>,
    listed: Vec<NamedToken>,
    /// Whether there is a list of more tokens, be it empty.
    has_list: bool,
}

impl Settings {
    /// Reads the files in a model's directory.
    ///
    /// # Errors
    /// A file that is no JSON or too long, and what the operating system refuses.
    pub(super) fn read(root: &Path) -> Result<Self> {
        Self::read_by(&|name, limit| read_limited(&root.join(name), limit), root)
    }

    /// The same, with `read` for the bytes of files.
    fn read_by(read: &ReadCompanion<'_>, root: &Path) -> Result<Self> {
        let read = |name: &str| read_json(read, root, name);
        let config = read(TOKENIZER_CONFIG_NAME)?;
        // Where tokens have numbers there, transformers reads none of the older files.
        let of_config = numbered(&config);
        let is_older = of_config.is_none();
        let (older, mut numbered) = match of_config {
            Some(numbered) => (Json::Null, numbered),
            None => (read(SPECIAL_TOKENS)?, by_text(read(ADDED_TOKENS)?.as_object())),
        };
        let own = Self::new(config, &older, BTreeMap::new());
        for token in numbered
            .values_mut()
            .filter(|token| own.names(&token.content))
        {
            token.special = true;
            token.normalized &= !is_older;
        }
        Ok(Self { numbered, ..own })
    }

    /// Whether a text is that of a token with a use or in a list.
    fn names(&self, text: &str) -> bool {
        let named = self.named.iter().map(|(_, token)| token);
        named.chain(&self.listed).any(|token| token.content == text)
    }

    fn new(config: Json, older: &Json, numbered: BTreeMap<usize, NamedToken>) -> Self {
        let token = |name: &'static str| {
            let token = NamedToken::new(&config[name], true);
            let token = token.or_else(|| NamedToken::new(&older[name], true));
            token.map(|token| (name, token))
        };
        let named = NAMED.into_iter().filter_map(token).collect();
        let (list, newer) = (list(&config), older.get(EXTRA));
        let stated = [list, newer].into_iter().flatten();
        let has_list = stated.clone().any(|list| !list.is_object());
        let before = older.get(ADDITIONAL).filter(|_| !has_list);
        let listed = stated.chain(before).flat_map(members);
        let listed = listed.filter_map(|json| NamedToken::new(json, true));
        let listed = listed.collect();
        Self { config, numbered, named, listed, has_list }
    }

    /// Whether there is a word on the token of a use, be it that there is none.
    pub(super) fn states(&self, name: &str) -> bool {
        self.config.get(name).is_some() || self.named.iter().any(|(known, _)| *known == name)
    }

    /// Whether tokens that a vocabulary itself has as such are found in a text though nothing names them:
    /// transformers takes a list of more tokens, be it empty, in their place.
    pub(super) const fn takes_own(&self) -> bool {
        !self.has_list
    }

    /// The tokenizer's class, without the word by which some had two.
    pub(super) fn class(&self) -> Option<&str> {
        let class = self.config["tokenizer_class"].as_str()?;
        Some(class.strip_suffix("Fast").unwrap_or(class))
    }

    /// Whether the class is code of the model's own.
    pub(super) fn has_code(&self) -> bool {
        let map = &self.config["auto_map"];
        map.is_array() || !map["AutoTokenizer"].is_null()
    }

    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        self.config[name].as_bool()
    }

    /// The largest number of a token.
    pub(super) fn last(&self) -> Option<usize> {
        self.numbered.keys().next_back().copied()
    }

    pub(super) fn at(&self, id: usize) -> Option<&str> {
        self.numbered.get(&id).map(|token| token.content.as_str())
    }

    /// Texts of a vocabulary as the settings have them: a place that was left for later gets its name there,
    /// unless another token has that.
    pub(super) fn rename<'t>(&'t self, tokens: &mut [std::borrow::Cow<'t, str>]) {
        let known: HashMap<_, _> = tokens
            .iter()
            .enumerate()
            .map(|(i, t)| (t.clone(), i))
            .collect();
        for (id, token) in &self.numbered {
            let free = known
                .get(token.content.as_str())
                .is_none_or(|other| self.numbered.contains_key(other));
            if let Some(text) = tokens.get_mut(*id).filter(|_| free) {
                *text = token.content.as_str().into();
            }
        }
    }

    /// Tokens that are found in a text before it is cut, by number: those that the vocabulary itself has as
    /// such, `own`, and all that are named here.
    pub(super) fn added<'t>(
        &'t self,
        tokens: &[impl AsRef<str>],
        own: Vec<Added<'t>>,
    ) -> Vec<Added<'t>> {
        let mut ids: HashMap<_, _> = tokens
            .iter()
            .enumerate()
            .map(|(i, t)| (t.as_ref(), i))
            .collect();
        let mut all: BTreeMap<usize, Added<'t>> = own.into_iter().map(|a| (a.id, a)).collect();
        for (id, token) in &self.numbered {
            let id = *ids.entry(token.content.as_str()).or_insert(*id);
            all.insert(id, token.at(id));
        }
        let mut next = tokens
            .len()
            .max(self.last().map_or(0, |last| last.saturating_add(1)));
        let named = self.named.iter().map(|(_, token)| token);
        for token in named.chain(&self.listed) {
            let id = *ids.entry(token.content.as_str()).or_insert_with(|| {
                next += 1;
                next - 1
            });
            let added = all.entry(id).or_insert_with(|| token.at(id));
            added.special = true;
        }
        all.retain(|_, added| !added.content.is_empty());
        all.into_values().collect()
    }

    /// What is put around a text, `own` where the settings name no tokens for its ends; `bos`: whether one
    /// before it is what the class is used to.
    pub(super) fn around(&self, added: &[Added<'_>], own: [Option<&str>; 2], bos: bool) -> Json {
        let around = [("bos_token", "add_bos_token", bos), ("eos_token", "add_eos_token", false)];
        let found = |(name, flag, default): (&str, &str, bool), own: Option<&str>| {
            let named = self.named.iter().find(|(known, _)| *known == name);
            let text = named.map(|(_, token)| token.content.as_str()).or(own)?;
            let token = added.iter().find(|added| added.content == text)?;
            let wanted = self.flag(flag).unwrap_or(default);
            wanted.then_some((token.id, token.content))
        };
        let [first, last] = around;
        template([found(first, own[0]), found(last, own[1])])
    }
}

/// The list of more tokens: that of the newer name unless it is empty and there is one of the older.
fn list(config: &Json) -> Option<&Json> {
    let [extra, additional] = [EXTRA, ADDITIONAL].map(|name| config.get(name));
    extra
        .filter(|list| members(list).next().is_some())
        .or(additional)
        .or(extra)
}

/// What a list has, or an object that gives each a name.
fn members(list: &Json) -> Box<dyn Iterator<Item = &Json> + '_> {
    match list {
        Json::Array(all) => Box::new(all.iter()),
        Json::Object(all) => Box::new(all.values()),
        _ => Box::new(std::iter::empty()),
    }
}

/// `added_tokens_decoder`: tokens by number.
fn numbered(config: &Json) -> Option<BTreeMap<usize, NamedToken>> {
    let all = config["added_tokens_decoder"].as_object()?.iter();
    let pair =
        |(id, token): (&String, &Json)| Some((id.parse().ok()?, NamedToken::new(token, false)?));
    Some(all.filter_map(pair).collect())
}

/// `added_tokens.json`: numbers by text.
fn by_text(all: Option<&Map<String, Json>>) -> BTreeMap<usize, NamedToken> {
    let pair = |(text, id): (&String, &Json)| {
        let id = usize::try_from(id.as_u64()?).ok()?;
        Some((id, NamedToken::new(&text.as_str().into(), false)?))
    };
    all.into_iter().flatten().filter_map(pair).collect()
}
