//! The responses: every rejection is one sentence of plain text that says what to do.

use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Body;
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderName, HeaderValue, RETRY_AFTER, UPGRADE, WWW_AUTHENTICATE,
};
use hyper::http::uri::Authority;
use hyper::{Response, StatusCode, Uri};
use serde::Serialize;

use super::origin::OriginError;
use super::{Answer, HttpListener};
use crate::admission::Rejection;

/// Seconds after which a publisher or a client that was rejected may try again.
const RETRY_AFTER_S: HeaderValue = HeaderValue::from_static("1");

/// Most headers of a plain request whose URL with TLS is found.
const URL_HEADERS_MAX: usize = 64;

/// A response of plain text; for a rejection, the sentence that says what to do instead.
pub(super) fn text(status: StatusCode, sentence: &str) -> Answer {
    plain(status, format!("{sentence}\n"))
}

/// A response of plain text, whole lines.
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

/// The sentence of a rejection that is logged when it is sent.
#[derive(Clone)]
struct Logged {
    /// Rejections with the same key share a line in a minute.
    key: &'static str,
    sentence: String,
}

/// A rejection of a publisher or of an administrator.
pub(super) fn denied(status: StatusCode, sentence: &str) -> Answer {
    let mut answer = text(status, sentence);
    if status == StatusCode::UNAUTHORIZED {
        answer = with(answer, WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    answer.extensions_mut().insert(Logged { key: "denied", sentence: sentence.to_owned() });
    answer
}

/// A rejection. It is counted when it is sent: the mark stays in the response's extensions.
pub(super) fn rejected(rejection: Rejection) -> Answer {
    rejected_because(rejection, rejection.sentence())
}

/// As [`rejected`], with a sentence for this request.
pub(super) fn rejected_because(rejection: Rejection, sentence: &str) -> Answer {
    // The table has statuses of HTTP only.
    let status = StatusCode::from_u16(rejection.status()).expect("a status");
    let mut answer = text(status, sentence);
    match status {
        StatusCode::UNAUTHORIZED => answer = with(answer, WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
        StatusCode::FORBIDDEN => {}
        _ => answer = with(answer, RETRY_AFTER, RETRY_AFTER_S),
    }
    answer.extensions_mut().insert(rejection);
    // A rejected page has a line of its own, and a drain is in the log.
    if !matches!(rejection, Rejection::Origin | Rejection::Draining) {
        answer.extensions_mut().insert(Logged { key: rejection.label(), sentence: sentence.to_owned() });
    }
    answer
}

/// The end of a line that stands for others, too.
fn more(silent: u64) -> String {
    if silent > 0 { format!(" ({silent} more in the last minute)") } else { String::new() }
}

/// Rejects a page, and says in the log what to set: once a minute for each origin.
pub(super) fn rejected_origin(listener: &HttpListener, error: &OriginError) -> Answer {
    if let Some(origin) = error.origin()
        && let Some(silent) = listener.rejected_origins.count(origin, Instant::now())
    {
        tracing::warn!("403: {error}{}", more(silent));
    }
    rejected_because(Rejection::Origin, &error.to_string())
}

/// The URL with TLS of a request that begins with these bytes: by its host, or by the server's
/// address if the head is not whole.
pub(super) fn secure_url(begin: &[u8], address: Option<SocketAddr>) -> Option<String> {
    let mut headers = [httparse::EMPTY_HEADER; URL_HEADERS_MAX];
    let mut head = httparse::Request::new(&mut headers);
    let is_whole = head.parse(begin).is_ok_and(|status| status.is_complete());
    let (path, headers) = if is_whole { (head.path, &*head.headers) } else { (None, &[][..]) };
    let header = |name: HeaderName| headers.iter().find(|header| header.name.eq_ignore_ascii_case(name.as_str()));
    let host = header(HOST).and_then(|host| Authority::try_from(host.value).ok());
    let host = host.map(|host| host.to_string()).or_else(|| Some(address?.to_string()))?;
    let scheme = if header(UPGRADE).is_some() { "wss" } else { "https" };
    let path = path.and_then(|path| path.parse::<Uri>().ok());
    Some(format!("{scheme}://{host}{}", path.as_ref().map_or("", Uri::path)))
}

/// Counts a response, if it is one that is counted. A rejection is logged, too, once a minute for
/// each reason: a browser does not tell its page why.
pub(super) fn count<B>(listener: &HttpListener, client: Option<IpAddr>, response: &Response<B>) {
    if let Some(Logged { key, sentence }) = response.extensions().get()
        && let Some(silent) = listener.rejections.count(key, Instant::now())
    {
        let status = response.status().as_u16();
        let client = client.map_or_else(|| "a Unix socket".to_owned(), |ip| ip.to_canonical().to_string());
        tracing::warn!("{status} to {client}: {sentence}{}", more(silent));
    }
    if let Some(&rejection) = response.extensions().get::<Rejection>() {
        listener.engine.rejections.count(rejection);
    }
    listener.engine.count_answer(response.status().as_u16());
}

/// Counts a request that hyper could not read, and has answered itself.
pub(super) fn count_unread(listener: &HttpListener, error: &hyper::Error) {
    if error.is_parse() {
        listener.engine.count_answer(if error.is_parse_too_large() { 431 } else { 400 });
    }
}

/// The last response of a connection, without a request that a handler has seen.
pub(super) fn last(listener: &HttpListener, client: Option<IpAddr>, answer: Answer) -> Answer {
    count(listener, client, &answer);
    with(answer, CONNECTION, HeaderValue::from_static("close"))
}

/// The head of a response as it travels.
pub(super) fn head(answer: &Answer) -> Vec<u8> {
    let mut wire = Vec::with_capacity(256);
    for part in ["HTTP/1.1 ", answer.status().as_str(), " ", answer.status().canonical_reason().unwrap_or(""), "\r\n"] {
        wire.extend_from_slice(part.as_bytes());
    }
    for (name, value) in answer.headers() {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            wire.extend_from_slice(part);
        }
    }
    wire.extend_from_slice(b"\r\n");
    wire
}

/// A whole response as it travels.
pub(super) fn whole(answer: Answer) -> Vec<u8> {
    let length = answer.body().size_hint().lower();
    let mut answer = with(answer, CONTENT_LENGTH, HeaderValue::from(length));
    let mut wire = head(&answer);
    // It is in memory: one frame, at once.
    if let Some(Some(Ok(frame))) = output_if_ready(answer.body_mut().frame())
        && let Some(data) = frame.data_ref()
    {
        wire.extend_from_slice(data);
    }
    wire
}

/// The output of a future, if it is ready at the first poll.
fn output_if_ready<F: Future + Unpin>(mut future: F) -> Option<F::Output> {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    match std::pin::Pin::new(&mut future).poll(&mut context) {
        std::task::Poll::Ready(output) => Some(output),
        std::task::Poll::Pending => None,
    }
}

/// A response of JSON.
pub(super) fn json(status: StatusCode, value: &impl Serialize) -> Answer {
    // Plain structs of numbers and strings into memory: neither the values nor the writer can fail.
    let mut json = serde_json::to_vec(value).expect("numbers and strings serialise");
    json.push(b'\n');
    body(status, HeaderValue::from_static("application/json"), json.into())
}

/// The same response with one header more.
pub(super) fn with(mut answer: Answer, name: HeaderName, value: HeaderValue) -> Answer {
    answer.headers_mut().insert(name, value);
    answer
}

/// A response of any type.
pub(super) fn body(status: StatusCode, content_type: HeaderValue, body: Bytes) -> Answer {
    let mut answer = Response::new(Full::new(body));
    *answer.status_mut() = status;
    with(answer, CONTENT_TYPE, content_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_url_with_tls_has_the_host_of_the_request() {
        let url = |begin: &str| secure_url(begin.as_bytes(), Some(([127, 0, 0, 1], 3000).into())).unwrap();
        assert_eq!(url("GET /ws?token=x HTTP/1.1\r\nhost: a.example:1\r\n\r\n"), "https://a.example:1/ws");
        assert_eq!(url("GET /ws HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\n\r\n"), "wss://a/ws");
        for other in ["G", "GET /ws HTTP/1.1\r\nHost: a.example\r\n", "GET /ws\r\n\r\n"] {
            assert_eq!(url(other), "https://127.0.0.1:3000", "{other}");
        }
        assert_eq!(url("GET / HTTP/1.1\r\nHost: <b>\r\n\r\n"), "https://127.0.0.1:3000/");
        assert_eq!(secure_url(b"GET", None), None);
    }
}
