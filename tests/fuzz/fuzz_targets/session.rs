//! `conn::Session`: a real client by TLS, whose bytes come in any pieces, with others between them or changed on the way, to a
//! server whose socket takes what it likes. Whatever comes, it ends; and as long as nobody has meddled, each side gets what the
//! other has sent, in order.

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
    /// The client writes.
    Says(Vec<u8>),
    /// The client changes its keys and wants the server to.
    NewKeys,
    /// The client says that nothing more comes.
    Ends,
    /// So many bytes of the client's reach the server.
    Arrive(u16),
    /// Bytes that are not the client's arrive first.
    Meddle(Vec<u8>),
    /// One bit of the next to arrive is another.
    Flip(u16),
    /// The server reads into so many bytes.
    Receive(u8),
    /// The server sends so many bytes.
    Send(u16),
    /// The server's socket takes so many bytes more.
    Room(u16),
    /// The server says that nothing more comes.
    Close,
    /// Everything arrives, as often as there is something, both ways.
    Settle,
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
    /// What the client has sent and has not arrived.
    on_the_way: Vec<u8>,
    /// What each has said, and what the other has got of it.
    said: Vec<u8>,
    heard: Vec<u8>,
    sent: Vec<u8>,
    got: Vec<u8>,
    meddled: bool,
    /// The client says nothing more.
    ended: bool,
    /// How often the client has changed its keys.
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
        let (on_the_way, said, heard, sent, got) = Default::default();
        let (meddled, ended, new_keys, client_failed, server_failed) = Default::default();
        Self {
            client,
            server,
            wire,
            on_the_way,
            said,
            heard,
            sent,
            got,
            meddled,
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
                self.heard.extend_from_slice(&buffer[..read]);
                read > 0
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.server.has_more(),
            Err(_) => {
                self.server_failed = true;
                false
            }
        }
    }

    /// What has left the server's socket reaches the client, and what the client has to say is on its way.
    fn run_client(&mut self) {
        let left = self.wire.left.take();
        let mut left = &left[..];
        // A client of this library's may not be told nonsense once it has ended: its debug assertions do not allow for that.
        while !left.is_empty() && !self.client_failed && !(self.ended && self.meddled) {
            // Behind the end, nothing is read any more.
            let ended = matches!(self.client.read_tls(&mut left), Ok(0) | Err(_));
            self.client_failed |= ended || self.client.process_new_packets().is_err();
            let mut buffer = [0; 4096];
            while let Ok(read @ 1..) = self.client.reader().read(&mut buffer) {
                self.got.extend_from_slice(&buffer[..read]);
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

    fn settle(&mut self) {
        for _ in 0..1000 {
            self.run_client();
            // What was decrypted and not asked for.
            while self.receive(4096) {}
            let quiet = self.on_the_way.is_empty() && self.wire.arrived.borrow().is_empty();
            if quiet && self.wire.left.borrow().is_empty() && self.server.unsent_bytes() == 0 {
                break;
            }
            self.arrive(usize::MAX);
            self.wire.room.set(1 << 20);
            // A failure shows in what is received.
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
            Step::Says(_) if self.ended => {}
            Step::Says(bytes) => {
                let taken = self.client.writer().write(&bytes).unwrap_or(0);
                self.said.extend_from_slice(&bytes[..taken]);
                self.run_client();
            }
            // More in a row than the library takes from an honest client are none of one.
            Step::NewKeys if self.new_keys >= 30 => {}
            Step::NewKeys => {
                self.new_keys += 1;
                // Before the handshake is through, there are none to change.
                let _ = self.client.refresh_traffic_keys();
            }
            Step::Ends => {
                // In the middle of a handshake it is no end, but a failure.
                self.meddled |= self.client.is_handshaking();
                self.ended = true;
                self.client.send_close_notify();
            }
            Step::Arrive(bytes) => {
                self.run_client();
                self.arrive(bytes.into());
            }
            Step::Meddle(bytes) => {
                self.meddled |= !bytes.is_empty();
                self.wire.arrived.borrow_mut().extend(bytes);
            }
            Step::Flip(bit) => {
                self.run_client();
                if let Some(byte) = self.on_the_way.get_mut(usize::from(bit / 8)) {
                    *byte ^= 1 << (bit % 8);
                    self.meddled = true;
                }
            }
            Step::Receive(bytes) => drop(self.receive(bytes.into())),
            Step::Send(bytes) => {
                let bytes: Vec<u8> = (0..bytes).map(|number| (number as usize + self.sent.len()) as u8).collect();
                if let Ok(taken) = self.server.send(&self.wire, &bytes) {
                    assert!(taken <= bytes.len());
                    self.sent.extend_from_slice(&bytes[..taken]);
                }
            }
            Step::Room(bytes) => self.wire.room.set(self.wire.room.get() + usize::from(bytes)),
            Step::Close => self.server.close(&self.wire),
            Step::Settle => self.settle(),
        }
        assert!(self.server.unsent_bytes() < 80 * 1024, "what waits is bounded");
    }
}

fuzz_target!(|input: (bool, bool, Vec<Step>)| {
    let (old, begun, steps) = input;
    let mut both = Both::new(old);
    if begun {
        both.settle();
        assert!(!both.client.is_handshaking() && !both.server_failed);
    }
    let closes = steps.iter().any(|step| matches!(step, Step::Close));
    for step in steps.into_iter().take(64) {
        both.step(step);
    }
    both.settle();
    if !both.meddled {
        assert!(both.said.starts_with(&both.heard) && both.sent.starts_with(&both.got));
        assert!(!both.server_failed || closes, "an honest client is understood");
        if !closes && !both.server_failed {
            assert_eq!((both.heard.len(), both.got.len()), (both.said.len(), both.sent.len()));
        }
    }
});
