//! Tensor names as the rows of a table have them.

use std::borrow::Cow;

use super::table::Table;

impl Table {
    /// A tensor's name as the rows have it: with what `prefixes` replace. Wrappers of training tools
    /// came off, and the beginning that a model saved without its head lacks was added, when the
    /// checkpoint was opened.
    pub(super) fn plain<'a>(&self, name: &'a str) -> Cow<'a, str> {
        let mut prefixes = self.longest_first();
        let rest =
            |(from, to): (&String, &String)| Some(format!("{to}{}", name.strip_prefix(from)?));
        prefixes
            .find_map(rest)
            .map_or(Cow::Borrowed(name), Cow::Owned)
    }

    /// What `prefixes` replace, what begins with another before that one.
    fn longest_first(&self) -> impl Iterator<Item = (&String, &String)> {
        self.prefixes.iter().rev()
    }

    /// A name of the rows with the beginning that the name `like` has in place of theirs.
    pub(super) fn wrapped(&self, name: String, like: &str) -> String {
        let mut prefixes = self.longest_first();
        let Some((from, to)) = prefixes.find(|(from, _)| like.starts_with(*from)) else {
            return name;
        };
        name.strip_prefix(to.as_str())
            .map(|rest| format!("{from}{rest}"))
            .unwrap_or(name)
    }
}
