//! Files of tiktoken: a line for each token, its bytes in base64 and its rank.

use std::borrow::Cow;
use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::pieces::{Kind, Vocabulary};
use super::settings::Settings;
use super::split::Split;
use crate::refusal::{Refusal, mismatch};

/// The class whose text is cut as transformers does it for any of its own: Llama 3's.
const COMMON: &str = "PreTrainedTokenizer";
/// Bytes of a token, at most: those of published files have some 100.
const LONGEST: usize = 1024;
/// Numbers behind the ranks, at most: those of published files are some 300.
const MOST_RESERVED: usize = 1 << 16;

/// Whether a file begins as one of tiktoken.
pub(super) fn is_one(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| *byte == b'\n').next();
    line.is_some_and(|line| read_line(line).is_some())
}

/// The `tokenizer.json` of a file of ranks, with the settings beside it.
///
/// # Errors
/// No such file; a class of which it is not known how it cuts text.
pub(super) fn make(bytes: &[u8], settings: &Settings) -> Result<Vec<u8>, Refusal> {
    let split = split(settings)?;
    let ranks = read(bytes)?;
    let letters = letters();
    let letter = |byte: &u8| letters[usize::from(*byte)];
    let texts: Vec<String> = ranks
        .iter()
        .map(|token| token.iter().map(letter).collect())
        .collect();
    let reserved = reserved(texts.len(), &split, settings)?;
    let tokens = texts
        .iter()
        .chain(&reserved)
        .map(|text| Cow::from(text.as_str()));
    let kinds = vec![Kind::Normal; texts.len()].into_iter();
    let kinds = kinds
        .chain(reserved.iter().map(|_| Kind::Control))
        .collect();
    let vocabulary = Vocabulary { tokens: tokens.collect(), kinds };
    let added = settings.added(&vocabulary.tokens, vocabulary.added());
    let around = settings.around(&added, [None; 2], split.add_bos && !settings.has_code());
    let merges = merges(&ranks, &texts);
    let document = vocabulary.bytewise(&split, merges, added);
    let document = document.map_err(|(a, b)| mismatch("tokens", format_args!("`{a} {b}`")))?;
    serde_json::to_vec(&document.with_ends(around)).map_err(|e| e.to_string().into())
}

/// How the class of a tokenizer cuts text.
fn split(settings: &Settings) -> Result<Split, Refusal> {
    let class = settings.class().unwrap_or(COMMON);
    let class = if settings.has_code() { class } else { COMMON };
    Split::of_class(class).map_err(|known| {
        mismatch(format_args!("one of {}", known.join(", ")), class).at("tokenizer_class")
    })
}

/// Names of the numbers behind `count` ranks: those of the settings, and for what lies between them.
fn reserved(count: usize, split: &Split, settings: &Settings) -> Result<Vec<String>, Refusal> {
    let last = settings.last().map_or(0, |last| last.saturating_add(1));
    let end = last.max(count + split.reserved);
    if end - count > MOST_RESERVED {
        return Err(mismatch(format_args!("numbers below {}", count + MOST_RESERVED), end - 1)
            .at("added_tokens_decoder"));
    }
    let name = |id| {
        settings
            .at(id)
            .map_or_else(|| format!("<|reserved_token_{id}|>"), str::to_owned)
    };
    Ok((count..end).map(name).collect())
}

fn read_line(line: &[u8]) -> Option<(Vec<u8>, usize)> {
    let mut words = line
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    let token = STANDARD.decode(words.next()?).ok()?;
    let rank = std::str::from_utf8(words.next()?).ok()?.parse().ok()?;
    words.next().is_none().then_some((token, rank))
}

/// Tokens in the order of their ranks, which are all numbers from 0 on.
fn read(bytes: &[u8]) -> Result<Vec<Vec<u8>>, Refusal> {
    let mut tokens = Vec::new();
    let lines = bytes.split(|byte| *byte == b'\n').enumerate();
    for (number, line) in lines.filter(|(_, line)| !line.trim_ascii().is_empty()) {
        let at = |e: Refusal| e.at(format_args!("line {}", number + 1));
        let line = read_line(line)
            .ok_or_else(|| at(mismatch("a token in base64 and its rank", "another text")))?;
        if line.0.is_empty() || line.0.len() > LONGEST {
            return Err(at(mismatch(format_args!("1 to {LONGEST} bytes"), line.0.len())));
        }
        tokens.push(line);
    }
    tokens.sort_by_key(|(_, rank)| *rank);
    if let Some((expected, (_, rank))) = tokens.iter().enumerate().find(|(i, (_, rank))| i != rank)
    {
        return Err(mismatch(expected, rank).at("the next rank"));
    }
    let tokens: Vec<_> = tokens.into_iter().map(|(token, _)| token).collect();
    let known: HashMap<&[u8], usize> = tokens
        .iter()
        .enumerate()
        .map(|(i, t)| (t.as_slice(), i))
        .collect();
    if known.len() < tokens.len() {
        return Err("a token has two ranks".into());
    }
    match (0..=u8::MAX).find(|byte| !known.contains_key([*byte].as_slice())) {
        Some(byte) => Err(mismatch("a token for each byte", format_args!("none for {byte:#04x}"))),
        None => Ok(tokens),
    }
}

/// The letter by which each byte is written: itself where it is one that shows, else one behind the first 256.
fn letters() -> [char; 256] {
    let mut behind = '\u{100}'..;
    std::array::from_fn(|i| match u8::try_from(i).unwrap_or_default() {
        byte @ (b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff) => char::from(byte),
        _ => behind.next().unwrap_or_default(),
    })
}

/// Every pair of tokens that makes another, by the rank of the whole, then of the parts: any two that lie side by
/// side become the token that they spell.
fn merges<'t>(ranks: &[Vec<u8>], texts: &'t [String]) -> Vec<(&'t str, &'t str)> {
    let known: HashMap<&[u8], usize> = ranks
        .iter()
        .enumerate()
        .map(|(i, t)| (t.as_slice(), i))
        .collect();
    let mut merges = Vec::new();
    for token in ranks {
        let cuts = (1..token.len()).map(|at| token.split_at(at));
        let pair = |(a, b): (&[u8], &[u8])| Some((*known.get(a)?, *known.get(b)?));
        let mut pairs: Vec<_> = cuts.filter_map(pair).collect();
        pairs.sort_unstable();
        merges.extend(
            pairs
                .into_iter()
                .map(|(a, b)| (texts[a].as_str(), texts[b].as_str())),
        );
    }
    merges
}
