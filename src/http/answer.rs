//! The answers: every refusal is one sentence of plain text that says what to do.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use hyper::{Response, StatusCode};
use serde::Serialize;

use super::Answer;

/// Seconds after which a publisher or a client that was refused may try again.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("1");

/// An answer of plain text; for a refusal, the sentence that says what to do instead.
pub(super) fn text(status: StatusCode, sentence: &str) -> Answer {
    body(status, HeaderValue::from_static("text/plain; charset=utf-8"), format!("{sentence}\n").into())
}

/// 503: try again later.
pub(super) fn unavailable(sentence: &str) -> Answer {
    with(text(StatusCode::SERVICE_UNAVAILABLE, sentence), RETRY_AFTER, RETRY_AFTER_S)
}

/// 503: the server ends.
pub(super) fn draining() -> Answer {
    unavailable("the server is shutting down")
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
