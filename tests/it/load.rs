//! `hydrant load`, as the real binary: against a server in this process, against a tiny server that
//! has faults, and against what is no server for it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use hydrant::settings::{Config, SlowPolicy};
use serde_json::Value;

use crate::support::{TestServer, config};

fn command(arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hydrant"));
    command.arg("load").args(arguments.split_whitespace());
    command
}

fn run(arguments: &str) -> Output {
    command(arguments).output().unwrap()
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
    // Rooms 0 to 2 have 8 clients, room 3 has 7; which room is first depends on the warm-up.
    let expected = report["expected"].as_u64().unwrap();
    assert!((690..=720).contains(&expected), "{expected}");
    let said = passes(config(), "--connections 20 --rooms 2 --messages 60 --rate 300 --publish-by say --publishers 3");
    assert_eq!(said["received"], 600);
}

#[test]
fn a_tick_is_unexpected_and_no_fault() {
    let ticking = Config { tick: Some(Duration::from_millis(20)), ..config() };
    let report = passes(ticking, "--connections 10 --messages 30 --rate 100");
    assert!(report["unexpected"].as_u64() > Some(0));
    assert!(report["first_unexpected"].as_str().unwrap().starts_with("a message of the server itself"));
    assert_eq!(report["received"], report["expected"]);
}

#[test]
fn idle_waits_and_publishes_nothing() {
    let pid = std::process::id();
    let report = passes(config(), &format!("idle --connections 40 --duration 200ms --pid {pid},{pid}"));
    assert_eq!((&report["memory"], &report["server"]["rss_bytes_per_connection"]), (&Value::Null, &Value::Null));
    assert_eq!((&report["published"], &report["received_share"]), (&0.into(), &Value::Null));
    assert_eq!(report["connections"]["open"], 40);
    let server = &report["server"];
    assert!(server["rss_bytes_connected"].as_u64() > Some(0), "{report:#}");
    let processes = server["processes"].as_array().unwrap();
    let rss_bytes: u64 = processes.iter().map(|process| process["rss_bytes_after"].as_u64().unwrap()).sum();
    assert_eq!((processes.len(), &server["rss_bytes_after"]), (2, &rss_bytes.into()));
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
    // A server that never sends the last messages does not pass either.
    let server = TestServer::start(narrow(SlowPolicy::DropNewest));
    let (code, report) = load(server.address, &format!("slow {arguments} --policy disconnect"));
    assert_eq!(code, 1, "{report:#}");
    // The same as before, but without a policy that drops messages.
    let server = TestServer::start(narrow(SlowPolicy::DropOldest));
    let (code, report) = load(server.address, &format!("slow {arguments} --policy disconnect"));
    assert_eq!(code, 1, "{report:#}");
    assert!(report["lost_unexplained"].as_u64() > Some(0), "{report:#}");
}

#[test]
fn the_chat_holds_its_checks() {
    let ticking = Config { tick: Some(Duration::from_millis(100)), ..config() };
    // No session expects ticks: their number depends on the time, and the machine may be busy.
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
    let names = "scenario url command version optimised date machine connections connect published rejected expected \
                 received received_share gaps repeats reordered damaged unexpected lost_unexplained elapsed_ns deliveries_per_second frames_per_read latency_us \
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
            "cpu_ns_per_delivery cpu_percent waited_percent rss_bytes_before rss_bytes_connected rss_bytes_after \
             rss_bytes_per_connection processes",
        ),
        ("client", "cpu_percent waited_percent saturated deliveries_per_cpu_second"),
    ];
    for (part, names) in parts {
        for name in names.split_whitespace() {
            assert!(report[part].get(name).is_some(), "{part}.{name}");
        }
    }
    assert_eq!((&report["scenario"], &report["version"]), (&"fanout".into(), &env!("CARGO_PKG_VERSION").into()));
    assert_eq!(report["date"].as_str().unwrap().len(), "2026-11-28T19:20:00Z".len());
    assert!(report.get("ended_early").is_none());
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

#[test]
fn an_idle_load_asks_the_server_for_its_memory() {
    let pid = std::process::id();
    let report = passes(config(), &format!("idle --connections 1000 --duration 100ms --pid {pid}"));
    assert!(report["server"]["rss_bytes_per_connection"].is_i64(), "{report:#}");
    let figures =
        |report: &Value| ["heap", "rss"].map(|kind| report["memory"][format!("{kind}_bytes_per_connection")].clone());
    // mimalloc does not tell what is in use.
    assert_eq!(figures(&report).map(|bytes| bytes.is_i64()), [cfg!(feature = "jemalloc"), true], "{report:#}");
    let few = passes(config(), "idle --connections 5 --duration 100ms");
    assert!(few["memory"].is_object(), "{few:#}");
    assert_eq!(figures(&few), [Value::Null, Value::Null], "the figures of few connections are noise");
}

#[test]
fn no_token_is_printed() {
    let server = TestServer::start(config());
    let address = server.address;
    let url = format!("--url ws://{address}/ws --connections 2 --messages 3");
    let flag = run(&format!("{url} --json --token s3cret-4711"));
    let variable = command(&format!("{url} --rate 200")).env("HYDRANT_TOKEN", "s3cret-4711").output().unwrap();
    let failed = run(&format!("--url ws://{address}/nowhere?token=s3cret-4711 --quiet"));
    let wrong = run("--url ws://me:s3cret-4711@127.0.0.1/ws");
    for (output, code) in [(flag, 0), (variable, 0), (failed, 69), (wrong, 64)] {
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8(said).unwrap();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(!said.is_empty() && !said.contains("s3cret"), "{said}");
    }
}

#[test]
fn an_interrupted_load_has_a_partial_report() {
    let server = TestServer::start(config());
    let arguments = format!("--url ws://{}/ws --json --connections 10 --rate 100 --duration 1h", server.address);
    let mut child = command(&arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let progress = BufReader::new(child.stderr.take().unwrap());
    // The first lines are of the warm-up, which has fewer messages.
    let is_measuring = |line: &str| {
        let number = line.split_once('%').and_then(|(_, text)| text.trim().split(' ').next()?.parse::<u64>().ok());
        line.contains("published") && number > Some(50)
    };
    let mut lines = progress.lines().map_while(Result::ok);
    assert!(lines.any(|line| is_measuring(&line)));
    let pid = libc::pid_t::try_from(child.id()).unwrap();
    // SAFETY: a plain system call; the child has not been waited for, so its pid is its own.
    assert_eq!(unsafe { libc::kill(pid, libc::SIGINT) }, 0);
    let output = child.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), &report["passed"]), (Some(1), &false.into()), "{report:#}");
    assert_eq!(report["ended_early"], "interrupted by a signal");
    assert!(report["published"].as_u64() > Some(50), "{report:#}");
    assert_eq!(report["received"], report["expected"], "what is in flight still arrives");
}

/// A server that sends every byte back, from the first one or behind a handshake.
fn echo_of_bytes(behind_a_handshake: bool) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let echo = move |mut stream: TcpStream| {
        if behind_a_handshake {
            read_head(&mut stream)?;
            stream.write_all(ANSWER.as_bytes()).ok()?;
        }
        std::io::copy(&mut stream.try_clone().ok()?, &mut stream).ok()
    };
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || echo(stream));
        }
    });
    address
}

#[test]
fn echo_servers_are_named_as_such() {
    let server = TestServer::start(config());
    let echo = format!("--url ws://{}/echo --publish-by say", server.address);
    let chat = "chat --connections 2 --duration 100ms --session 50ms --say-interval 10ms --tick 0";
    for arguments in
        [format!("--url ws://{}/ws", echo_of_bytes(false)), format!("--url ws://{}/ws", echo_of_bytes(true)), echo]
    {
        let said = run(&format!("{arguments} --connections 2 --messages 3 --quiet"));
        let text = String::from_utf8(said.stderr).unwrap();
        assert_eq!(said.status.code(), Some(69), "{arguments}: {text}");
        assert!(text.contains("echo server") && text.lines().count() == 1, "{arguments}: {text}");
    }
    let said = run(&format!("--url ws://{}/echo --json --quiet {chat}", server.address));
    let report: Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(said.status.code(), Some(1), "{report:#}");
    assert!(report["first_unexpected"].as_str().unwrap().contains("echo server"), "{report:#}");
}

/// The fault of the tiny server: its effect on one message of one subscriber.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    Lose,
    Repeat,
    Swap,
    Mask,
    Change,
    Shorten,
    CutOff,
    Die,
    TryAgainLater,
    Reject,
    RejectAll,
}

/// The subscribers, and the number of messages so far.
#[derive(Default)]
struct Tiny {
    subscribers: Vec<TcpStream>,
    messages: usize,
    rejected: bool,
    kept: Option<Vec<u8>>,
}

const ANSWER: &str = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                      Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// The message and the subscriber of the fault. The warm-up, of 25 messages, is over then.
const UNLUCKY: (usize, usize) = (30, 1);

/// A minimal WebSocket server, which sends some messages in fragments.
fn tiny_server(fault: Fault) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listen(listener, Arc::default(), fault, None)
}

/// The address of a server that publishes at another port, which its 404 names.
fn tiny_server_with_two_ports() -> SocketAddr {
    let tiny = Arc::default();
    let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
    let admin = listen(bind(), Arc::clone(&tiny), Fault::None, None);
    listen(bind(), tiny, Fault::None, Some(admin))
}

fn listen(listener: TcpListener, tiny: Arc<Mutex<Tiny>>, fault: Fault, admin: Option<SocketAddr>) -> SocketAddr {
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let tiny = tiny.clone();
            thread::spawn(move || serve(stream, &tiny, fault, admin));
        }
    });
    address
}

/// The head of a request; nothing at the end of the stream.
fn read_head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    Some(String::from_utf8(head).unwrap())
}

/// Serves one connection to its end; an error is its end too.
fn serve(mut stream: TcpStream, tiny: &Mutex<Tiny>, fault: Fault, admin: Option<SocketAddr>) -> Option<()> {
    loop {
        let head = read_head(&mut stream)?;
        if head.starts_with("GET ") {
            stream.write_all(ANSWER.as_bytes()).ok()?;
            tiny.lock().unwrap().subscribers.push(stream.try_clone().unwrap());
            let mut ping = [0; 6];
            stream.read_exact(&mut ping).ok()?;
            // Nothing is published before every client has a pong, so nothing else is being
            // written.
            stream.write_all(&[0x8a, 0]).ok()?;
            return Some(());
        }
        let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).unwrap();
        let mut body = vec![0; length.parse().unwrap()];
        stream.read_exact(&mut body).ok()?;
        let status = match admin {
            Some(admin) => format!("404 Not Found\r\nLink: <http://{admin}/publish>; rel=\"alternate\""),
            None if fault == Fault::Die && tiny.lock().unwrap().messages == UNLUCKY.0 => {
                tiny.lock().unwrap().subscribers.clear();
                return None;
            }
            None if publish(&mut tiny.lock().unwrap(), &body, fault) => "200 OK".to_owned(),
            None => "503 Busy".to_owned(),
        };
        let answer = format!("HTTP/1.1 {status}\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n");
        stream.write_all(answer.as_bytes()).ok()?;
    }
}

fn publish(tiny: &mut Tiny, body: &[u8], fault: Fault) -> bool {
    let length = body.len() as u8;
    let whole = [&[0x81, length], body].concat();
    let (start, end) = body.split_at(5);
    let fragments = [&[0x01, 5], start, &[0x89, 0], &[0x80, length - 5], end].concat();
    let frame = if tiny.messages.is_multiple_of(3) { fragments } else { whole };
    if fault == Fault::Reject && tiny.messages == UNLUCKY.0 && !tiny.rejected {
        tiny.rejected = true;
        return false;
    }
    if fault == Fault::RejectAll && tiny.messages >= UNLUCKY.0 {
        return false;
    }
    let mut kept = tiny.kept.take();
    for (number, subscriber) in tiny.subscribers.iter_mut().enumerate() {
        let is_unlucky = (tiny.messages, number) == UNLUCKY;
        let mut wire = frame.clone();
        if number == UNLUCKY.1 {
            wire.extend(kept.take().into_iter().flatten());
        }
        match fault {
            _ if !is_unlucky => {}
            Fault::None | Fault::Reject | Fault::RejectAll | Fault::Die => {}
            Fault::Lose => wire.clear(),
            Fault::Repeat => wire.extend(&frame),
            Fault::Swap => tiny.kept = Some(std::mem::take(&mut wire)),
            Fault::Change => *wire.last_mut().unwrap() = b'y',
            Fault::Shorten => wire = [&[0x81, length - 1], &body[..body.len() - 1]].concat(),
            Fault::Mask => wire = vec![0x81, 0x80, 0, 0, 0, 0],
            Fault::TryAgainLater => wire = vec![0x88, 2, 0x03, 0xf5],
            Fault::CutOff => drop(subscriber.shutdown(std::net::Shutdown::Both)),
        }
        // A client that has gone is found elsewhere.
        let _ = subscriber.write_all(&wire);
    }
    tiny.messages += 1;
    true
}

fn load_tiny(fault: Fault) -> (i32, Value) {
    // Only a message that never arrives makes the load wait.
    let never_arrives = matches!(fault, Fault::Lose | Fault::Change | Fault::Shorten);
    let patience = if never_arrives { "2s" } else { "30s" };
    load(tiny_server(fault), &format!("--connections 3 --messages 40 --in-flight 4 --patience {patience}"))
}

#[test]
fn any_server_will_do() {
    let (code, report) = load_tiny(Fault::None);
    assert_eq!((code, &report["received"]), (0, &120.into()), "{report:#}");
    let (code, report) = load_tiny(Fault::Reject);
    assert_eq!((code, &report["received"], &report["rejected"]), (0, &120.into(), &1.into()), "{report:#}");
}

#[test]
fn a_server_that_rejects_everything_ends_the_load() {
    let address = tiny_server(Fault::RejectAll);
    let arguments = "--connections 3 --duration 300ms --rate 1000 --publishers 1 --patience 2s";
    let (code, report) = load(address, arguments);
    assert_eq!((code, &report["passed"]), (1, &false.into()), "{report:#}");
    assert!(report["unsent"].as_u64() > Some(0) && report["rejected"].as_u64() > Some(0), "{report:#}");
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
fn a_message_that_arrives_changed_is_found() {
    for fault in [Fault::Change, Fault::Shorten] {
        let (code, report) = load_tiny(fault);
        assert_eq!((code, &report["damaged"], &report["received"]), (1, &1.into(), &119.into()), "{report:#}");
        assert_eq!((&report["lost_unexplained"], &report["passed"]), (&1.into(), &false.into()));
        assert!(report["first_error"].as_str().unwrap().contains("changed"), "{report:#}");
    }
}

#[test]
fn publishing_may_answer_on_another_port() {
    for pace in ["--in-flight 4", "--flood --warmup 0"] {
        let (code, report) = load(tiny_server_with_two_ports(), &format!("--connections 3 --messages 40 {pace}"));
        assert_eq!((code, &report["received"], &report["rejected"]), (0, &120.into(), &0.into()), "{report:#}");
    }
    let address = tiny_server_with_two_ports();
    let said = run(&format!("--url ws://{address}/ws --publish-url http://{address}/publish --quiet --connections 2"));
    assert_eq!(said.status.code(), Some(69), "a URL that was given stays");
}

#[test]
fn a_server_that_dies_leaves_a_partial_report() {
    let (code, report) = load_tiny(Fault::Die);
    assert_eq!((code, &report["passed"], &report["connections"]["open"]), (1, &false.into(), &0.into()), "{report:#}");
    assert!(report["ended_early"].as_str().unwrap().contains("closed all connections"), "{report:#}");
    assert!(report["published"].as_u64() > Some(0) && report["received"].as_u64() > Some(0), "{report:#}");
    let screen = run(&format!("--url ws://{}/ws --connections 3 --messages 40 --quiet", tiny_server(Fault::Die)));
    assert!(String::from_utf8(screen.stdout).unwrap().starts_with("ENDED EARLY"));
    let (code, report) = load(tiny_server(Fault::Die), "--connections 3 --messages 40 --warmup 40");
    assert_eq!((code, &report["published"]), (1, &0.into()), "in the warm-up too: {report:#}");
}

#[test]
fn a_connection_that_is_lost_is_a_fault() {
    let (code, report) = load_tiny(Fault::CutOff);
    assert_eq!((code, &report["connections"]["closed"]["1006"]), (1, &1.into()), "{report:#}");
    assert!(report["lost_unexplained"].as_u64() > Some(0));
    // The close code 1013 is no reason towards a client that reads.
    let (code, report) = load_tiny(Fault::TryAgainLater);
    assert_eq!((code, &report["connections"]["closed"]["1013"]), (1, &1.into()), "{report:#}");
    assert!(report["lost_unexplained"].as_u64() > Some(0));
    let (code, report) = load_tiny(Fault::Mask);
    assert_eq!((code, &report["connections"]["closed"]["1002"]), (1, &1.into()), "{report:#}");
    assert!(report["first_error"].as_str().unwrap().contains("masked"));
}
