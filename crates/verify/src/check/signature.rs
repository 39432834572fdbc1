//! Did somebody who is trusted sign the bundle? The manifest has the hash of every file, so a signature of its bytes
//! is one of the whole. In the form of minisign (<https://jedisct1.github.io/minisign/>), whose tool makes it.

use std::path::{Path, PathBuf};

use minisign_verify::{PublicKey, Signature};
use shardwright_format::FormatError;
use shardwright_format::io::{read_limited, read_required};
use shardwright_format::manifest::MANIFEST_FILE;

use crate::check::finding::{Finding, Kind};
use crate::error::Result;

/// Longer keys and signatures are refused unread: real ones take some hundred bytes.
const LIMIT: u64 = 16 << 10;

/// A key whose signatures are trusted, and the file that has it.
#[derive(Clone, Debug)]
pub struct TrustedKey {
    path: PathBuf,
    key: PublicKey,
}

impl TrustedKey {
    /// Reads a public key of minisign.
    ///
    /// # Errors
    /// A file that holds none.
    pub fn read(path: &Path) -> Result<Self> {
        let refused = |detail: String| FormatError::file(path, detail);
        let text = String::from_utf8(read_required(path, LIMIT)?);
        let text = text.map_err(|e| refused(e.to_string()))?;
        let key = PublicKey::decode(text.trim()).or_else(|_| PublicKey::from_base64(text.trim()));
        let key = key.map_err(|e| refused(format!("expected a public key of minisign: {e}")))?;
        Ok(Self { path: path.to_owned(), key })
    }

    /// Whether the key signed these bytes of a manifest: what the signer says of them, or what is wrong.
    ///
    /// # Errors
    /// What the operating system refuses.
    pub fn check(&self, manifest: &[u8], signature: &Path) -> Result<Result<String, Finding>> {
        let name = signature.file_name().unwrap_or_default().to_string_lossy();
        let finding = |detail: String| Ok(Err(Finding::file(Kind::Signature, &name, detail)));
        let trusted = self.path.display();
        let Some(text) = read_limited(signature, LIMIT)? else {
            return finding(format!("there is none; expected one by the key in {trusted}"));
        };
        let text = String::from_utf8_lossy(&text);
        let found = match Signature::decode(text.trim_end()) {
            Ok(found) => found,
            Err(e) => return finding(format!("expected a signature of minisign: {e}")),
        };
        // Of the hash of the bytes, as minisign makes them since 2015: not the older form.
        match self.key.verify(manifest, &found, false) {
            Ok(()) => Ok(Ok(format!(
                "{MANIFEST_FILE} is signed by the key in {trusted}, with the comment `{}`",
                found.trusted_comment()
            ))),
            Err(e) => {
                finding(format!("is not of this {MANIFEST_FILE} by the key in {trusted}: {e}"))
            }
        }
    }
}
