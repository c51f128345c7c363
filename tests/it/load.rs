//! `hydrant load`, as the real binary: against a server in this process, and against a tiny one that breaks its word.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hydrant::config::{Config, SlowPolicy};
use serde_json::Value;

use crate::support::{TestServer, config};

fn run(arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hydrant"));
    command.arg("load").args(arguments.split_whitespace()).output().unwrap()
}

/// Exit code and JSON document of a load on this server.
fn load(server: SocketAddr, arguments: &str) -> (i32, Value) {
    load_by("ws", server, arguments)
}

fn load_by(scheme: &str, server: SocketAddr, arguments: &str) -> (i32, Value) {
    let output = run(&format!("--url {scheme}://{server}/ws --json --quiet --seed 7 {arguments}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let report = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {said}"));
    assert_eq!(said, "", "quiet is quiet");
    (output.status.code().unwrap(), report)
}

/// A load on a server of this configuration that has to pass.
fn passes(config: Config, arguments: &str) -> Value {
    let server = TestServer::start(config);
    let (code, report) = load(server.address, arguments);
    assert_eq!(code, 0, "{arguments}: {report:#}");
    assert_eq!(report["passed"], true);
    for fault in ["lost_unexplained", "gaps", "repeats", "reordered"] {
        assert_eq!(report[fault], 0, "{arguments}: {report:#}");
    }
    report
}

#[test]
fn a_fanout_is_exact_at_every_pace() {
    for pace in ["--rate 500", "--in-flight 1", "--in-flight 32", "--flood", "--flood --publishers 3 --payload 70000"] {
        let big = Config { message_bytes_max: 100_000, ..config() };
        let report = passes(big, &format!("--connections 50 --messages 100 {pace}"));
        assert_eq!(report["published"], 100, "{pace}");
        assert_eq!((&report["expected"], &report["received"]), (&5000.into(), &5000.into()), "{pace}");
        assert_eq!(report["received_share"].to_string(), "1");
        assert_eq!(report["connections"]["open"], 50);
        assert!(report["latency_us"]["p50"].as_f64() > Some(0.0), "{report:#}");
        assert!(report["last_subscriber_us"]["max"].as_f64() >= report["latency_us"]["p50"].as_f64());
    }
}

#[cfg(feature = "tls")]
#[test]
fn by_tls_a_load_is_as_exact() {
    let keys = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/keys");
    let file = |name: &str| std::path::PathBuf::from(format!("{keys}/tls-{name}.pem"));
    let tls = hydrant::tls::Tls::load(&file("cert"), &file("key")).unwrap();
    let server = TestServer::start(Config { message_bytes_max: 100_000, tls: Some(tls.into()), ..config() });
    for arguments in [
        "--connections 50 --messages 100 --in-flight 32",
        "--connections 20 --messages 60 --rate 300 --rooms 2 --publish-by say",
        "--connections 10 --messages 20 --flood --publishers 3 --payload 70000",
        "churn --connections 20 --duration 1s --churn-rate 200 --rate 50",
        "chat --connections 20 --duration 1s --session 500ms --say-interval 100ms --tick 0 --ramp 200",
    ] {
        let (code, report) = load_by("wss", server.address, arguments);
        assert_eq!((code, &report["passed"]), (0, &true.into()), "{arguments}: {report:#}");
    }
}

#[test]
fn rooms_and_senders_are_exact() {
    let report = passes(config(), "--connections 31 --rooms 4 --messages 90 --in-flight 8");
    // Rooms 0 to 2 have 8 members, room 3 has 7; which room is first depends on the warm-up.
    let expected = report["expected"].as_u64().unwrap();
    assert!((690..=720).contains(&expected), "{expected}");
    let said = passes(config(), "--connections 20 --rooms 2 --messages 60 --rate 300 --publish-by say --publishers 3");
    assert_eq!(said["received"], 600);
}

#[test]
fn a_tick_is_not_ours_and_no_fault() {
    let ticking = Config { tick: Some(Duration::from_millis(20)), ..config() };
    let report = passes(ticking, "--connections 10 --messages 30 --rate 100");
    assert!(report["unexpected"].as_u64() > Some(0));
    assert_eq!(report["received"], report["expected"]);
}

#[test]
fn idle_waits_and_publishes_nothing() {
    let report = passes(config(), &format!("idle --connections 40 --duration 200ms --pid {}", std::process::id()));
    assert_eq!((&report["published"], &report["received_share"]), (&0.into(), &Value::Null));
    assert_eq!(report["connections"]["open"], 40);
    let server = &report["server"];
    assert!(server["rss_bytes_connected"].as_u64() > Some(0), "{report:#}");
    assert!(report["connect"]["server_cpu_ns_per_handshake"].as_f64() > Some(0.0));
}

#[test]
fn churn_loses_nothing() {
    let report = passes(config(), "churn --connections 40 --messages 200 --rate 200 --churn-rate 100");
    let churn = &report["churn"];
    assert!(churn["leaves"].as_u64() > Some(20), "{report:#}");
    assert_eq!(churn["joins"], churn["leaves"]);
    assert_eq!(report["connections"]["open"], 40);
}

#[test]
fn slow_clients_lose_what_the_policy_says_and_nobody_else_does() {
    let narrow = |slow| Config { slow, kernel_bytes_max: 4096, outbox_bytes_max: 70_000, ..config() };
    let arguments = "--connections 20 --slow-share 0.2 --slow-rate 0 --messages 60 --in-flight 4 --payload 8KiB";
    let report = passes(narrow(SlowPolicy::Disconnect), &format!("slow {arguments}"));
    let slow = &report["slow"];
    assert_eq!((&slow["connections"], &slow["open"]), (&4.into(), &0.into()), "{report:#}");
    assert_eq!(report["connections"]["open"], 16);
    for (policy, flag) in [(SlowPolicy::DropNewest, "drop-newest"), (SlowPolicy::DropOldest, "drop-oldest")] {
        let report = passes(narrow(policy), &format!("slow {arguments} --policy {flag}"));
        assert_eq!(report["slow"]["open"], 4, "{report:#}");
        assert!(report["slow"]["received"].as_u64() < Some(4 * 60), "{report:#}");
        assert_eq!(report["received"], 16 * 60);
    }
    // Nor does it pass for a server that keeps the last messages back.
    let server = TestServer::start(narrow(SlowPolicy::DropNewest));
    let (code, report) = load(server.address, &format!("slow {arguments} --policy disconnect"));
    assert_eq!(code, 1, "{report:#}");
    // The same as before, but nothing said that messages may be dropped.
    let server = TestServer::start(narrow(SlowPolicy::DropOldest));
    let (code, report) = load(server.address, &format!("slow {arguments} --policy disconnect"));
    assert_eq!(code, 1, "{report:#}");
    assert!(report["lost_unexplained"].as_u64() > Some(0), "{report:#}");
}

#[test]
fn the_chat_holds_its_checks() {
    let ticking = Config { tick: Some(Duration::from_millis(100)), ..config() };
    // Ticks are expected of no session: how many one has is a matter of time, and here the machine may be busy.
    let report =
        passes(ticking, "chat --connections 20 --duration 1s --session 500ms --say-interval 100ms --tick 0 --ramp 200");
    let chat = &report["chat"];
    assert_eq!(chat["sessions"], 40, "everybody comes back once: {report:#}");
    assert_eq!(report["connections"]["closed"]["1000"], 40);
    assert_eq!((&chat["checks_passed"], &chat["checks_failed"]), (&(3 * 40).into(), &0.into()));
    assert!(chat["ticks_received"].as_u64() > Some(0) && chat["said"].as_u64() > Some(0), "{report:#}");
}

#[test]
fn the_document_has_its_names() {
    let report = passes(config(), &format!("--connections 5 --messages 20 --pid {}", std::process::id()));
    let names = "scenario url command machine connections connect published refused expected received received_share gaps \
                 repeats reordered unexpected lost_unexplained elapsed_ns deliveries_per_second frames_per_read latency_us \
                 last_subscriber_us server client";
    for name in names.split_whitespace() {
        assert!(report.get(name).is_some(), "{name}");
    }
    let parts = [
        ("connections", "requested open failed closed"),
        ("connect", "per_second latency_us server_cpu_ns_per_handshake"),
        ("latency_us", "p50 p90 p99 p99_9 p99_99 max"),
        (
            "server",
            "cpu_ns_per_delivery cpu_percent waited_percent rss_bytes_before rss_bytes_connected rss_bytes_after",
        ),
        ("client", "cpu_percent waited_percent saturated deliveries_per_cpu_second"),
    ];
    for (part, names) in parts {
        for name in names.split_whitespace() {
            assert!(report[part].get(name).is_some(), "{part}.{name}");
        }
    }
    assert_eq!(report["scenario"], "fanout");
}

#[test]
fn a_person_gets_one_screen() {
    let server = TestServer::start(config());
    let output = run(&format!("--url ws://{}/ws --connections 5 --messages 20 --rate 200", server.address));
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("100 of 100 expected: exactly 1"), "{text}");
    assert!(text.lines().count() < 30, "{text}");
    assert!(!output.stderr.is_empty(), "progress, line by line");
}

#[test]
fn what_cannot_be_run_is_one_line() {
    let cases = [
        #[cfg(not(feature = "tls"))]
        (64, "--url wss://127.0.0.1:3000/ws", "TLS"),
        (64, "--url http://127.0.0.1:3000/ws", "wss"),
        (64, "--payload 3", "--payload"),
        (64, "--rate 0", "--rate"),
        (64, "--duration 0", "--duration"),
        (64, "--rate 1 --flood", "--flood"),
        (64, "--duration soon", "--duration"),
        (64, "dance", "dance"),
        (64, "--rooms 9 --connections 3", "--rooms"),
        (64, "--flood --publish-by say", "--publish-by"),
        (64, "slow --slow-share 2", "--slow-share"),
        // Port 9 is below what a test's server may get.
        (69, "--url ws://127.0.0.1:9/ws --quiet", "cannot connect to 127.0.0.1:9"),
        (69, "--pid 4194305 --quiet", "--pid"),
    ];
    for (code, arguments, part) in cases {
        let output = run(arguments);
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{arguments}: {said}");
        assert!(said.contains(part) && said.trim_end().lines().count() == 1, "{arguments}: {said}");
        assert!(output.stdout.is_empty());
    }
    let server = TestServer::start(config());
    let said = run(&format!("--url ws://{}/nowhere --quiet", server.address));
    assert_eq!(said.status.code(), Some(69));
    assert!(String::from_utf8(said.stderr).unwrap().contains("404"));
    let url = format!("--url ws://{}/ws --publish-url http://{}/nowhere --quiet", server.address, server.address);
    let said = run(&url);
    assert_eq!(said.status.code(), Some(69));
    assert!(String::from_utf8(said.stderr).unwrap().contains("404"), "the answer is quoted");
}

/// What the tiny server does with one message of one subscriber.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    Lose,
    Repeat,
    Swap,
    Mask,
    CutOff,
    TryAgainLater,
    Refuse,
    RefuseAll,
}

/// Everybody who is connected, and how many messages came.
#[derive(Default)]
struct Hall {
    subscribers: Vec<TcpStream>,
    messages: usize,
    refused: bool,
    kept: Option<Vec<u8>>,
}

/// The message, and the subscriber, that the fault happens to. The warm-up, of 25 messages, is over then.
const UNLUCKY: (usize, usize) = (30, 1);

/// A WebSocket server of its own making, which sends some messages in fragments.
fn tiny_server(fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let hall = Arc::new(Mutex::new(Hall::default()));
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let hall = hall.clone();
            thread::spawn(move || serve(stream, &hall, fault));
        }
    });
    address
}

/// One connection, to its end; an error is its end too.
fn serve(mut stream: TcpStream, hall: &Mutex<Hall>, fault: Fault) -> Option<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).ok()?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap();
        if head.starts_with("GET ") {
            let answer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";
            stream.write_all(answer.as_bytes()).ok()?;
            hall.lock().unwrap().subscribers.push(stream.try_clone().unwrap());
            let mut ping = [0; 6];
            stream.read_exact(&mut ping).ok()?;
            // Nothing is published before everybody has a pong, so nothing else is being written.
            stream.write_all(&[0x8a, 0]).ok()?;
            return Some(());
        }
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).ok()?;
        let status = if publish(&mut hall.lock().unwrap(), &body, fault) { "200 OK" } else { "503 Busy" };
        let answer = format!("HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n");
        stream.write_all(answer.as_bytes()).ok()?;
    }
}

fn publish(hall: &mut Hall, body: &[u8], fault: Fault) -> bool {
    let length = body.len() as u8;
    let whole = [&[0x81, length], body].concat();
    let (start, end) = body.split_at(5);
    let fragments = [&[0x01, 5], start, &[0x89, 0], &[0x80, length - 5], end].concat();
    let frame = if hall.messages.is_multiple_of(3) { fragments } else { whole };
    if fault == Fault::Refuse && hall.messages == UNLUCKY.0 && !hall.refused {
        hall.refused = true;
        return false;
    }
    if fault == Fault::RefuseAll && hall.messages >= UNLUCKY.0 {
        return false;
    }
    let mut kept = hall.kept.take();
    for (number, subscriber) in hall.subscribers.iter_mut().enumerate() {
        let is_unlucky = (hall.messages, number) == UNLUCKY;
        let mut wire = frame.clone();
        if number == UNLUCKY.1 {
            wire.extend(kept.take().into_iter().flatten());
        }
        match fault {
            _ if !is_unlucky => {}
            Fault::None | Fault::Refuse | Fault::RefuseAll => {}
            Fault::Lose => wire.clear(),
            Fault::Repeat => wire.extend(&frame),
            Fault::Swap => hall.kept = Some(std::mem::take(&mut wire)),
            Fault::Mask => wire = vec![0x81, 0x80, 0, 0, 0, 0],
            Fault::TryAgainLater => wire = vec![0x88, 2, 0x03, 0xf5],
            Fault::CutOff => drop(subscriber.shutdown(std::net::Shutdown::Both)),
        }
        // A client that has gone shows elsewhere.
        let _ = subscriber.write_all(&wire);
    }
    hall.messages += 1;
    true
}

fn load_tiny(fault: Fault) -> (i32, Value) {
    // Only a message that never comes is waited for in vain.
    let patience = if fault == Fault::Lose { "2s" } else { "30s" };
    load(tiny_server(fault), &format!("--connections 3 --messages 40 --in-flight 4 --patience {patience}"))
}

#[test]
fn any_server_will_do() {
    let (code, report) = load_tiny(Fault::None);
    assert_eq!((code, &report["received"]), (0, &120.into()), "{report:#}");
    let (code, report) = load_tiny(Fault::Refuse);
    assert_eq!((code, &report["received"], &report["refused"]), (0, &120.into(), &1.into()), "{report:#}");
}

#[test]
fn a_server_that_refuses_everything_ends_the_load() {
    let address = tiny_server(Fault::RefuseAll);
    let arguments = "--connections 3 --duration 300ms --rate 1000 --publishers 1 --patience 2s";
    let (code, report) = load(address, arguments);
    assert_eq!((code, &report["passed"]), (1, &false.into()), "{report:#}");
    assert!(report["unsent"].as_u64() > Some(0) && report["refused"].as_u64() > Some(0), "{report:#}");
}

#[test]
fn a_message_that_one_subscriber_lacks_is_found() {
    let (code, report) = load_tiny(Fault::Lose);
    assert_eq!(code, 1, "{report:#}");
    assert_eq!(
        (&report["lost_unexplained"], &report["gaps"], &report["passed"]),
        (&1.into(), &1.into(), &false.into())
    );
    assert!(report["received_share"].as_f64() < Some(1.0));
}

#[test]
fn a_message_that_comes_twice_or_too_late_is_found() {
    let (code, report) = load_tiny(Fault::Repeat);
    assert_eq!((code, &report["repeats"], &report["received"]), (1, &1.into(), &120.into()), "{report:#}");
    let (code, report) = load_tiny(Fault::Swap);
    assert_eq!((code, &report["reordered"], &report["received"]), (1, &1.into(), &120.into()), "{report:#}");
}

#[test]
fn a_connection_that_is_lost_is_a_fault() {
    let (code, report) = load_tiny(Fault::CutOff);
    assert_eq!((code, &report["connections"]["closed"]["1006"]), (1, &1.into()), "{report:#}");
    assert!(report["lost_unexplained"].as_u64() > Some(0));
    // An excuse is no excuse towards a client that reads.
    let (code, report) = load_tiny(Fault::TryAgainLater);
    assert_eq!((code, &report["connections"]["closed"]["1013"]), (1, &1.into()), "{report:#}");
    assert!(report["lost_unexplained"].as_u64() > Some(0));
    let (code, report) = load_tiny(Fault::Mask);
    assert_eq!((code, &report["connections"]["closed"]["1002"]), (1, &1.into()), "{report:#}");
    assert!(report["first_error"].as_str().unwrap().contains("masked"));
}
