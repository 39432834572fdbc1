//! By whose word a server is believed to be who it says.

use std::path::Path;

use shardwright_format::FormatError;
use shardwright_format::io::read_required;
use ureq::tls::{PemItem, RootCerts, parse_pem};

use crate::environment::set;
use crate::error::Result;

/// Variables that name a file of certificates, as they do to OpenSSL, to Python's programs and to AWS's. The first that
/// is set counts.
const VARIABLES: [&str; 3] = ["SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "AWS_CA_BUNDLE"];

/// The longest file of certificates that is read: what browsers trust takes a sixteenth of it.
const LONGEST: u64 = 4 << 20;

/// The certificates of a file that the environment names, in place of those that browsers trust.
///
/// # Errors
/// A file that cannot be read or has no certificate.
pub fn roots() -> Result<RootCerts> {
    let Some((variable, file)) = VARIABLES.iter().find_map(|name| Some((name, set(name)?))) else {
        return Ok(RootCerts::WebPki);
    };
    let path = Path::new(&file);
    let mut trusted = Vec::new();
    for item in parse_pem(&read_required(path, LONGEST)?) {
        match item {
            Ok(PemItem::Certificate(certificate)) => trusted.push(certificate),
            Ok(_) => {}
            Err(e) => {
                let detail = format!("expected certificates in PEM, as {variable} says: {e}");
                return Err(FormatError::file(path, detail).into());
            }
        }
    }
    if trusted.is_empty() {
        let detail = format!("expected certificates in PEM, as {variable} says, found none");
        return Err(FormatError::file(path, detail).into());
    }
    Ok(RootCerts::new_with_certs(&trusted))
}
