//! Cross-origin requests of pages (the Fetch standard, "CORS protocol").
//!
//! Owns the headers by which a browser lets a page of an allowed origin send a request and read its
//! answer. Promises the same origins as the handshake ([`OriginPolicy::may_connect`]). Never opens
//! a route: the route itself asks for a token, or for [`OriginPolicy::may_publish`], before it does
//! anything. Credentials of the browser (cookies) are never allowed.

use hyper::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, HeaderValue, ORIGIN, VARY,
};
use hyper::{HeaderMap, Method, Uri};

use super::origin::{OriginError, OriginPolicy};

/// Headers that a page may send, beside those that need no permission.
const REQUEST_HEADERS: HeaderValue = HeaderValue::from_static("authorization, content-type");
/// Headers of an answer that a page may read, beside those that need no permission.
const EXPOSED_HEADERS: HeaderValue = HeaderValue::from_static("retry-after");
/// Seconds for which a browser may remember the answer to a preflight. A restart with another
/// `--allow-origin` then counts after ten minutes at most.
const MAX_AGE_S: HeaderValue = HeaderValue::from_static("600");
/// An answer of these routes is of use to the origin that it names only.
const VARY_BY: HeaderValue = HeaderValue::from_static("origin");
const VARY_BY_PREFLIGHT: HeaderValue =
    HeaderValue::from_static("origin, access-control-request-method, access-control-request-headers");

/// Answers a preflight for a route that has these methods: with 204 and the headers, or with 403
/// and the error. `None` if the request is no preflight.
#[must_use]
pub fn preflight(
    policy: &OriginPolicy<'_>,
    request: (&Method, &Uri, &HeaderMap),
    methods: &[Method],
) -> Option<Result<HeaderMap, OriginError>> {
    let (method, uri, headers) = request;
    let origin = headers.get(ORIGIN)?;
    if method != Method::OPTIONS || !headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
        return None;
    }
    if let Err(error) = policy.may_connect(uri, headers) {
        return Some(Err(error));
    }
    let methods = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    let mut answer = HeaderMap::from_iter([
        (ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone()),
        (ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::try_from(methods).expect("methods are header text")),
        (ACCESS_CONTROL_MAX_AGE, MAX_AGE_S),
        (VARY, VARY_BY_PREFLIGHT),
    ]);
    if headers.contains_key(ACCESS_CONTROL_REQUEST_HEADERS) {
        answer.insert(ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS);
    }
    Some(Ok(answer))
}

/// The headers that belong into every other answer of a route that pages use, errors too.
#[must_use]
pub fn answer_headers(policy: &OriginPolicy<'_>, uri: &Uri, headers: &HeaderMap) -> HeaderMap {
    let mut answer = HeaderMap::from_iter([(VARY, VARY_BY)]);
    if let Some(origin) = headers.get(ORIGIN).filter(|_| policy.may_connect(uri, headers).is_ok()) {
        answer.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
        answer.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED_HEADERS);
    }
    answer
}

#[cfg(test)]
mod tests {
    use hyper::header::HOST;

    use super::super::origin::Hint;
    use super::*;
    use crate::origin::AllowedOrigins;

    const POST: &[Method] = &[Method::POST];

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers: HeaderMap =
            pairs.iter().map(|&(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
        headers.insert(HOST, HeaderValue::from_static("localhost:3001"));
        headers
    }

    fn with<T>(patterns: &[&str], ask: impl FnOnce(&OriginPolicy<'_>) -> T) -> T {
        let allowed = AllowedOrigins::parse(patterns).unwrap();
        ask(&OriginPolicy { allowed: &allowed, is_local: true, trusted_proxy: false, local_peer: true })
    }

    fn ask(
        patterns: &[&str],
        method: &Method,
        pairs: &[(&'static str, &str)],
    ) -> Option<Result<HeaderMap, OriginError>> {
        with(patterns, |policy| preflight(policy, (method, &Uri::from_static("/publish"), &headers(pairs)), POST))
    }

    #[test]
    fn a_preflight_of_an_allowed_page_is_granted() {
        let pairs = [
            ("origin", "https://b.com"),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "authorization,content-type"),
        ];
        let answer = ask(&["https://b.com"], &Method::OPTIONS, &pairs).unwrap().unwrap();
        let right = HeaderMap::from_iter([
            (ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("https://b.com")),
            (ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("POST")),
            (ACCESS_CONTROL_ALLOW_HEADERS, HeaderValue::from_static("authorization, content-type")),
            (ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600")),
            (VARY, HeaderValue::from_static("origin, access-control-request-method, access-control-request-headers")),
        ]);
        assert_eq!(answer, right);
        let without_headers = ask(&["*"], &Method::OPTIONS, &pairs[..2]).unwrap().unwrap();
        assert!(!without_headers.contains_key(ACCESS_CONTROL_ALLOW_HEADERS));
        assert!(!without_headers.contains_key("access-control-allow-credentials"));
        assert_eq!(without_headers[ACCESS_CONTROL_ALLOW_ORIGIN], "https://b.com", "never *");
    }

    #[test]
    fn a_preflight_of_another_page_is_rejected() {
        let pairs = [("origin", "https://b.com"), ("access-control-request-method", "POST")];
        let error = OriginError::NotAllowed { origin: "https://b.com".to_owned(), hint: Hint::KeepHost };
        assert_eq!(ask(&["https://c.com"], &Method::OPTIONS, &pairs), Some(Err(error)));
        let mut headers = headers(&pairs);
        headers.append(ORIGIN, HeaderValue::from_static("https://b.com"));
        let answer = with(&["*"], |policy| preflight(policy, (&Method::OPTIONS, &Uri::default(), &headers), POST));
        assert_eq!(answer, Some(Err(OriginError::Several)));
    }

    #[test]
    fn only_options_with_both_headers_are_a_preflight() {
        let (origin, method) = (("origin", "https://b.com"), ("access-control-request-method", "POST"));
        assert_eq!(ask(&["*"], &Method::POST, &[origin, method]), None);
        assert_eq!(ask(&["*"], &Method::OPTIONS, &[origin]), None);
        assert_eq!(ask(&["*"], &Method::OPTIONS, &[method]), None);
    }

    #[test]
    fn an_answer_is_readable_for_allowed_pages_only() {
        let answer = |patterns: &[&str], pairs: &[(&'static str, &str)]| {
            with(patterns, |policy| answer_headers(policy, &Uri::from_static("/publish"), &headers(pairs)))
        };
        let only_vary = HeaderMap::from_iter([(VARY, HeaderValue::from_static("origin"))]);
        assert_eq!(answer(&[], &[("origin", "https://b.com")]), only_vary);
        assert_eq!(answer(&["*"], &[]), only_vary);
        let right = HeaderMap::from_iter([
            (VARY, HeaderValue::from_static("origin")),
            (ACCESS_CONTROL_ALLOW_ORIGIN, HeaderValue::from_static("null")),
            (ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static("retry-after")),
        ]);
        assert_eq!(answer(&["null"], &[("origin", "null")]), right);
        assert!(answer(&[], &[("origin", "http://localhost:3001")]).contains_key(ACCESS_CONTROL_ALLOW_ORIGIN));
    }

    #[test]
    fn an_allowed_page_does_not_publish_without_a_token_unless_it_is_named() {
        let uri = Uri::from_static("/publish");
        let page = headers(&[("origin", "https://b.com")]);
        for (patterns, may) in [(&["*"][..], false), (&["https://b.com"], true), (&["https://*.b.com", "*"], false)] {
            assert_eq!(with(patterns, |policy| policy.may_publish(&uri, &page)).is_ok(), may, "{patterns:?}");
        }
    }
}
