//! A template's source as minijinja must be given it, to mean what it means to transformers' Jinja2.

use super::methods::PERCENT;

/// Letters that a `%` after a literal may apply to, and how many of them may be one in another: templates are
/// strangers'.
const LONGEST_OPERAND: usize = 1024;
const DEEPEST: usize = 8;
const QUOTES: [char; 2] = ['\'', '"'];

/// The template with line ends as Jinja2 gives it, in literals too: `\n` alone; and with what minijinja
/// reads otherwise in words that it reads so.
pub(super) fn translated(source: &str) -> String {
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let (mut text, mut rest) = (String::new(), source.as_str());
    while let Some((at, end)) = next_tag(rest) {
        text += &rest[..at];
        rest = &rest[at..];
        rest = match end {
            "#}" => copied_to(rest, end, &mut text),
            "%}" => block(rest, &mut text),
            _ => expressions(rest, end, &mut text),
        };
    }
    text + rest
}

/// The first place after the beginning of a tag, and what ends it.
fn next_tag(text: &str) -> Option<(usize, &'static str)> {
    text.match_indices('{').find_map(|(at, _)| {
        let end = match text[at + 1..].chars().next()? {
            '{' => "}}",
            '%' => "%}",
            '#' => "#}",
            _ => return None,
        };
        Some((at + 2, end))
    })
}

/// Takes over all up to the end of `word`, or all.
fn copied_to<'a>(text: &'a str, word: &str, into: &mut String) -> &'a str {
    let end = text.find(word).map_or(text.len(), |at| at + word.len());
    into.push_str(&text[..end]);
    &text[end..]
}

/// `{% generation %}` and its end mark the model's words for training; names that are set between them
/// are not known outside, as in a `with`. Jinja2 keeps the line end after `{% raw %}`.
fn block<'a>(text: &'a str, into: &mut String) -> &'a str {
    let mut inside = String::new();
    let rest = expressions(text, "%}", &mut inside);
    match inside.trim_matches(['-', '+', ' ', '\n']) {
        "generation" => *into += &inside.replacen("generation", "with", 1),
        "endgeneration" => *into += &inside.replacen("endgeneration", "endwith", 1),
        "raw" => {
            *into += &inside;
            if !inside.ends_with('-') {
                into.push('+');
            }
            return copied_to(rest, "endraw", into);
        }
        _ => *into += &inside,
    }
    rest
}

/// Takes over what stands before the `end` of a tag, with Python's `'%s' % x` as a filter's work: the
/// operator is one of numbers alone in minijinja.
fn expressions<'a>(text: &'a str, end: &str, into: &mut String) -> &'a str {
    let mut rest = text;
    // How much is left where the argument of each filter ends.
    let mut open: Vec<usize> = Vec::new();
    while let Some(first) = rest.chars().next() {
        while open.pop_if(|left| *left == rest.len()).is_some() {
            into.push(')');
        }
        if open.is_empty() && rest.starts_with(end) {
            break;
        }
        let literal = literal_len(rest);
        let taken = match literal {
            // What never ends is refused as it stands.
            None if QUOTES.contains(&first) => rest.len(),
            len => len.unwrap_or(first.len_utf8()),
        };
        into.push_str(&rest[..taken]);
        rest = &rest[taken..];
        let operand = literal.and_then(|_| percent_operand(rest));
        let fits =
            |left: usize| open.len() < DEEPEST && open.last().is_none_or(|outer| left >= *outer);
        if let Some((argument, left)) = operand.filter(|(_, left)| fits(*left)) {
            into.extend(["|", PERCENT, "("]);
            rest = argument;
            open.push(left);
        }
    }
    rest
}

/// What a `%` in front applies to: where it begins, and how much is left behind it.
fn percent_operand(text: &str) -> Option<(&str, usize)> {
    let text = text.trim_start().strip_prefix('%')?;
    if text.starts_with('}') {
        return None;
    }
    let text = text.trim_start();
    let near = text.char_indices().nth(LONGEST_OPERAND);
    let near = near.map_or(text, |(end, _)| &text[..end]);
    let signs = near.len() - near.trim_start_matches(['-', '+']).len();
    let mut end = signs + value_len(&near[signs..])?;
    while let Some(more) = postfix_len(&near[end..]) {
        end += more;
    }
    (end < near.len()).then(|| (text, text.len() - end))
}

/// Bytes of a literal, a name, a number or something in brackets.
fn value_len(text: &str) -> Option<usize> {
    let word = word_len(text);
    literal_len(text)
        .or_else(|| brackets_len(text))
        .or((word > 0).then_some(word))
}

/// Bytes of an attribute, an index, the arguments of a call, or a filter.
fn postfix_len(text: &str) -> Option<usize> {
    if text.starts_with(['(', '[']) {
        return brackets_len(text);
    }
    let name = text.trim_start().strip_prefix(['.', '|'])?.trim_start();
    let word = word_len(name);
    (word > 0).then(|| text.len() - name.len() + word)
}

fn word_len(text: &str) -> usize {
    let end = text.find(|c: char| !(c.is_alphanumeric() || c == '_'));
    end.unwrap_or(text.len())
}

/// Bytes of a literal in quotes, of which a backslash takes the next letter with it.
fn literal_len(text: &str) -> Option<usize> {
    let quote = text.chars().next().filter(|c| QUOTES.contains(c))?;
    let mut escaped = false;
    let end = text[1..].find(|c| {
        let ends = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        ends
    });
    Some(1 + end? + 1)
}

/// Bytes from an opening bracket to the one that closes it.
fn brackets_len(text: &str) -> Option<usize> {
    let (mut depth, mut at) = (0, 0);
    while let Some(c) = text[at..].chars().next() {
        match c {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth -= 1,
            _ => {}
        }
        at += literal_len(&text[at..]).unwrap_or(c.len_utf8());
        match depth {
            0 if ")]}".contains(c) => return Some(at),
            // What begins with no bracket.
            0 => return None,
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_both_read_alike_stays() {
        for source in [
            "a % b {{ 7 % 3 }}{% set x = 'a' %}{{ x % y }}{# '%s' % x #}",
            "{% raw -%}\n{% generation %}{{ '%s' % x }}{% endraw %}é{{ \"it's\" }}",
            "{{ 'never closed }} {% {{",
            "{{ '%s' % }}{{ 7 % 'a' }}",
        ] {
            assert_eq!(translated(source), source);
        }
    }

    #[test]
    fn hostile_templates_are_read_once() {
        for (piece, ends) in [
            ("'%s' % (", ""),
            ("'%s' % (", "}}"),
            ("\\'", "}}"),
            ("{{x}}", ""),
            ("{% raw %}", ""),
            ("'%s'%", "x"),
        ] {
            let source = format!("{{{{ '{}{ends}", piece.repeat(1 << 12));
            assert!(translated(&source).len() >= source.len(), "{piece}");
        }
    }

    #[test]
    fn what_minijinja_reads_otherwise_is_put_in_its_words() {
        for (source, expected) in [
            ("a\r\nb\rc{{ '\r\n' }}", "a\nb\nc{{ '\n' }}"),
            ("{%- generation -%}x{% endgeneration %}", "{%- with -%}x{% endwith %}"),
            ("{% raw %}\n{% endraw %}", "{% raw +%}\n{% endraw %}"),
            ("{{ '%s' % x ~ 'y' }}", "{{ '%s'|percent(x) ~ 'y' }}"),
            (
                "{% set a = '%s' % ('a', b.c(')')[0]) %}",
                "{% set a = '%s'|percent(('a', b.c(')')[0])) %}",
            ),
            ("{{ '%d' % -m[0].n | length }}", "{{ '%d'|percent(-m[0].n | length) }}"),
            ("{{ '%s' % ('%d' % 1) }}", "{{ '%s'|percent(('%d'|percent(1))) }}"),
            ("{{ '%(a)s' % {'a': {'b': 1}} }}", "{{ '%(a)s'|percent({'a': {'b': 1}}) }}"),
            ("{{ 'a' % 'b' % 'c' }}", "{{ 'a'|percent('b') % 'c' }}"),
        ] {
            assert_eq!(translated(source), expected);
        }
    }
}
