//! The binary's life: how it starts, drains, and ends.

use std::io::Read;
use std::net::TcpStream;
use std::os::unix::process::ExitStatusExt;
use std::process::Command;

use crate::support::{Binary, Client, PATIENCE, Received, TestServer, begin, config, publish, request, until};
use hydrant::settings::Config;

const GOING_AWAY: Received = Received::Close(Some(1001), String::new());

fn is_going_away(received: Received) -> bool {
    matches!((received, GOING_AWAY), (Received::Close(code, _), Received::Close(expected, _)) if code == expected)
}

#[test]
fn sigterm_and_sigint_close_every_client_with_1001() {
    for signal in [libc::SIGTERM, libc::SIGINT] {
        for fanout in ["direct", "wake", "ring", "mailbox"] {
            let mut binary = Binary::start(&["--fanout", fanout]);
            let mut clients: Vec<_> = (0..20).map(|_| Client::connect(binary.address, "/ws")).collect();
            assert_eq!(publish(binary.address, "all", b"the last").matched, 20);
            binary.signal(signal);
            for client in &mut clients {
                assert_eq!(client.receive_text(), "the last");
                assert!(is_going_away(client.receive()));
                client.send(0x88, &1001_u16.to_be_bytes());
                assert_eq!(client.receive(), Received::End);
            }
            assert_eq!(binary.wait().code(), Some(0), "{:?}", binary.seen);
        }
    }
}

#[test]
fn a_drain_flushes_backlogs() {
    for fanout in crate::support::STRATEGIES {
        let narrow = Config { fanout, kernel_bytes_max: 4096, ..config() };
        let mut server = TestServer::start(narrow);
        let mut slow = Client::connect_narrow(server.address, "/ws/room");
        let messages: Vec<_> = (0..100).map(|number| format!("{number}{}", "x".repeat(2000))).collect();
        for message in &messages {
            server.publish("room", message.as_bytes());
        }
        assert!(server.stats().pending > 0, "something waits");
        server.stop();
        for message in &messages {
            assert_eq!(slow.receive_text(), *message, "{fanout:?}");
        }
        assert!(is_going_away(slow.receive()));
        drop(slow);
        let report = server.finish();
        assert_eq!((report.totals.delivered, report.aborted), (100, 0));
    }
}

#[test]
fn a_drain_keeps_its_rate_and_answers_new_clients_with_retry_after() {
    let mut binary = Binary::start(&["--drain-rate", "1", "--drain-timeout", "1h", "--shards", "1"]);
    let clients: Vec<_> = (0..20).map(|_| Client::connect(binary.address, "/ws")).collect();
    binary.signal(libc::SIGTERM);
    binary.wait_for_line("draining");
    // The drain would close the last of twenty after some twenty seconds.
    let newcomer = request(binary.address, "GET", "/ws", &crate::support::HANDSHAKE, b"");
    assert_eq!((newcomer.status, newcomer.header("retry-after")), (503, Some("1")));
    drop(clients);
    assert_eq!(binary.wait().code(), Some(0));
    let report = binary.seen.iter().find(|line| line.contains("drained")).unwrap();
    assert!(report.contains("aborted=0") && report.contains("rejected=1"), "{report}");
}

#[test]
fn a_drain_aborts_clients_that_do_not_read() {
    let mut binary = Binary::start(&["--drain-timeout", "300ms", "--kernel-bytes", "4KiB"]);
    let stalled = Client::connect_narrow(binary.address, "/ws");
    for _ in 0..10 {
        publish(binary.address, "all", &[b'x'; 50_000]);
    }
    binary.signal(libc::SIGTERM);
    assert_eq!(binary.wait().code(), Some(0));
    assert!(binary.seen.iter().any(|line| line.contains("drained aborted=1")), "{:?}", binary.seen);
    drop(stalled);
}

#[test]
fn a_second_signal_ends_at_once() {
    let mut binary = Binary::start(&["--drain-timeout", "1h"]);
    let stalled = Client::connect(binary.address, "/ws");
    binary.signal(libc::SIGTERM);
    binary.wait_for_line("draining");
    // Within a second it would be the first one again.
    let status = until(
        || {
            binary.signal(libc::SIGTERM);
            binary.try_wait()
        },
        || "it still runs".to_owned(),
    );
    assert_eq!(status.code(), Some(128 + libc::SIGTERM));
    drop(stalled);
}

#[test]
fn two_signals_at_once_are_one() {
    let mut binary = Binary::start(&["--drain-timeout", "1h"]);
    let client = Client::connect(binary.address, "/ws");
    binary.signal(libc::SIGTERM);
    binary.signal(libc::SIGINT);
    binary.wait_for_line("draining");
    drop(client);
    assert_eq!(binary.wait().code(), Some(0));
}

#[test]
fn an_idle_http_connection_does_not_hold_up_a_drain() {
    let mut binary = Binary::start(&["--drain-timeout", "1h"]);
    let mut idle = TcpStream::connect(binary.address).unwrap();
    idle.set_read_timeout(Some(PATIENCE)).unwrap();
    // Before this answer the connection may still be on its way to a shard.
    std::io::Write::write_all(&mut idle, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    assert_eq!(crate::support::read_answer(&mut idle).status, 200);
    binary.signal(libc::SIGTERM);
    assert_eq!(idle.read(&mut [0]).unwrap(), 0);
    assert_eq!(binary.wait().code(), Some(0));
}

#[test]
fn a_drain_answers_the_next_request_of_a_kept_connection_and_then_closes_it() {
    use std::io::Write;

    let mut binary = Binary::start(&["--drain-timeout", "1h"]);
    // One that is answered without hyper, and one of hyper's.
    let publication = "POST /publish HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\nhi";
    let other = "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut kept: Vec<_> = [(publication, 503), (other, 200)]
        .into_iter()
        .flat_map(|(request, status)| {
            // Of the next request, nothing arrives before the drain, or the beginning.
            [0, 20].map(|before| {
                let mut stream = begin(binary.address, request.as_bytes());
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                let answer = crate::support::read_answer(&mut stream);
                assert_eq!((answer.status / 100, answer.header("connection")), (2, None));
                stream.write_all(&request.as_bytes()[..before]).unwrap();
                (stream, &request[before..], status)
            })
        })
        .collect();
    binary.signal(libc::SIGTERM);
    binary.wait_for_line("draining");
    for (stream, rest, _) in &mut kept {
        stream.write_all(rest.as_bytes()).unwrap();
    }
    for (stream, rest, status) in &mut kept {
        let answer = crate::support::read_answer(stream);
        assert_eq!((answer.status, answer.header("connection")), (*status, Some("close")), "{rest}");
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    assert_eq!(binary.wait().code(), Some(0));
}

#[test]
fn a_request_for_statistics_does_not_hold_up_a_drain() {
    use std::io::Write;

    let mut binary = Binary::start(&["--drain-timeout", "1h", "--shards", "2"]);
    // Each shard has a request whose head is not yet complete when the drain begins.
    let mut asking: Vec<_> = (0..4)
        .map(|number| {
            let path = if number < 2 { "/debug/mem" } else { "/metrics" };
            begin(binary.address, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n").as_bytes())
        })
        .collect();
    request(binary.address, "GET", "/healthz", &[], b"");
    binary.signal(libc::SIGTERM);
    binary.wait_for_line("draining");
    for stream in &mut asking {
        // It fails if the request has been answered as it is, after a second.
        let _ = stream.write_all(b"\r\n");
    }
    // Most of them come when the shards have ended.
    for stream in &mut asking {
        let answer = crate::support::read_answer(stream);
        assert!([200, 503].contains(&answer.status), "{answer:?}");
        assert_eq!(answer.header("connection"), Some("close"), "{answer:?}");
    }
    assert_eq!(binary.wait().code(), Some(0));
}

#[test]
fn a_second_server_on_the_port_is_rejected() {
    let first = Binary::start(&[]);
    let address = first.address.to_string();
    let second = Command::new(env!("CARGO_BIN_EXE_hydrant")).args(["--listen", &address]).output().unwrap();
    assert_eq!(second.status.code(), Some(69));
    let said = String::from_utf8(second.stderr).unwrap();
    assert!(said.contains(&format!("cannot listen on {address}")) && said.contains("another server"), "{said}");
}

#[cfg(feature = "tls")]
const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/keys");

#[test]
fn a_bad_value_exits_64_with_a_line_that_names_it() {
    for (flags, named) in [
        (&["--listen", "nowhere"][..], "--listen"),
        (&["--shards", "many"], "--shards"),
        (&["--fanout", "magic"], "--fanout"),
        (&["--tick", "soon"], "--tick"),
        (&["--outbox-bytes", "1KiB"], "--outbox-bytes"),
        (&["--slow", "wait"], "--slow"),
        (&["--heap-sample", "3"], "--heap-sample"),
        (&["--heap-sample", "16EiB"], "--heap-sample"),
        (&["--allow-origin", "*://a.com"], "--allow-origin"),
        (&["--jwt-secret", ""], "--jwt-secret"),
        (&["--jwt-key", "/dev/null"], "--jwt-key"),
        (&["--jwt-key", "/nowhere"], "--jwt-key"),
        #[cfg(feature = "tls")]
        (&["--jwt-key", &format!("{KEYS}/rsa-private.pem")], "public key"),
        #[cfg(feature = "tls")]
        (&["--tls-cert", "/dev/null", "--tls-key", "/dev/null"], "--tls-cert"),
        #[cfg(feature = "tls")]
        (&["--tls-cert", "/dev/null"], "--tls-key"),
        #[cfg(feature = "tls")]
        (&["--tls-listen", "127.0.0.1:0"], "--tls-cert"),
        #[cfg(feature = "tls")]
        (&["--tls-cert", &format!("{KEYS}/tls-cert.pem"), "--tls-key", &format!("{KEYS}/other-key.pem")], "other-key"),
        (&["--ping-interval", "1ms"], "--ping-interval"),
        (&["--token", ""], "--token"),
        (&["--nonsense"], "--nonsense"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_hydrant")).args(flags).output().unwrap();
        assert_eq!(output.status.code(), Some(64), "{flags:?}");
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.starts_with("error: ") && said.contains(named), "{flags:?}: {said}");
        assert_eq!(said.lines().count(), 1, "{flags:?}: {said}");
    }
    let by_environment = Command::new(env!("CARGO_BIN_EXE_hydrant")).env("HYDRANT_TICK", "soon").output().unwrap();
    assert_eq!(by_environment.status.code(), Some(64));
}

#[test]
fn help_names_every_flag_and_is_no_error() {
    let output = Command::new(env!("CARGO_BIN_EXE_hydrant")).arg("--help").output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8(output.stdout).unwrap();
    for flag in ["--listen", "--shards", "--fanout", "--tick", "--outbox-bytes", "--slow", "--message-bytes", "--token"]
    {
        assert!(help.contains(flag) && help.contains("HYDRANT_"), "{flag}");
    }
    let help = help.split_whitespace().collect::<Vec<_>>().join(" ");
    for sentence in [
        "at `exp` plus `--token-leeway` the server closes the connection with 1008",
        "Plain `/ws` subscribes to the channel `all`",
        "without `sub` the client chooses its name",
        "A SAY that names another channel gets an ERROR event",
    ] {
        assert!(help.contains(sentence), "{sentence}");
    }
}

#[test]
fn without_open_files_idle_connections_give_way() {
    let mut binary = Binary::start_with_files(64, &["--shards", "1"]);
    // More than the limit of open files. Some say nothing, and some send half a request.
    let half = b"GET /healthz HTTP/1.1\r\nHos";
    let waiting: Vec<_> =
        (0..80).map(|number| begin(binary.address, if number % 2 == 0 { half } else { b"" })).collect();
    assert_eq!(request(binary.address, "GET", "/healthz", &[], b"").status, 200);
    drop(waiting);
    binary.signal(libc::SIGTERM);
    assert_eq!(binary.wait().code(), Some(0));
    assert!(!binary.seen.iter().any(|line| line.contains("cannot accept")), "{:?}", binary.seen);
}

/// Builds with debug assertions have a route that makes a shard panic.
#[cfg(debug_assertions)]
#[test]
fn a_panic_in_a_shard_ends_the_process() {
    let mut binary = Binary::start(&[]);
    assert_eq!(request(binary.address, "POST", "/debug/panic", &[], b"").status, 202);
    let status = binary.wait();
    assert_eq!((status.code(), status.signal()), (None, Some(libc::SIGABRT)));
    assert!(binary.seen.iter().any(|line| line.contains("was told to panic")), "{:?}", binary.seen);
}

#[test]
fn an_unread_log_holds_up_no_client() {
    use std::io::{BufRead, BufReader};

    let mut command = Command::new(env!("CARGO_BIN_EXE_hydrant"));
    command.args(["--listen", "127.0.0.1:0", "--tick", "0", "--log", "debug"]).stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let address = loop {
        let mut line = String::new();
        log.read_line(&mut line).unwrap();
        if let Some((_, rest)) = line.split_once("listening on ") {
            break rest.split(' ').next().unwrap().parse().unwrap();
        }
    };
    // Each connection logs more than 50 bytes, and a pipe holds 64 KiB.
    let fill_the_log = || (0..1500).for_each(|_| drop(Client::connect(address, "/ws")));
    fill_the_log();
    assert_eq!(request(address, "GET", "/healthz", &[], b"").status, 200);
    // From now on every write to the log fails.
    drop(log);
    fill_the_log();
    assert_eq!(request(address, "GET", "/healthz", &[], b"").status, 200);
    child.kill().unwrap();
    child.wait().unwrap();
}
