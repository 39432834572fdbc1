//! An encrypted way to a [`Server`], whose certificate nobody vouches for but itself.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::server::Server;

/// Answers until it is dropped, with what the server behind it does.
#[derive(Debug)]
pub struct Encrypted {
    port: u16,
    certificate: String,
    stopped: Arc<AtomicBool>,
}

impl Encrypted {
    /// Stands before `server`.
    pub fn before(server: &Server) -> Self {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let key = PrivatePkcs8KeyDer::from(signing_key.serialize_der());
        let config = ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![cert.der().clone()], key.into());
        let config = Arc::new(config.unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stopped, behind) = (Arc::new(AtomicBool::new(false)), server.port());
        let seen = Arc::clone(&stopped);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if seen.load(Ordering::SeqCst) {
                    return;
                }
                let connection = ServerConnection::new(Arc::clone(&config)).unwrap();
                std::thread::spawn(move || pass_on(StreamOwned::new(connection, stream), behind));
            }
        });
        Self { port, certificate: cert.pem(), stopped }
    }

    /// Its address, without a slash at the end.
    pub fn address(&self) -> String {
        format!("https://localhost:{}", self.port)
    }

    /// Its certificate in PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }
}

impl Drop for Encrypted {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // Wakes the thread that waits for a connection.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// Gives one request to the server behind and its answer to who asked; none where whoever asked trusts nobody here.
fn pass_on(
    mut asking: StreamOwned<ServerConnection, TcpStream>,
    behind: u16,
) -> std::io::Result<()> {
    let (mut request, mut byte) = (Vec::new(), [0]);
    while !request.ends_with(b"\r\n\r\n") {
        asking.read_exact(&mut byte)?;
        request.extend(byte);
    }
    let mut server = TcpStream::connect(("127.0.0.1", behind))?;
    server.write_all(&request)?;
    let mut answer = Vec::new();
    server.read_to_end(&mut answer)?;
    asking.write_all(&answer)?;
    asking.conn.send_close_notify();
    asking.flush()
}
