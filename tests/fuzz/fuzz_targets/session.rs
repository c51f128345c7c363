//! `conn::Session`: a real TLS client, whose bytes arrive in pieces of any length, with foreign
//! bytes between them or flipped bits, at a server whose socket takes any number of bytes. Every
//! input terminates; and if no byte was changed, each side receives what the other sent, in order.

#![no_main]

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice, Read, Write};
use std::path::Path;
use std::sync::{Arc, LazyLock};

use arbitrary::Arbitrary;
use hydrant::conn::{Session, Socket};
use hydrant::tls::Tls;
use libfuzzer_sys::fuzz_target;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

#[derive(Arbitrary, Debug)]
enum Step {
    /// The client sends bytes.
    ClientSends(Vec<u8>),
    /// The client changes its keys and wants the server to.
    NewKeys,
    /// The client sends close_notify.
    Ends,
    /// This many of the client's bytes arrive at the server.
    Arrive(u16),
    /// Bytes arrive that the client did not send.
    Inject(Vec<u8>),
    /// One bit of the client's next bytes is flipped.
    Flip(u16),
    /// The server reads at most this many bytes.
    Receive(u8),
    /// The server sends this many bytes.
    Send(u16),
    /// The server's socket takes this many more bytes.
    Room(u16),
    /// The server sends close_notify.
    Close,
    /// Everything that was sent arrives, in both directions, until both sides are idle.
    Exchange,
}

/// The server's socket.
#[derive(Default)]
struct Wire {
    arrived: RefCell<Vec<u8>>,
    left: RefCell<Vec<u8>>,
    room: Cell<usize>,
}

impl Socket for Wire {
    fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.room.get());
        self.room.set(self.room.get() - taken);
        self.left.borrow_mut().extend_from_slice(&bytes[..taken]);
        if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }
    fn send_vectored(&self, _: &[IoSlice<'_>]) -> io::Result<usize> {
        unreachable!("a session sends one piece")
    }
    fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut arrived = self.arrived.borrow_mut();
        let taken = arrived.len().min(buffer.len());
        buffer[..taken].copy_from_slice(&arrived[..taken]);
        arrived.drain(..taken);
        if taken == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(taken) }
    }
    fn shutdown_write(&self) {}
}

struct Both {
    client: ClientConnection,
    server: Session,
    wire: Wire,
    /// The client's bytes that have not arrived yet.
    on_the_way: Vec<u8>,
    /// The bytes that each side has sent, and those of them that the other has received.
    client_sent: Vec<u8>,
    server_received: Vec<u8>,
    server_sent: Vec<u8>,
    client_received: Vec<u8>,
    tampered: bool,
    /// The client has sent close_notify.
    ended: bool,
    /// Number of the client's key updates.
    new_keys: usize,
    client_failed: bool,
    server_failed: bool,
}

static KEYS: LazyLock<(Tls, [Arc<ClientConfig>; 2])> = LazyLock::new(|| {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../it/keys");
    let tls = Tls::load(&folder.join("tls-cert.pem"), &folder.join("tls-key.pem")).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join("tls-cert.pem")).unwrap()).unwrap();
    let config = |version| {
        let builder = ClientConfig::builder_with_provider(rustls::crypto::ring::default_provider().into());
        let builder = builder.with_protocol_versions(&[version]).unwrap();
        Arc::new(builder.with_root_certificates(roots.clone()).with_no_client_auth())
    };
    let configs = [config(&TLS13), config(&TLS12)];
    (tls, configs)
});

impl Both {
    fn new(old: bool) -> Self {
        let (tls, configs) = &*KEYS;
        let client = ClientConnection::new(configs[usize::from(old)].clone(), "localhost".try_into().unwrap()).unwrap();
        let (server, wire) = (Session::new(tls).unwrap(), Wire::default());
        let (on_the_way, client_sent, server_received, server_sent, client_received) = Default::default();
        let (tampered, ended, new_keys, client_failed, server_failed) = Default::default();
        Self {
            client,
            server,
            wire,
            on_the_way,
            client_sent,
            server_received,
            server_sent,
            client_received,
            tampered,
            ended,
            new_keys,
            client_failed,
            server_failed,
        }
    }

    fn receive(&mut self, bytes: usize) -> bool {
        let mut buffer = vec![0; bytes];
        match self.server.receive(&self.wire, &mut buffer) {
            Ok(read) => {
                self.server_received.extend_from_slice(&buffer[..read]);
                read > 0
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.server.has_more(),
            Err(_) => {
                self.server_failed = true;
                false
            }
        }
    }

    /// Passes the server's output to the client, and collects the client's output.
    fn run_client(&mut self) {
        let left = self.wire.left.take();
        let mut left = &left[..];
        // The library's client has debug assertions that forbid invalid input after its
        // close_notify.
        while !left.is_empty() && !self.client_failed && !(self.ended && self.tampered) {
            // After the end nothing is read.
            let ended = matches!(self.client.read_tls(&mut left), Ok(0) | Err(_));
            self.client_failed |= ended || self.client.process_new_packets().is_err();
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = self.client.reader().read(&mut buffer) {
                self.client_received.extend_from_slice(&buffer[..read]);
            }
        }
        while self.client.wants_write() {
            self.client.write_tls(&mut self.on_the_way).unwrap();
        }
    }

    fn arrive(&mut self, bytes: usize) {
        let bytes = bytes.min(self.on_the_way.len());
        self.wire.arrived.borrow_mut().extend(self.on_the_way.drain(..bytes));
    }

    fn exchange(&mut self) {
        for _ in 0..1000 {
            self.run_client();
            // Read the bytes that were decrypted earlier.
            while self.receive(4096) {}
            let quiet = self.on_the_way.is_empty() && self.wire.arrived.borrow().is_empty();
            if quiet && self.wire.left.borrow().is_empty() && self.server.unsent_bytes() == 0 {
                break;
            }
            self.arrive(usize::MAX);
            self.wire.room.set(1 << 20);
            // A failure shows in the next receive.
            let _ = self.server.flush(&self.wire);
            while self.receive(4096) {}
            if self.server_failed {
                break;
            }
        }
        self.run_client();
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::ClientSends(_) if self.ended => {}
            Step::ClientSends(bytes) => {
                let taken = self.client.writer().write(&bytes).unwrap_or(0);
                self.client_sent.extend_from_slice(&bytes[..taken]);
                self.run_client();
            }
            // The library rejects more key updates in a row.
            Step::NewKeys if self.new_keys >= 30 => {}
            Step::NewKeys => {
                self.new_keys += 1;
                // It fails before the handshake is complete: then there are no keys to update.
                let _ = self.client.refresh_traffic_keys();
            }
            Step::Ends => {
                // During the handshake this is a failure, not an end.
                self.tampered |= self.client.is_handshaking();
                self.ended = true;
                self.client.send_close_notify();
            }
            Step::Arrive(bytes) => {
                self.run_client();
                self.arrive(bytes.into());
            }
            Step::Inject(bytes) => {
                self.tampered |= !bytes.is_empty();
                self.wire.arrived.borrow_mut().extend(bytes);
            }
            Step::Flip(bit) => {
                self.run_client();
                if let Some(byte) = self.on_the_way.get_mut(usize::from(bit / 8)) {
                    *byte ^= 1 << (bit % 8);
                    self.tampered = true;
                }
            }
            Step::Receive(bytes) => drop(self.receive(bytes.into())),
            Step::Send(bytes) => {
                let bytes: Vec<u8> =
                    (0..bytes).map(|number| (number as usize + self.server_sent.len()) as u8).collect();
                if let Ok(taken) = self.server.send(&self.wire, &bytes) {
                    assert!(taken <= bytes.len());
                    self.server_sent.extend_from_slice(&bytes[..taken]);
                }
            }
            Step::Room(bytes) => self.wire.room.set(self.wire.room.get() + usize::from(bytes)),
            Step::Close => self.server.close(&self.wire),
            Step::Exchange => self.exchange(),
        }
        assert!(self.server.unsent_bytes() < 80 * 1024, "what waits is bounded");
    }
}

fuzz_target!(|input: (bool, bool, Vec<Step>)| {
    let (old, begun, steps) = input;
    let mut both = Both::new(old);
    if begun {
        both.exchange();
        assert!(!both.client.is_handshaking() && !both.server_failed);
    }
    let closes = steps.iter().any(|step| matches!(step, Step::Close));
    for step in steps.into_iter().take(64) {
        both.step(step);
    }
    both.exchange();
    if !both.tampered {
        assert!(
            both.client_sent.starts_with(&both.server_received) && both.server_sent.starts_with(&both.client_received)
        );
        assert!(!both.server_failed || closes, "a valid client must not fail");
        if !closes && !both.server_failed {
            assert_eq!(
                (both.server_received.len(), both.client_received.len()),
                (both.client_sent.len(), both.server_sent.len())
            );
        }
    }
});
