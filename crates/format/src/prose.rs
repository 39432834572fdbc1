//! Texts that people give: prompts, and what is calibrated on and predicted.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::error::{FormatError, Result};
use crate::refusal::mismatch;
use crate::text::Lines;

/// Bytes read at a time.
const BLOCK: usize = 64 << 10;
/// Bytes by which an encoding is told.
const HEAD: usize = 1024;
/// What a text should be.
pub(crate) const UTF_8: &str = "text in UTF-8";
/// How files begin that hold a text in another form, what they are, and what takes the text out.
const FORMS: [(&[u8], &str, &str); 7] = [
    (b"\x1f\x8b", "a gzip file", "`gzip -dc` unpacks it"),
    (b"\x28\xb5\x2f\xfd", "a zstd file", "`zstd -dc` unpacks it"),
    (b"\xfd7zXZ\0", "an xz file", "`xz -dc` unpacks it"),
    (b"BZh91AY&SY", "a bzip2 file", "`bzip2 -dc` unpacks it"),
    (b"PK\x03\x04", "a zip file", "`unzip -p` unpacks it"),
    (b"%PDF-", "a PDF file", "`pdftotext` takes its text out"),
    (b"PAR1\x15", "a Parquet file", "write its column of text to a file"),
];

/// A text that is read a part at a time: UTF-8 without a byte order mark.
#[derive(Debug)]
pub struct Reader<R> {
    path: PathBuf,
    source: R,
    /// Bytes of a character that is not whole yet.
    rest: Vec<u8>,
    /// Bytes of the file before them.
    at: usize,
    ended: bool,
    /// The first bytes have zeros among them.
    binary: bool,
    ends: LineEnds,
}

impl Reader<File> {
    /// Opens a file.
    ///
    /// # Errors
    /// What is no regular file, which could be read without end or only once.
    pub fn open(path: &Path) -> Result<Self> {
        let io = |e| FormatError::io(path, e);
        if !std::fs::metadata(path).map_err(io)?.is_file() {
            return Err(FormatError::file(path, "expected a regular file"));
        }
        Ok(Self::new(path, File::open(path).map_err(io)?))
    }
}

impl<R: Read> Reader<R> {
    /// A text from `source`; errors name `path`.
    pub fn new(path: &Path, source: R) -> Self {
        let (path, rest, ends) = (path.to_owned(), Vec::new(), LineEnds::default());
        Self { path, source, rest, at: 0, ended: false, binary: false, ends }
    }

    /// Appends about `bytes` more of the text; `false` once it has ended.
    ///
    /// # Errors
    /// Any encoding but UTF-8 and files of other forms, named where their first bytes say so, with the
    /// command that changes them; what the operating system refuses.
    pub fn read(&mut self, text: &mut String, bytes: usize) -> Result<bool> {
        let (before, first) = (text.len(), self.at == 0);
        // What tells the encoding is looked at together; a character has up to four bytes.
        let wanted = if first { bytes.max(HEAD) } else { bytes.max(4) };
        while !self.ended && self.rest.len() < wanted {
            let block = (wanted - self.rest.len()).min(BLOCK) as u64;
            let read = self.source.by_ref().take(block).read_to_end(&mut self.rest);
            self.ended = read.map_err(|e| FormatError::io(&self.path, e))? < block as usize;
        }
        if first {
            self.check_head()?;
        }
        let valid = match std::str::from_utf8(&self.rest) {
            Ok(_) => self.rest.len(),
            // A character that goes on in the next block.
            Err(e) if e.error_len().is_none() && !self.ended => e.valid_up_to(),
            Err(e) => {
                let (byte, at) = (self.rest[e.valid_up_to()], self.at + e.valid_up_to());
                let found = format!("byte {byte:#04x} at {at}");
                return Err(if self.binary {
                    self.refused(format_args!("{found}, and bytes of zero: no text"))
                } else {
                    self.refused(format_args!(
                        "{found}: `iconv -f ENCODING -t UTF-8` changes it, with the encoding that it is in"
                    ))
                });
            }
        };
        text.push_str(std::str::from_utf8(&self.rest[..valid]).unwrap_or_default());
        self.rest.drain(..valid);
        self.at += valid;
        if first && text[before..].starts_with('\u{feff}') {
            text.replace_range(before..before + 3, "");
        }
        self.ends.add(&text[before..]);
        Ok(!self.ended || !self.rest.is_empty())
    }

    /// Refuses what its first bytes tell.
    fn check_head(&mut self) -> Result<()> {
        let head = &self.rest[..self.rest.len().min(HEAD)];
        if let Some((name, next)) = form(head) {
            return Err(self.refused(format_args!("{name}: {next}")));
        }
        self.binary = head.contains(&0);
        utf16(head).map_or(Ok(()), |found| Err(self.refused(found)))
    }

    fn refused(&self, found: impl std::fmt::Display) -> FormatError {
        FormatError::file(&self.path, mismatch(UTF_8, found))
    }

    /// Why what was read so far may surprise.
    pub fn note(&self) -> Option<&'static str> {
        self.ends.note()
    }
}

/// How lines end.
#[derive(Debug, Default)]
struct LineEnds {
    all: usize,
    both: usize,
    /// The text so far ends in CR.
    cr: bool,
}

impl LineEnds {
    fn add(&mut self, text: &str) {
        self.all += text.matches('\n').count();
        self.both += text.matches("\r\n").count() + usize::from(self.cr && text.starts_with('\n'));
        self.cr = if text.is_empty() { self.cr } else { text.ends_with('\r') };
    }

    fn note(&self) -> Option<&'static str> {
        (self.all > 0 && self.all == self.both).then_some(
            "lines end in CRLF throughout, which are other tokens than LF; models have seen the latter",
        )
    }
}

/// What is known of a whole text that is not kept.
#[derive(Clone, Debug)]
pub struct Digest {
    /// Hash of its bytes, without a byte order mark.
    pub blake3: blake3::Hash,
    /// So many.
    pub bytes: u64,
    /// Its smallest [`crate::text::line_hashes`].
    pub lines: Vec<u64>,
    /// Why it may surprise.
    pub note: Option<&'static str>,
}

impl Digest {
    /// Reads a file through, a block at a time, for it and at most `lines` hashes of lines.
    ///
    /// # Errors
    /// As [`Reader::open`] and [`Reader::read`]; a text of more than `limit` bytes.
    pub fn read(path: &Path, limit: u64, lines: usize) -> Result<Self> {
        let (mut reader, mut text) = (Reader::open(path)?, String::new());
        let (mut hasher, mut lines, mut bytes) = (blake3::Hasher::new(), Lines::new(lines), 0);
        let mut more = true;
        while more {
            text.clear();
            more = reader.read(&mut text, BLOCK)?;
            hasher.update(text.as_bytes());
            lines.push(&text);
            bytes += text.len() as u64;
            if bytes > limit {
                let detail = mismatch(format_args!("at most {limit} bytes"), "more");
                return Err(FormatError::file(path, detail));
            }
        }
        let blake3 = hasher.finalize();
        Ok(Self { blake3, bytes, lines: lines.finish(), note: reader.note() })
    }
}

/// What a file is by its first bytes, and what takes the text out of it.
pub(crate) fn form(first: &[u8]) -> Option<(&'static str, &'static str)> {
    let found = FORMS.iter().find(|(magic, ..)| first.starts_with(magic));
    found.map(|(_, name, next)| (*name, *next))
}

/// What a text in UTF-16 is, and what makes one in UTF-8 of it.
pub(crate) fn utf16(first: &[u8]) -> Option<String> {
    let name = match first.get(..2) {
        Some([0xff, 0xfe]) => Some("UTF-16LE"),
        Some([0xfe, 0xff]) => Some("UTF-16BE"),
        _ => zeros(first),
    };
    name.map(|name| format!("UTF-16: `iconv -f {name} -t UTF-8` changes it"))
}

/// UTF-16 without a mark: every other byte of mostly western text is zero.
fn zeros(bytes: &[u8]) -> Option<&'static str> {
    let first = &bytes[..bytes.len().min(HEAD)];
    let zeros = |from: usize| {
        first
            .iter()
            .skip(from)
            .step_by(2)
            .filter(|byte| **byte == 0)
            .count()
    };
    let most = first.len() / 4;
    let (even, odd) = (zeros(0), zeros(1));
    match () {
        () if first.len() >= 4 && odd > most && even == 0 => Some("UTF-16LE"),
        () if first.len() >= 4 && even > most && odd == 0 => Some("UTF-16BE"),
        () => None,
    }
}

/// Why a text may surprise: lines that end in two characters are other tokens.
pub fn note(text: &str) -> Option<&'static str> {
    let mut ends = LineEnds::default();
    ends.add(text);
    ends.note()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text, read so many bytes at a time.
    fn read(bytes: &[u8], size: usize) -> Result<(String, Option<&'static str>)> {
        let (mut reader, mut text) = (Reader::new(Path::new("t"), bytes), String::new());
        while reader.read(&mut text, size)? {}
        Ok((text, reader.note()))
    }

    fn refusal(bytes: &[u8]) -> String {
        let errors = [1, 3, 1 << 20].map(|size| read(bytes, size).unwrap_err().to_string());
        assert!(errors.iter().all(|error| *error == errors[0]), "{errors:?}");
        errors[0].clone()
    }

    #[test]
    fn other_encodings_are_named() {
        let little: Vec<u8> = "plain".encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = "plain".encode_utf16().flat_map(u16::to_be_bytes).collect();
        let expected =
            "t: expected text in UTF-8, found UTF-16: `iconv -f UTF-16LE -t UTF-8` changes it";
        assert_eq!(refusal(&little), expected);
        assert_eq!(refusal(&[&[0xff, 0xfe], &little[..]].concat()), expected);
        assert!(refusal(&big).contains("UTF-16BE"));
        // Latin-1 and GBK alike: no byte says which.
        let other = |byte: &str, at| {
            format!(
                "t: expected text in UTF-8, found byte {byte} at {at}: `iconv -f ENCODING -t UTF-8` changes it, \
                 with the encoding that it is in"
            )
        };
        assert_eq!(refusal(b"caf\xe9s"), other("0xe9", 3));
        assert_eq!(refusal(b"\xc4\xe3\xba\xc3"), other("0xc4", 0));
        let binary = "t: expected text in UTF-8, found byte 0x80 at 5, and bytes of zero: no text";
        assert_eq!(refusal(b"\x01\0\0\0\x02\x80\0\0"), binary);
    }

    #[test]
    fn texts_in_files_of_other_forms_are_named() {
        for (magic, name, next) in FORMS {
            let expected = format!("t: expected text in UTF-8, found {name}: {next}");
            assert_eq!(refusal(&[magic, b"\x08\0 and more"].concat()), expected);
        }
        assert_eq!(read(b"PAR1 and BZh9", 1).unwrap().0, "PAR1 and BZh9");
    }

    #[test]
    fn a_mark_is_no_text_and_crlf_is_noted() {
        let text = |bytes: &[u8]| read(bytes, 1).unwrap().0;
        assert_eq!(text(b"\xef\xbb\xbfabc"), "abc");
        assert_eq!(text(b"a\0b"), "a\0b");
        assert!(note("a\r\nb\r\n").is_some());
        assert!(note("a\r\nb\n").is_none() && note("a").is_none());
    }

    #[test]
    fn parts_are_the_whole_wherever_they_end() {
        let text = "naïve — 日本 🙂\r\n".repeat(500);
        let marked = format!("\u{feff}{text}");
        for size in [1, 2, 3, 5, 1023, 1025, 1 << 20] {
            let (found, note) = read(marked.as_bytes(), size).unwrap();
            assert!(found == text && note.is_some(), "{size}");
        }
        let late = [text.as_bytes(), b"caf\xe9"].concat();
        assert!(refusal(&late).contains(&format!("byte 0xe9 at {}", late.len() - 1)));
        assert_eq!(read(b"", 5).unwrap().0, "");
    }
}
