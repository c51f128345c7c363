//! `GET /debug/pprof/…`: what each build answers.
//!
//! Always against the real binary, because signals and their handler belong to a whole process.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};

use flate2::read::GzDecoder;

use crate::support::{Binary, Client, begin, publish, read_answer, request, until};

const HAS_CPU: bool = cfg!(feature = "profiling");
const HAS_HEAP: bool = cfg!(all(feature = "profiling", feature = "jemalloc"));

fn ask(address: SocketAddr, path: &str) -> TcpStream {
    begin(address, format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes())
}

/// Head and body of an answer, whose body need not be text.
fn download(mut stream: TcpStream) -> (String, Vec<u8>) {
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").expect("a head") + 4;
    let body = answer.split_off(end);
    (String::from_utf8(answer).unwrap(), body)
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return value;
        }
    }
    panic!("a varint of more than ten bytes");
}

/// The string and message fields of a protobuf message, with their numbers.
fn fields(mut message: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut fields = Vec::new();
    while !message.is_empty() {
        let key = varint(&mut message);
        match key & 7 {
            0 => drop(varint(&mut message)),
            2 => {
                let length = varint(&mut message) as usize;
                let (field, rest) = message.split_at(length);
                fields.push((key >> 3, field.to_vec()));
                message = rest;
            }
            kind => panic!("wire type {kind}"),
        }
    }
    fields
}

/// Checks that the answer is a profile with samples, locations and functions; returns its strings.
fn check(address: SocketAddr, path: &str) -> String {
    let (head, body) = download(ask(address, path));
    assert!(head.starts_with("HTTP/1.1 200 ") && head.contains("application/octet-stream"), "{path}: {head}");
    assert_eq!(body[..2], [0x1f, 0x8b], "gzip's first bytes");
    let mut message = Vec::new();
    GzDecoder::new(&body[..]).read_to_end(&mut message).unwrap();
    let fields = fields(&message);
    let count = |number| fields.iter().filter(|(field, _)| *field == number).count();
    assert!(count(1) >= 2 && count(2) > 0 && count(3) > 0 && count(4) > 0 && count(5) > 0, "{path}");
    let strings: Vec<_> =
        fields.into_iter().filter(|(field, _)| *field == 6).map(|(_, text)| String::from_utf8(text).unwrap()).collect();
    assert_eq!(strings[0], "");
    strings.join("\n")
}

/// Checks that a build that cannot do it says what to build.
fn check_rejected(address: SocketAddr, path: &str) {
    let answer = request(address, "GET", path, &[], b"");
    assert_eq!(answer.status, 501, "{path}");
    assert!(answer.body.contains("build"), "{path}: {}", answer.body);
}

#[test]
fn the_index_names_the_routes() {
    let binary = Binary::start(&[]);
    for path in ["/debug/pprof/", "/debug/pprof"] {
        let answer = request(binary.address, "GET", path, &[], b"");
        assert_eq!(answer.status, 200);
        for route in ["/debug/pprof/heap", "heap.svg", "/debug/pprof/profile?seconds=30", "profile.svg"] {
            assert!(answer.body.contains(route), "{route}");
        }
    }
    assert_eq!(request(binary.address, "GET", "/debug/pprof/goroutine", &[], b"").status, 404);
    assert_eq!(request(binary.address, "HEAD", "/debug/pprof/profile", &[], b"").status, 405);
    for query in ["seconds=0", "seconds=121", "seconds=x", "seconds=1&frequency=0", "seconds=1&frequency=1001"] {
        for route in ["profile", "profile.svg"] {
            let answer = request(binary.address, "GET", &format!("/debug/pprof/{route}?{query}"), &[], b"");
            assert_eq!(answer.status, 400, "{query}");
            assert!(answer.body.contains("whole number from 1 to"), "{query}");
        }
    }
}

#[test]
fn profiles_need_the_token() {
    let binary = Binary::start(&["--token", "secret"]);
    for path in ["", "heap", "heap.svg", "profile?seconds=1", "profile.svg?seconds=1"] {
        let path = format!("/debug/pprof/{path}");
        assert_eq!(request(binary.address, "GET", &path, &[], b"").status, 401, "{path}");
    }
    let token = ["Authorization: Bearer secret"];
    assert_eq!(request(binary.address, "GET", "/debug/pprof/", &token, b"").status, 200);
}

#[test]
fn a_heap_without_samples_names_the_flag() {
    let binary = Binary::start(&["--shards", "1", "--heap-sample", "1GiB"]);
    if HAS_HEAP {
        let answer = request(binary.address, "GET", "/debug/pprof/heap", &[], b"");
        assert!(answer.status == 404 && answer.body.contains("--heap-sample 16KiB"), "{answer:?}");
    }
}

#[test]
fn the_heap_is_profiled_where_jemalloc_samples_it() {
    let binary = Binary::start(&["--shards", "2", "--heap-sample", "16KiB"]);
    if !HAS_HEAP {
        check_rejected(binary.address, "/debug/pprof/heap");
        return check_rejected(binary.address, "/debug/pprof/heap.svg");
    }
    let _clients: Vec<_> = (0..500).map(|_| Client::connect(binary.address, "/ws")).collect();
    let strings = check(binary.address, "/debug/pprof/heap?seconds=60");
    for expected in ["inuse_space", "alloc_space", "hydrant::engine::"] {
        assert!(strings.contains(expected), "{expected} is not in {strings}");
    }
    for query in ["", "?sample=alloc_space"] {
        let answer = request(binary.address, "GET", &format!("/debug/pprof/heap.svg{query}"), &[], b"");
        assert_eq!((answer.status, answer.header("content-type")), (200, Some("image/svg+xml")));
        assert!(answer.body.starts_with("<svg") && answer.body.contains("hydrant::"), "{}", answer.body);
    }
}

#[test]
fn cpu_time_is_profiled_while_messages_go_on() {
    let binary = Binary::start(&["--shards", "1"]);
    if !HAS_CPU {
        check_rejected(binary.address, "/debug/pprof/profile?seconds=1");
        return check_rejected(binary.address, "/debug/pprof/profile.svg?seconds=1");
    }
    let mut clients: Vec<_> = (0..50).map(|_| Client::connect(binary.address, "/ws")).collect();
    for path in ["/debug/pprof/profile?seconds=1&frequency=1000", "/debug/pprof/profile.svg?seconds=1&frequency=1000"] {
        let address = binary.address;
        let profile = std::thread::spawn(move || {
            if !path.contains("svg") {
                return check(address, path);
            }
            String::from_utf8(download(ask(address, path)).1).unwrap()
        });
        while !profile.is_finished() {
            assert_eq!(publish(binary.address, "all", b"x").delivered, 50);
            clients.iter_mut().for_each(|client| assert_eq!(client.receive_text(), "x"));
        }
        let profile = profile.join().unwrap();
        for expected in ["shard-0", "send", "hydrant::"] {
            assert!(profile.contains(expected), "{expected} is not in {profile}");
        }
    }
}

/// Waits until a profile is being made, or no longer is.
fn wait_for_profile(binary: &Binary, is_made: bool) {
    let is_its = |task: std::io::Result<std::fs::DirEntry>| {
        // The thread may end meanwhile.
        std::fs::read_to_string(task.unwrap().path().join("comm")).is_ok_and(|name| name == "profile\n")
    };
    let tasks = || std::fs::read_dir(format!("/proc/{}/task", binary.pid())).unwrap();
    until(|| (tasks().any(is_its) == is_made).then_some(()), || format!("a profile is made: {}", !is_made));
}

#[test]
fn there_is_one_cpu_profile_at_a_time_and_it_ends_with_its_client() {
    if !HAS_CPU {
        return;
    }
    let binary = Binary::start(&[]);
    let first = ask(binary.address, "/debug/pprof/profile?seconds=120");
    wait_for_profile(&binary, true);
    let second = || request(binary.address, "GET", "/debug/pprof/profile.svg?seconds=1", &[], b"");
    let rejected = second();
    assert_eq!(rejected.status, 409);
    assert!(rejected.body.contains("another profile"), "{}", rejected.body);
    drop(first);
    wait_for_profile(&binary, false);
    assert_eq!(second().status, 200);
}

#[test]
fn a_drain_does_not_wait_for_a_profile() {
    if !HAS_CPU {
        return;
    }
    let mut binary = Binary::start(&["--drain-timeout", "1h"]);
    let mut profile = ask(binary.address, "/debug/pprof/profile?seconds=120");
    wait_for_profile(&binary, true);
    binary.signal(libc::SIGTERM);
    assert_eq!(read_answer(&mut profile).status, 503);
    assert_eq!(binary.wait().code(), Some(0));
}
