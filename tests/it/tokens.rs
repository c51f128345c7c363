//! Tokens of subscribers: a valid token admits its bearer to the channels that it names, until it
//! expires.

use std::time::{Duration, UNIX_EPOCH};

use hydrant::admission::Rejection;
use hydrant::close::CloseReason;
use hydrant::jwt::TokenKey;
use hydrant::settings::Config;
use serde_json::{Value, json};

use crate::signing::{self, token_es256, token_rs256};
use crate::support::{Binary, Client, HANDSHAKE, Received, TestServer, config, request};

/// Keys that were made for these tests only.
const KEYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/keys");
const FAR: u64 = 4_000_000_000;

fn token(claims: &Value) -> String {
    signing::token(claims, b"secret")
}

/// The key of the tests' tokens. The clocks are one, so no leeway is needed.
fn key() -> TokenKey {
    TokenKey::from_secret("secret").with_leeway(Duration::ZERO)
}

fn server() -> TestServer {
    TestServer::start(Config { subscriber_key: Some(key()), ..config() })
}

#[test]
fn subscribing_needs_a_valid_token() {
    let server = server();
    let status = |path: &str, headers: &[&str]| {
        request(server.address, "GET", path, &[&HANDSHAKE[..], headers].concat(), b"").status
    };
    let other = signing::token(&json!({"exp": FAR}), b"other");
    let expired = token(&json!({"exp": 1}));
    let body = |path: &str| request(server.address, "GET", path, &HANDSHAKE, b"").body;
    assert_eq!(body(&format!("/ws?token={expired}")), "the token has expired\n");
    assert_eq!(body("/ws?token=x").split(':').next(), Some("the token is malformed"));
    for bad in ["", &other, &expired, "x"] {
        assert_eq!(status("/ws", &[&format!("Authorization: Bearer {bad}")]), 401);
        assert_eq!(status(&format!("/echo?token={bad}"), &[]), if bad.is_empty() { 400 } else { 401 });
    }
    assert_eq!(status("/ws/room", &[]), 401);
    assert_eq!(server.engine.rejections.get(Rejection::Unauthorized), 10);
    let some = format!("Authorization: Bearer {}", token(&json!({"exp": FAR, "channels": ["room-*"]})));
    assert_eq!((status("/ws/room-1", &[&some]), status("/ws/room-1?channel=other", &[&some])), (101, 403));
    assert_eq!((status("/ws", &[&some]), server.engine.rejections.get(Rejection::Forbidden)), (403, 2));
    // `--token`, not this key, protects publishing.
    assert_eq!(request(server.address, "POST", "/publish", &[], b"x").status, 202);
}

#[test]
fn a_token_limits_later_subscriptions_too() {
    let server = server();
    let some = token(&json!({"exp": FAR, "channels": ["a", "b"]}));
    let mut client = server.client(&format!("/ws/a?token={some}"));
    client.text(r#"{"event":"SUBSCRIBE","channel":"c"}"#);
    assert!(client.receive_text().contains(r#""code":"FORBIDDEN""#));
    client.text(r#"{"event":"SUBSCRIBE","channel":"b"}"#);
    assert_eq!(client.receive_text(), r#"{"event":"SUBSCRIBED","channel":"b"}"#);
    assert_eq!([("a", 1), ("b", 1), ("c", 0)].map(|(room, _)| server.publish(room, b"x").matched), [1, 1, 0]);
}

#[test]
fn a_connection_ends_with_its_token() {
    let server = server();
    let soon = UNIX_EPOCH.elapsed().unwrap().as_secs() + 5;
    let mut client = server.client(&format!("/ws?token={}", token(&json!({"exp": soon}))));
    let mut lasting = server.client(&format!("/ws?token={}", token(&json!({"exp": FAR}))));
    let close = Received::Close(Some(1008), CloseReason::Expired.row().text.to_owned());
    assert_eq!(client.receive(), close);
    assert_eq!(server.publish("all", b"x").matched, 1);
    assert_eq!(lasting.receive_text(), "x");
}

#[test]
fn public_keys_verify_and_tokens_are_never_logged() {
    let pem = |name: &str| std::fs::read_to_string(format!("{KEYS}/{name}.pem")).unwrap();
    let claims = json!({"exp": FAR});
    let rsa = (token_rs256(&claims, &pem("rsa-private")), "rsa-public");
    let ec = (token_es256(&claims, &pem("ec-private")), "ec-public");
    for (good, public) in [rsa, ec] {
        let mut binary = Binary::start(&["--jwt-key", &format!("{KEYS}/{public}.pem"), "--log", "trace"]);
        let client = Client::connect(binary.address, &format!("/ws?token={good}"));
        // An attack: HS256 with the public key as its shared secret.
        let forged = signing::token(&claims, pem(public).as_bytes());
        let answer = request(binary.address, "GET", &format!("/ws?token={forged}"), &HANDSHAKE, b"");
        assert_eq!(answer.status, 401, "{public}");
        drop(client);
        binary.signal(libc::SIGTERM);
        assert_eq!(binary.wait().code(), Some(0));
        assert!(!binary.seen.iter().any(|line| line.contains(&good) || line.contains(&forged)), "{:?}", binary.seen);
    }
}
