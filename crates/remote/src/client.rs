//! Requests that are repeated where that may help, and answers that are held to what was asked for.

use std::io::Read;
use std::ops::Range;
use std::sync::Mutex;
use std::time::Duration;

use ureq::http::{HeaderMap, Response, StatusCode};
use ureq::tls::TlsConfig;
use ureq::{Agent, Body};
use url::Url;

use crate::error::{RemoteError, Result};
use crate::listing::RemoteEntry;
use crate::trust::roots;

/// Redirections that are followed.
const MOST_HOPS: usize = 5;
/// Bytes that an attempt must bring for the attempts to be counted anew.
const PROGRESS: usize = 64 << 10;

/// How often and how long a server is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Attempts in a row that bring nothing.
    pub attempts: u32,
    /// Before the second attempt; doubled before each further one.
    pub first_wait: Duration,
    /// The longest wait, whatever the server asks for.
    pub longest_wait: Duration,
    /// For a connection, for the head of an answer, and for each 4 MiB of its body.
    pub answer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 7,
            first_wait: Duration::from_millis(250),
            longest_wait: Duration::from_secs(60),
            answer: Duration::from_secs(60),
        }
    }
}

/// Why an attempt failed.
enum Fault {
    /// Another attempt may do, after what the server asks for.
    Passing(String, Option<Duration>),
    /// Another attempt will not do.
    Lasting(RemoteError),
}

/// What all requests share.
#[derive(Debug)]
pub struct Client {
    agent: Agent,
    patience: Patience,
}

impl Client {
    /// A client that waits so long.
    ///
    /// # Errors
    /// Certificates that the environment names and that cannot be read.
    pub fn new(patience: Patience) -> Result<Self> {
        let wait = Some(patience.answer);
        let trust = TlsConfig::builder().root_certs(roots()?).build();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_connect(wait)
            .timeout_recv_response(wait)
            .timeout_recv_body(wait)
            .tls_config(trust)
            .user_agent(concat!("shardwright/", env!("CARGO_PKG_VERSION")))
            .build();
        Ok(Self { agent: config.into(), patience })
    }

    /// All of a small answer, at most `limit` bytes; `name` is what messages call it. None for status 404.
    ///
    /// # Errors
    /// An answer that is longer, and a server that refuses or stays silent.
    pub fn whole(
        &self,
        name: &str,
        (url, token): (&Url, Option<&str>),
        limit: u64,
    ) -> Result<Option<Vec<u8>>> {
        self.repeat(name, |_| {
            let answer = self.follow(url, token, None)?.0;
            match answer.status() {
                StatusCode::OK => {}
                StatusCode::NOT_FOUND => return Ok(None),
                status => return Err(unwanted(name, status, answer.headers())),
            }
            let announced = length(answer.headers());
            let mut bytes = Vec::new();
            let mut body = answer.into_body().into_reader().take(limit + 1);
            body.read_to_end(&mut bytes)
                .map_err(|e| Fault::Passing(e.to_string(), None))?;
            if bytes.len() as u64 > limit {
                let detail = format!("expected at most {limit} bytes, found more");
                return Err(Fault::Lasting(RemoteError::server(name, detail)));
            }
            if let Some(announced) = announced.filter(|announced| *announced != bytes.len() as u64)
            {
                let detail = format!("ended after {} of {announced} bytes", bytes.len());
                return Err(Fault::Passing(detail, None));
            }
            Ok(Some(bytes))
        })
    }

    /// Length and revision of a file whose server lists none; none where there is no such file.
    ///
    /// # Errors
    /// A server that gives no ranges, or nothing by which a change could be noticed.
    pub fn probe(&self, name: &str, url: &Url) -> Result<Option<(u64, String)>> {
        self.repeat(name, |_| {
            let answer = self.follow(url, None, Some(&(0..1)))?.0;
            let lasting = |detail: &str| Fault::Lasting(RemoteError::server(name, detail));
            match answer.status() {
                StatusCode::PARTIAL_CONTENT => {}
                StatusCode::NOT_FOUND => return Ok(None),
                StatusCode::OK => return Err(lasting(NO_RANGES)),
                status => return Err(unwanted(name, status, answer.headers())),
            }
            let headers = answer.headers();
            let (_, len) =
                content_range(headers).ok_or_else(|| lasting("expected a length of the file"))?;
            let revision = tag(headers).ok_or_else(|| {
                lasting(
                    "expected an ETag or a Last-Modified: a change could not be noticed without",
                )
            })?;
            Ok(Some((len, revision)))
        })
    }

    /// All bytes of a file, of the revision that was listed.
    ///
    /// # Errors
    /// As [`Self::range`].
    pub fn all(&self, entry: &RemoteEntry) -> Result<Vec<u8>> {
        let mut bytes = vec![0; entry.len as usize];
        self.range(entry, 0, &mut bytes, &Mutex::default())?;
        Ok(bytes)
    }

    /// Fills `out` from byte `start` of a file, in as many requests as it takes. `resolved` keeps where the hub
    /// led to.
    ///
    /// # Errors
    /// A file that is no longer the one that was listed; a server that refuses or stays silent.
    pub fn range(
        &self,
        entry: &RemoteEntry,
        start: u64,
        out: &mut [u8],
        resolved: &Mutex<Option<Url>>,
    ) -> Result<()> {
        let mut done = 0;
        while done < out.len() {
            self.repeat(&entry.name, |attempts| {
                let before = done;
                let wanted = start + done as u64..start + out.len() as u64;
                let result = self.part(entry, &wanted, &mut out[done..], resolved);
                let (read, fault) = match result {
                    Ok(read) => (read, None),
                    Err((read, fault)) => (read, Some(fault)),
                };
                done += read;
                if done - before >= PROGRESS {
                    *attempts = 0;
                }
                fault.map_or(Ok(()), Err)
            })?;
        }
        Ok(())
    }

    /// One request for a range; gives how many bytes came, also where it broke off.
    fn part(
        &self,
        entry: &RemoteEntry,
        wanted: &Range<u64>,
        out: &mut [u8],
        resolved: &Mutex<Option<Url>>,
    ) -> Result<usize, (usize, Fault)> {
        let none = |fault| (0, fault);
        let (url, token) = entry.address.request();
        let known = lock(resolved).clone();
        let asked = match &known {
            Some(known) => self.follow(known, None, Some(wanted)),
            None => self.follow(&url, token, Some(wanted)),
        };
        let (answer, end) = asked.map_err(none)?;
        let status = answer.status();
        if known.is_some() && status.is_client_error() {
            // A signed address has run out: the hub gives another.
            *lock(resolved) = None;
            return Err(none(Fault::Passing(format!("status {status}"), Some(Duration::ZERO))));
        }
        check(entry, wanted, &answer).map_err(none)?;
        if !entry.address.tagged() && end != url {
            *lock(resolved) = Some(end);
        }
        let mut body = answer.into_body().into_reader();
        let mut read = 0;
        while read < out.len() {
            match body.read(&mut out[read..]) {
                Ok(0) => {
                    let detail = format!("ended after {read} of {} bytes", out.len());
                    return Err((read, Fault::Passing(detail, None)));
                }
                Ok(more) => read += more,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err((read, Fault::Passing(e.to_string(), None))),
            }
        }
        Ok(read)
    }

    /// Asks, and asks where the answer points to. A token is shown to the first host alone.
    fn follow(
        &self,
        url: &Url,
        token: Option<&str>,
        range: Option<&Range<u64>>,
    ) -> Result<(Response<Body>, Url), Fault> {
        let mut at = url.clone();
        for _ in 0..=MOST_HOPS {
            let mut request = self.agent.get(at.as_str());
            if let Some(token) = token.filter(|_| at.origin() == url.origin()) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if let Some(range) = range {
                request =
                    request.header("range", format!("bytes={}-{}", range.start, range.end - 1));
            }
            let answer = request.call().map_err(|e| unanswered(&at, &e))?;
            if !answer.status().is_redirection() {
                return Ok((answer, at));
            }
            let next = header(answer.headers(), "location").and_then(|next| at.join(next).ok());
            let web = |url: &Url| matches!(url.scheme(), "http" | "https");
            // Never from an encrypted connection to one that is not.
            let safe =
                |next: &Url| web(next) && (at.scheme() == "http" || next.scheme() == "https");
            at = next.filter(safe).ok_or_else(|| {
                Fault::Passing(
                    "is redirected to no address that could be followed".to_owned(),
                    None,
                )
            })?;
        }
        Err(Fault::Passing(format!("is redirected more than {MOST_HOPS} times"), None))
    }

    /// Attempts until one succeeds, fails for good, or too many in a row brought nothing. The attempt may set
    /// their count back.
    fn repeat<T>(
        &self,
        name: &str,
        mut attempt: impl FnMut(&mut u32) -> Result<T, Fault>,
    ) -> Result<T> {
        let mut attempts = 0;
        loop {
            let (detail, asked) = match attempt(&mut attempts) {
                Ok(value) => return Ok(value),
                Err(Fault::Lasting(e)) => return Err(e),
                Err(Fault::Passing(detail, asked)) => (detail, asked),
            };
            attempts += 1;
            if attempts >= self.patience.attempts {
                let detail = format!("{detail}; {attempts} attempts brought nothing");
                return Err(RemoteError::server(name, detail));
            }
            let own = self.patience.first_wait * 2u32.pow(attempts - 1);
            std::thread::sleep(asked.unwrap_or(own).min(self.patience.longest_wait));
        }
    }
}

const NO_RANGES: &str = "expected a part of the file (status 206), found all of it: the server gives no ranges; \
                         fetch the model and name its directory";

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Why there was no answer. A server that nobody vouches for will not be another the next time.
fn unanswered(url: &Url, error: &ureq::Error) -> Fault {
    let detail = error.to_string();
    if detail.contains("invalid peer certificate") {
        let name = url.origin().ascii_serialization();
        return Fault::Lasting(RemoteError::Untrusted { name, detail });
    }
    Fault::Passing(detail, None)
}

/// Refuses an answer that is not these bytes of this file.
fn check(entry: &RemoteEntry, wanted: &Range<u64>, answer: &Response<Body>) -> Result<(), Fault> {
    let lasting = |detail: String| Err(Fault::Lasting(RemoteError::server(&entry.name, detail)));
    match answer.status() {
        StatusCode::PARTIAL_CONTENT | StatusCode::OK => {}
        status => return Err(unwanted(&entry.name, status, answer.headers())),
    }
    // A server may give all of a file where all of it was asked for.
    let whole = length(answer.headers()).map(|len| (0..len, len));
    let found = match answer.status() {
        StatusCode::OK if *wanted == (0..entry.len) => whole,
        StatusCode::OK => return lasting(NO_RANGES.to_owned()),
        _ => content_range(answer.headers()),
    };
    if let Some((_, len)) = found.as_ref().filter(|(_, len)| *len != entry.len) {
        return lasting(format!("expected a file of {} bytes, found {len}: it changed", entry.len));
    }
    if found.as_ref().map(|(range, _)| range) != Some(wanted) {
        let found = header(answer.headers(), "content-range").unwrap_or("nothing");
        let (start, end) = (wanted.start, wanted.end - 1);
        return Err(Fault::Passing(format!("expected bytes {start}-{end}, found `{found}`"), None));
    }
    match tag(answer.headers()).filter(|found| entry.address.tagged() && *found != entry.revision) {
        Some(found) => {
            lasting(format!("expected revision {}, found {found}: it changed", entry.revision))
        }
        None => Ok(()),
    }
}

/// What an answer of another status means.
fn unwanted(name: &str, status: StatusCode, headers: &HeaderMap) -> Fault {
    let code = status.as_u16();
    match code {
        401 | 403 => Fault::Lasting(RemoteError::Denied { name: name.to_owned(), status: code }),
        404 | 410 => Fault::Lasting(RemoteError::Missing { name: name.to_owned(), what: "file" }),
        408 | 425 | 429 | 500..=599 => {
            let wait = header(headers, "retry-after").and_then(|wait| wait.trim().parse().ok());
            Fault::Passing(format!("status {code}"), wait.map(Duration::from_secs))
        }
        _ => {
            Fault::Lasting(RemoteError::server(name, format!("expected status 206, found {code}")))
        }
    }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn length(headers: &HeaderMap) -> Option<u64> {
    // Of what was compressed on the way this is not the length.
    let plain = header(headers, "content-encoding").is_none();
    header(headers, "content-length")
        .filter(|_| plain)?
        .parse()
        .ok()
}

/// `bytes FIRST-LAST/LENGTH` as a range and a length.
fn content_range(headers: &HeaderMap) -> Option<(Range<u64>, u64)> {
    let (range, len) = header(headers, "content-range")?
        .strip_prefix("bytes ")?
        .split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    Some((first..last.checked_add(1)?, len.parse().ok()?))
}

/// What tells one state of a file from another.
fn tag(headers: &HeaderMap) -> Option<String> {
    let tag = header(headers, "etag").or_else(|| header(headers, "last-modified"))?;
    Some(tag.trim_start_matches("W/").trim_matches('"').to_owned())
}
