//! The answers: every rejection is one sentence of plain text that says what to do.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, WWW_AUTHENTICATE};
use hyper::{Response, StatusCode};
use serde::Serialize;

use super::Answer;
use crate::admission::Rejection;

/// Seconds after which a publisher or a client that was refused may try again.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("1");

/// An answer of plain text; for a rejection, the sentence that says what to do instead.
pub(super) fn text(status: StatusCode, sentence: &str) -> Answer {
    plain(status, format!("{sentence}\n"))
}

/// An answer of plain text, whole lines.
pub(super) fn plain(status: StatusCode, lines: String) -> Answer {
    body(status, HeaderValue::from_static("text/plain; charset=utf-8"), lines.into())
}

/// 503: try again later.
pub(super) fn unavailable(sentence: &str) -> Answer {
    with(text(StatusCode::SERVICE_UNAVAILABLE, sentence), RETRY_AFTER, RETRY_AFTER_S)
}

/// 503: the server ends.
pub(super) fn draining() -> Answer {
    unavailable(Rejection::Draining.sentence())
}

/// Turns somebody away. Counted by whoever sends it: the mark stays in the answer's extensions.
pub(super) fn refused(rejection: Rejection) -> Answer {
    // The table has statuses of HTTP only.
    let status = StatusCode::from_u16(rejection.status()).expect("a status");
    let mut answer = text(status, rejection.sentence());
    match status {
        StatusCode::UNAUTHORIZED => answer = with(answer, WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
        StatusCode::FORBIDDEN => {}
        _ => answer = with(answer, RETRY_AFTER, RETRY_AFTER_S),
    }
    answer.extensions_mut().insert(rejection);
    answer
}

/// The head of an answer as it travels.
pub(super) fn wire(answer: &Answer) -> Vec<u8> {
    let mut wire = format!("HTTP/1.1 {}\r\n", answer.status()).into_bytes();
    for (name, value) in answer.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            wire.extend_from_slice(part);
        }
    }
    wire.extend_from_slice(b"\r\n");
    wire
}

/// An answer of JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    // Plain structs of numbers and strings into memory: neither the values nor the writer can fail.
    let mut json = serde_json::to_vec(value).expect("numbers and strings serialise");
    json.push(b'\n');
    body(status, HeaderValue::from_static("application/json"), json.into())
}

/// The same answer with one header more.
pub(super) fn with(mut answer: Answer, name: HeaderName, value: HeaderValue) -> Answer {
    answer.headers_mut().insert(name, value);
    answer
}

/// An answer of any type.
pub(super) fn body(status: StatusCode, content_type: HeaderValue, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    with(answer, CONTENT_TYPE, content_type)
}
