//! S3 buckets, Amazon's and those of servers that speak as it does.

use rusty_s3::actions::ListObjectsV2;
use rusty_s3::{Bucket, Credentials, S3Action, UrlStyle};
use url::Url;

use crate::client::Client;
use crate::environment::set;
use crate::error::{RemoteError, Result};
use crate::listing::{Address, RemoteEntry, SIGNED_FOR};

/// Longer pages of a listing are refused.
const PAGE_LIMIT: u64 = 16 << 20;
/// More objects are no model.
const MOST_OBJECTS: usize = 100_000;

/// The objects below a prefix.
///
/// # Errors
/// A bucket that is not there or not for everybody, and a server that does not answer as S3 does.
pub fn list(client: &Client, bucket: &str, prefix: &str) -> Result<Vec<RemoteEntry>> {
    let name = format!("s3://{bucket}/{prefix}");
    let bucket = open(&name, bucket)?;
    let credentials = Credentials::from_env();
    let (mut found, mut token) = (Vec::new(), None::<String>);
    loop {
        let mut request = bucket.list_objects_v2(credentials.as_ref());
        request.with_prefix(prefix);
        if let Some(token) = token {
            request.with_continuation_token(token);
        }
        let page = client.whole(&name, (&request.sign(SIGNED_FOR), None), PAGE_LIMIT)?;
        let page =
            page.ok_or_else(|| RemoteError::Missing { name: name.clone(), what: "bucket" })?;
        let page = ListObjectsV2::parse_response(&String::from_utf8_lossy(&page))
            .map_err(|e| RemoteError::server(&name, format!("expected a listing of S3: {e}")))?;
        for object in page.contents {
            let path = object
                .key
                .strip_prefix(prefix)
                .unwrap_or_default()
                .to_owned();
            // Folders are objects of no bytes in some consoles.
            if path.is_empty() || path.ends_with('/') {
                continue;
            }
            let name = format!("s3://{}/{}", bucket.name(), object.key);
            let known = object.size.zip(object.etag);
            let (len, tag) = known.ok_or_else(|| {
                RemoteError::server(&name, "expected a size and an ETag in the listing")
            })?;
            let (bucket, credentials) =
                (Box::new(bucket.clone()), credentials.clone().map(Box::new));
            let revision = tag.trim_matches('"').to_owned();
            let address = Address::S3 { bucket, credentials, key: object.key };
            found.push(RemoteEntry { path, len, revision, name, address, content: None });
        }
        token = page.next_continuation_token;
        if token.is_none() {
            return Ok(found);
        }
        if found.len() > MOST_OBJECTS {
            let detail =
                format!("expected at most {MOST_OBJECTS} objects; name the model's own prefix");
            return Err(RemoteError::server(&name, detail));
        }
    }
}

/// The bucket where the environment says that its server is, Amazon's if it says nothing.
fn open(name: &str, bucket: &str) -> Result<Bucket> {
    let region = set("AWS_REGION").or_else(|| set("AWS_DEFAULT_REGION"));
    let region = region.unwrap_or_else(|| "us-east-1".to_owned());
    let own = set("AWS_ENDPOINT_URL_S3").or_else(|| set("AWS_ENDPOINT_URL"));
    // Servers of one's own rarely have a host name per bucket; a name with dots has no certificate.
    let style =
        if own.is_some() || bucket.contains('.') { UrlStyle::Path } else { UrlStyle::VirtualHost };
    let endpoint = own.unwrap_or_else(|| format!("https://s3.{region}.amazonaws.com"));
    let endpoint = Url::parse(&endpoint)
        .map_err(|e| RemoteError::server(name, format!("AWS_ENDPOINT_URL: {e}")))?;
    Bucket::new(endpoint, style, bucket.to_owned(), region)
        .map_err(|e| RemoteError::server(name, e.to_string()))
}
