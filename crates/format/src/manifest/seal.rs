//! JSON whose first member is the hash of all of it, taken while that hash's own digits are zeros.

use super::Hash;

/// Digits of a hash.
const DIGITS: usize = 64;

/// Puts the hash of `bytes`, which begin with `prefix` and 64 zeros, in the place of the zeros.
///
/// # Panics
/// On bytes that are shorter.
pub fn seal(bytes: &mut [u8], prefix: &str) {
    let hash = blake3::hash(bytes).to_hex();
    bytes[prefix.len()..prefix.len() + DIGITS].copy_from_slice(hash.as_bytes());
}

/// The hash that sealed bytes should have: of all of them, their own hash's digits as zeros. None of bytes
/// that do not begin with `prefix`.
pub fn own_hash(bytes: &[u8], prefix: &str) -> Option<Hash> {
    let rest = bytes.strip_prefix(prefix.as_bytes())?.get(DIGITS..)?;
    let mut hasher = blake3::Hasher::new();
    hasher
        .update(prefix.as_bytes())
        .update(&[b'0'; DIGITS])
        .update(rest);
    Some(hasher.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_bytes_name_their_own_hash() {
        let mut bytes = format!("{{\"blake3\":\"{}\",\"n\":1}}", "0".repeat(DIGITS)).into_bytes();
        let expected = Hash::from(blake3::hash(&bytes));
        seal(&mut bytes, "{\"blake3\":\"");
        assert!(String::from_utf8_lossy(&bytes).contains(&expected.to_string()));
        assert_eq!(own_hash(&bytes, "{\"blake3\":\""), Some(expected));
        *bytes.last_mut().unwrap() = b' ';
        assert_ne!(own_hash(&bytes, "{\"blake3\":\""), Some(expected));
        assert_eq!(own_hash(b"{}", "{\"blake3\":\""), None);
    }
}
