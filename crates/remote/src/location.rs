//! Where a model is, as a user writes it.

use std::fmt;
use std::path::Path;

use url::Url;

use crate::error::{RemoteError, Result};

/// A model elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Location {
    /// `hf://ORG/NAME[@REVISION][/FILE]`.
    Hub {
        /// `ORG/NAME`.
        repository: String,
        /// Branch, tag or commit.
        revision: String,
        /// The one file of the repository that is the model.
        file: Option<String>,
    },
    /// `https://HOST/DIRECTORY` or `https://HOST/DIRECTORY/FILE.gguf`.
    Web {
        /// The directory, ending in `/`.
        directory: Url,
        /// The one file in it that is the model.
        file: Option<String>,
    },
    /// `s3://BUCKET/PREFIX` or `s3://BUCKET/PREFIX/FILE.gguf`.
    S3 {
        /// The bucket.
        bucket: String,
        /// Before the names of files: empty, or ending in `/`.
        prefix: String,
        /// The one file below the prefix that is the model.
        file: Option<String>,
    },
}

impl Location {
    /// Whether a path is a location elsewhere at all.
    pub fn is_remote(path: &Path) -> bool {
        let text = path.to_string_lossy();
        ["hf://", "http://", "https://", "s3://"]
            .iter()
            .any(|scheme| text.starts_with(scheme))
    }

    /// Reads a location.
    ///
    /// # Errors
    /// One that names no model, or that holds a password.
    pub fn parse(text: &str) -> Result<Self> {
        let refuse = |detail: &str| RemoteError::Location {
            location: shown(text),
            detail: detail.to_owned(),
        };
        if let Some(rest) = text.strip_prefix("hf://") {
            return hub(rest)
                .ok_or_else(|| refuse("expected hf://ORG/NAME[@REVISION][/FILE.gguf]"));
        }
        if let Some(rest) = text.strip_prefix("s3://") {
            let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Err(refuse("expected s3://BUCKET/PREFIX"));
            }
            let (prefix, file) = directory_and_file(key);
            return Ok(Self::S3 { bucket: bucket.to_owned(), prefix, file });
        }
        let url = Url::parse(text).map_err(|e| refuse(&e.to_string()))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refuse(
                "expected no user name or password in the address: logs would show them",
            ));
        }
        if let Some(found) = page(&url) {
            return Ok(found);
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(refuse(
                "expected the address of a directory or a GGUF file, without `?` and `#`",
            ));
        }
        let (path, file) = directory_and_file(url.path().trim_start_matches('/'));
        let mut directory = url.clone();
        directory.set_path(&path);
        Ok(Self::Web { directory, file })
    }
}

/// A location without what may be a password in it.
fn shown(text: &str) -> String {
    match (text.split_once("://"), text.rsplit_once('@')) {
        (Some((scheme, _)), Some((_, rest))) if scheme.starts_with("http") => {
            format!("{scheme}://{rest}")
        }
        _ => text.to_owned(),
    }
}

/// `ORG/NAME[@REVISION][/FILE]`. A revision may have slashes (`refs/pr/1`), a file must end in `.gguf` then.
fn hub(rest: &str) -> Option<Location> {
    let (org, rest) = rest.split_once('/')?;
    let end = rest.find(['/', '@']).unwrap_or(rest.len());
    let (name, rest) = rest.split_at(end);
    let (rest, file) = match rest.rsplit_once('/') {
        Some((rest, file)) if is_model_file(file) => (rest, Some(file.to_owned())),
        _ => (rest.trim_end_matches('/'), None),
    };
    let revision = match rest.strip_prefix('@') {
        Some(revision) => revision,
        None if rest.is_empty() => "main",
        None => return None,
    };
    let word = |text: &str| {
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        !text.is_empty() && !text.starts_with('.') && text.chars().all(plain)
    };
    let sound = word(org) && word(name) && revision.split('/').all(word);
    sound.then(|| Location::Hub {
        repository: format!("{org}/{name}"),
        revision: revision.to_owned(),
        file,
    })
}

/// The repository that a page of the hub shows, whole, at a revision (`tree`), or as one GGUF file of it.
fn page(url: &Url) -> Option<Location> {
    let host = url.host_str()?;
    if !["huggingface.co", "www.huggingface.co", "hf.co"].contains(&host) {
        return None;
    }
    let path = url.path().trim_matches('/');
    let parts: Vec<_> = path.splitn(5, '/').collect();
    match parts[..] {
        [org, name] => hub(&format!("{org}/{name}")),
        [org, name, "tree", revision] => hub(&format!("{org}/{name}@{revision}")),
        [org, name, "blob" | "resolve", revision, file] if is_model_file(file) => {
            hub(&format!("{org}/{name}@{revision}/{file}"))
        }
        _ => None,
    }
}

fn is_model_file(name: &str) -> bool {
    Path::new(name)
        .extension()
        .is_some_and(|end| end.eq_ignore_ascii_case("gguf"))
}

/// A path as a directory, ending in `/` if it is not the top, and the GGUF file in it if it names one.
fn directory_and_file(path: &str) -> (String, Option<String>) {
    let (directory, last) = path.rsplit_once('/').unwrap_or(("", path));
    let (directory, file) =
        if is_model_file(last) { (directory, Some(last.to_owned())) } else { (path, None) };
    let directory = directory.trim_end_matches('/');
    let end = if directory.is_empty() { "" } else { "/" };
    (format!("{directory}{end}"), file)
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let file = match self {
            Self::Hub { repository, revision, file } => {
                write!(f, "hf://{repository}@{revision}")?;
                return file.iter().try_for_each(|file| write!(f, "/{file}"));
            }
            Self::Web { directory, file } => {
                write!(f, "{directory}")?;
                file
            }
            Self::S3 { bucket, prefix, file } => {
                write!(f, "s3://{bucket}/{prefix}")?;
                file
            }
        };
        f.write_str(file.as_deref().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> String {
        match Location::parse(text) {
            Ok(location) => location.to_string(),
            Err(e) => format!("error: {e}"),
        }
    }

    #[test]
    fn locations_are_read_as_they_are_written() {
        for (given, expected) in [
            ("hf://Qwen/Qwen3-0.6B", "hf://Qwen/Qwen3-0.6B@main"),
            ("hf://Qwen/Qwen3-0.6B/", "hf://Qwen/Qwen3-0.6B@main"),
            ("hf://org/name@v1.0", "hf://org/name@v1.0"),
            ("hf://org/name@refs/pr/1", "hf://org/name@refs/pr/1"),
            ("hf://org/name@main/model-Q4_0.gguf", "hf://org/name@main/model-Q4_0.gguf"),
            ("hf://org/name/model.gguf", "hf://org/name@main/model.gguf"),
            ("https://huggingface.co/org/name", "hf://org/name@main"),
            ("https://huggingface.co/org/name/tree/v1/", "hf://org/name@v1"),
            (
                "https://hf.co/org/name/resolve/main/m.gguf?download=true",
                "hf://org/name@main/m.gguf",
            ),
            (
                "https://huggingface.co/org/name/resolve/main",
                "https://huggingface.co/org/name/resolve/main/",
            ),
            ("https://host/a/b", "https://host/a/b/"),
            ("https://host/a/m.gguf", "https://host/a/m.gguf"),
            ("http://127.0.0.1:80", "http://127.0.0.1/"),
            ("s3://bucket", "s3://bucket/"),
            ("s3://bucket/a/b/", "s3://bucket/a/b/"),
            ("s3://bucket/a/m.gguf", "s3://bucket/a/m.gguf"),
        ] {
            assert_eq!(read(given), expected);
        }
    }

    #[test]
    fn what_names_no_model_is_refused() {
        for text in [
            "hf://name",
            "hf://org/../x",
            "hf://org/name/folder",
            "hf://org/name@",
            "s3://",
            "https://",
        ] {
            assert!(Location::parse(text).is_err(), "{text}");
        }
        let error = read("https://me:secret@host/model");
        assert!(error.contains("https://host/model: expected no user name"), "{error}");
    }

    #[test]
    fn paths_of_this_machine_are_not_elsewhere() {
        for path in ["model", "org/name", "./https", "s3"] {
            assert!(!Location::is_remote(Path::new(path)), "{path}");
        }
        assert!(Location::is_remote(Path::new("hf://org/name")));
    }
}
