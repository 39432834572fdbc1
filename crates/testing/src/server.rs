//! A server on this machine that gives a folder's files as the hub, a web server or S3 would, and fails as they do.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use sha2::Digest as _;

use crate::contents;

/// How it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// As a web server with ranges and entity tags.
    Web,
    /// As a web server that knows no ranges.
    Rangeless,
    /// As the hub: a listing, and files behind a redirection to another host.
    Hub,
    /// As S3, with signed addresses.
    S3,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    /// Every how many requests one fails, in turn in each of five ways; never if none.
    pub every: Option<u64>,
    /// After how many requests the files' entity tags change.
    pub change_after: Option<u64>,
    /// The one file whose tag changes; all if none.
    pub change_only: Option<&'static str>,
    /// Bytes that the server says a file has more than it has.
    pub longer: u64,
    /// Whether the listing has another hash for large files than theirs.
    pub other_hash: bool,
    /// The token without which nothing is given.
    pub token: Option<&'static str>,
}

/// A server that answers until it is dropped.
#[derive(Debug)]
pub struct Server {
    port: u16,
    state: Arc<State>,
}

#[derive(Debug)]
struct State {
    root: PathBuf,
    manner: Manner,
    faults: Faults,
    stopped: AtomicBool,
    requests: AtomicU64,
    /// Bytes of files sent.
    sent: AtomicU64,
    /// Tokens that came where none belonged.
    leaks: AtomicU64,
}

impl Server {
    /// Gives the files below `root`, a model's directory.
    pub fn start(root: &Path, manner: Manner, faults: Faults) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(State {
            root: root.to_owned(),
            manner,
            faults,
            stopped: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            sent: AtomicU64::new(0),
            leaks: AtomicU64::new(0),
        });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let state = Arc::clone(&shared);
                std::thread::spawn(move || stream.map(|stream| state.answer(stream, port)));
            }
        });
        Self { port, state }
    }

    /// Where it listens.
    pub(crate) const fn port(&self) -> u16 {
        self.port
    }

    /// Its address, without a slash at the end.
    pub fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Bytes of files that were sent.
    pub fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::SeqCst)
    }

    /// Requests that came.
    pub fn requests(&self) -> u64 {
        self.state.requests.load(Ordering::SeqCst)
    }

    /// Tokens that came to the host that files are behind.
    pub fn leaks(&self) -> u64 {
        self.state.leaks.load(Ordering::SeqCst)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.state.stopped.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for a connection.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

fn sha256(bytes: &[u8]) -> String {
    let mut hex = String::new();
    for byte in sha2::Sha256::digest(bytes) {
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

/// A request as far as it matters.
struct Request {
    path: String,
    query: String,
    headers: BTreeMap<String, String>,
}

fn read(stream: &TcpStream) -> Option<Request> {
    let mut lines = BufReader::new(stream).lines().map_while(Result::ok);
    let first = lines.next()?;
    let target = first.split(' ').nth(1)?;
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers = lines
        .take_while(|line| !line.is_empty())
        .filter_map(|line| {
            let (name, value) = line.split_once(": ")?;
            Some((name.to_ascii_lowercase(), value.to_owned()))
        });
    Some(Request { path: path.to_owned(), query: query.to_owned(), headers: headers.collect() })
}

impl State {
    fn answer(&self, mut stream: TcpStream, port: u16) {
        let Some(request) = read(&stream) else { return };
        let number = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        let fault = self
            .faults
            .every
            .filter(|every| number.is_multiple_of(*every));
        let fault = fault.map(|every| number / every % 5);
        let (status, headers, body) = match fault {
            Some(0) => return,
            Some(1) => ("429 Too Many Requests", "retry-after: 0\r\n".to_owned(), Vec::new()),
            Some(2) => ("503 Service Unavailable", String::new(), Vec::new()),
            _ => self.route(&request, number, port),
        };
        let len = body.len();
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {len}\r\nconnection: close\r\n{headers}\r\n"
        );
        let _ = stream.write_all(head.as_bytes());
        let body = match fault {
            // Ends early.
            Some(3) => &body[..len / 2],
            _ => &body[..],
        };
        if fault == Some(4) {
            std::thread::sleep(Duration::from_millis(50));
        }
        self.sent.fetch_add(body.len() as u64, Ordering::SeqCst);
        let _ = stream.write_all(body);
    }

    fn route(&self, request: &Request, number: u64, port: u16) -> (&'static str, String, Vec<u8>) {
        let token = request.headers.get("authorization");
        let behind = request.path.strip_prefix("/behind/");
        if behind.is_some() && token.is_some() {
            self.leaks.fetch_add(1, Ordering::SeqCst);
        }
        let wanted = self.faults.token.map(|token| format!("Bearer {token}"));
        if behind.is_none() && wanted.is_some() && token != wanted.as_ref() {
            return ("401 Unauthorized", String::new(), Vec::new());
        }
        match self.manner {
            Manner::Web | Manner::Rangeless => self.file(&request.path[1..], request, number),
            Manner::Hub => {
                match (behind, request.path.strip_prefix("/api/models/org/name/revision/")) {
                    (Some(path), _) => self.file(path, request, number),
                    (None, Some("main" | "v1")) => {
                        ("200 OK", String::new(), self.listing().into_bytes())
                    }
                    _ => match request.path.strip_prefix("/org/name/resolve/c0ffee/") {
                        Some(path) => {
                            let location =
                                format!("location: http://localhost:{port}/behind/{path}\r\n");
                            ("302 Found", location, Vec::new())
                        }
                        None => ("404 Not Found", String::new(), Vec::new()),
                    },
                }
            }
            Manner::S3 if !request.query.contains("X-Amz-Signature=") => {
                ("403 Forbidden", String::new(), Vec::new())
            }
            Manner::S3 => match request.path.strip_prefix("/bucket/") {
                Some("") => ("200 OK", String::new(), self.objects().into_bytes()),
                Some(key) => self.file(key.trim_start_matches("models/name/"), request, number),
                None => ("404 Not Found", String::new(), Vec::new()),
            },
        }
    }

    /// All of a file, or the range that was asked for.
    fn file(&self, path: &str, request: &Request, number: u64) -> (&'static str, String, Vec<u8>) {
        let Ok(bytes) = fs::read(self.root.join(path)) else {
            return ("404 Not Found", String::new(), Vec::new());
        };
        let Faults { change_after, change_only, .. } = self.faults;
        let changed = change_after.is_some_and(|after| number > after)
            && change_only.is_none_or(|only| only == path);
        let tag = format!("etag: \"{}-{}\"\r\n", bytes.len(), if changed { "new" } else { "old" });
        let range = request
            .headers
            .get("range")
            .filter(|_| self.manner != Manner::Rangeless);
        let Some((first, last)) =
            range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'))
        else {
            return ("200 OK", tag, bytes);
        };
        let (first, last): (usize, usize) = (first.parse().unwrap(), last.parse().unwrap());
        let last = last.min(bytes.len() - 1);
        let len = bytes.len() as u64 + self.faults.longer;
        let headers = format!("{tag}content-range: bytes {first}-{last}/{len}\r\n");
        ("206 Partial Content", headers, bytes[first..=last].to_vec())
    }

    fn files(&self) -> Vec<(String, u64)> {
        let files = contents(&self.root).into_iter();
        files
            .map(|(name, bytes)| (name, bytes.len() as u64))
            .collect()
    }

    /// As the hub lists a repository.
    fn listing(&self) -> String {
        let sibling = |(number, (name, size)): (usize, (String, u64))| {
            let blob = format!("{size:x}{number:x}");
            let mut sibling =
                serde_json::json!({ "rfilename": name, "size": size, "blobId": blob });
            if name.ends_with(".safetensors") {
                let bytes = fs::read(self.root.join(&name)).unwrap();
                let hash = if self.faults.other_hash { sha256(b"") } else { sha256(&bytes) };
                sibling["lfs"] = serde_json::json!({ "sha256": hash, "size": size });
            }
            sibling
        };
        let siblings: Vec<_> = self.files().into_iter().enumerate().map(sibling).collect();
        serde_json::json!({ "id": "org/name", "sha": "c0ffee", "siblings": siblings }).to_string()
    }

    /// As S3 lists a bucket, all on one page.
    fn objects(&self) -> String {
        let mut xml = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n\
             <ListBucketResult xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\"><Name>bucket</Name>\
             <IsTruncated>false</IsTruncated><EncodingType>url</EncodingType>"
            .to_owned();
        for (name, size) in self.files() {
            let _ = write!(
                xml,
                "<Contents><Key>models/name/{name}</Key><ETag>&quot;{size}-old&quot;</ETag><Size>{size}</Size></Contents>"
            );
        }
        xml + "</ListBucketResult>"
    }
}
