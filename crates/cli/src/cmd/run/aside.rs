//! What a model says aside before its answer, where its template tells one from the other.

/// Where in a turn the model is.
#[derive(Debug)]
pub(super) struct Aside {
    /// The tokens with which an answer begins; none where all is answer.
    opening: Vec<u32>,
    answering: bool,
}

/// What a token is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Of a text.
    Text,
    /// It begins a part, whose name follows.
    Begins,
    /// Its part's name ends, and its text follows.
    Named,
    /// The last before the answer.
    Answer,
}

impl Aside {
    /// For turns in which an answer begins with `opening`.
    pub(super) const fn new(opening: Vec<u32>) -> Self {
        let answering = opening.is_empty();
        Self { opening, answering }
    }

    /// A new turn.
    pub(super) const fn begin(&mut self) {
        self.answering = self.opening.is_empty();
    }

    /// Whether what comes is the answer.
    pub(super) const fn answering(&self) -> bool {
        self.answering
    }

    /// What the last of `tokens`, those of the turn so far, is. A turn that does not begin as a part does
    /// is an answer.
    pub(super) fn take(&mut self, tokens: &[u32]) -> Step {
        let (Some(last), Some(first), Some(end)) =
            (tokens.last(), self.opening.first(), self.opening.last())
        else {
            return Step::Text;
        };
        let (begins, named) = (last == first, last == end);
        self.answering |= tokens.len() == 1 && !begins;
        match () {
            () if self.answering => Step::Text,
            () if tokens.ends_with(&self.opening) => {
                self.answering = true;
                Step::Answer
            }
            () if begins => Step::Begins,
            () if named => Step::Named,
            () => Step::Text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps(opening: &[u32], tokens: &[u32]) -> (Vec<Step>, bool) {
        let mut aside = Aside::new(opening.to_vec());
        aside.begin();
        let steps = (1..=tokens.len()).map(|end| aside.take(&tokens[..end]));
        (steps.collect(), aside.answering())
    }

    #[test]
    fn an_answer_begins_where_its_opening_ends() {
        use Step::{Answer, Begins, Named, Text};
        let (found, answering) = steps(&[1, 5, 2], &[1, 4, 2, 7, 3, 1, 5, 2, 1, 2]);
        let expected = [Begins, Text, Named, Text, Text, Begins, Text, Answer, Text, Text];
        assert_eq!((found.as_slice(), answering), (&expected[..], true));
        // What is cut short before it has none; without such parts all is answer.
        assert_eq!(steps(&[1, 5, 2], &[1, 4]), (vec![Begins, Text], false));
        assert_eq!(steps(&[1, 5, 2], &[7, 1]), (vec![Text, Text], true));
        assert_eq!(steps(&[], &[1, 5]), (vec![Text, Text], true));
    }
}
