//! Tensor names as the rows of a table have them.

use std::borrow::Cow;

use super::table::Table;
use crate::role::Role;

/// What the names of a model without its head begin with, which tables have behind [`BASE`].
const BARE: &[&str] = &["embed_tokens.", "layers.", "norm."];
const BASE: &str = "model.";

impl Table {
    /// A tensor's name as the rows have it: with what `prefixes` replace, and with the beginning that
    /// a model saved without its head lacks. Wrappers of training tools came off when the checkpoint
    /// was opened.
    pub(super) fn plain<'a>(&self, name: &'a str) -> Cow<'a, str> {
        let mut prefixes = self.prefixes.iter();
        let rest =
            |(from, to): (&String, &String)| Some(format!("{to}{}", name.strip_prefix(from)?));
        let plain = prefixes
            .find_map(rest)
            .map_or(Cow::Borrowed(name), Cow::Owned);
        if BARE.iter().any(|bare| plain.starts_with(bare)) && !self.names_begin_bare() {
            return Cow::Owned(format!("{BASE}{plain}"));
        }
        plain
    }

    /// A name of the rows with the beginning that the name `like` has in place of theirs.
    pub(super) fn wrapped(&self, name: String, like: &str) -> String {
        let bare = BARE.iter().any(|bare| like.starts_with(bare)) && !self.names_begin_bare();
        let prefixes = self
            .prefixes
            .iter()
            .find(|(from, _)| like.starts_with(*from));
        let (from, to) = match prefixes {
            Some((from, to)) => (from.as_str(), to.as_str()),
            None if bare => ("", BASE),
            None => return name,
        };
        name.strip_prefix(to)
            .map(|rest| format!("{from}{rest}"))
            .unwrap_or(name)
    }

    /// Whether the rows themselves have names like those of a model without its head.
    fn names_begin_bare(&self) -> bool {
        let mut embeddings = self.names.get(&Role::EmbedTokens).into_iter().flatten();
        !embeddings.any(|name| name.starts_with(BASE))
    }
}
