//! How a turn ends in which a model writes several messages.

/// Where these are tokens, another one ends a message, of which a turn has several, and these end the turn: the
/// last message, and one that calls a tool. `generation_config.json` of gpt-oss has both, and the end of a text;
/// its `config.json` has the first alone.
const ENDS: [&str; 2] = ["<|return|>", "<|call|>"];
const TEXT_END: &str = "<|endoftext|>";

/// The tokens that end such a turn, by the number that `find` has for a token's text; none where turns have one
/// message.
pub fn ends<T>(find: impl Fn(&str) -> Option<T>) -> Vec<T> {
    let mut found: Vec<_> = ENDS.iter().filter_map(|name| find(name)).collect();
    if found.len() < ENDS.len() {
        return Vec::new();
    }
    found.extend(find(TEXT_END));
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_turn_of_one_message_has_no_other_ends() {
        let among =
            |known: &[&str]| ends(|name: &str| known.iter().position(|known| *known == name));
        assert_eq!(among(&["<|call|>", "<|endoftext|>", "<|return|>"]), [2, 0, 1]);
        assert_eq!(among(&["<|call|>", "<|return|>"]), [1, 0]);
        assert!(among(&["<|call|>", "<|endoftext|>"]).is_empty());
    }
}
