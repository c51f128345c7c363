//! The choice of the WebSocket subprotocol (RFC 6455, sections 4.1 and 4.2.2), and the token that
//! an offer may carry.
//!
//! Owns the rules of `Sec-WebSocket-Protocol`. A page cannot set headers of a WebSocket, so it
//! offers `bearer, TOKEN`: the answer then chooses `bearer`. Promises that a token is never chosen,
//! and is in no error.

use hyper::HeaderMap;
use hyper::header::{HeaderValue, SEC_WEBSOCKET_PROTOCOL};

use crate::settings::is_subprotocol;

/// The subprotocol behind which an offer carries a token.
pub const BEARER: &str = "bearer";

/// The result of an offer of subprotocols.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Chosen<'a> {
    /// The value of `Sec-WebSocket-Protocol` in the answer; without one the answer has no such
    /// header.
    pub subprotocol: Option<&'a str>,
    /// The token of `bearer, TOKEN`.
    pub token: Option<&'a str>,
}

impl Chosen<'_> {
    /// The header of the answer.
    #[must_use]
    pub fn header(&self) -> Option<HeaderValue> {
        // It is a token of RFC 9110, and so a header's value.
        self.subprotocol.and_then(|name| HeaderValue::from_str(name).ok())
    }
}

/// An offer that breaks RFC 6455: 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubprotocolError {
    /// An element has a character that a token does not have.
    #[error(
        "Sec-WebSocket-Protocol has to be a list of names without spaces and separators (RFC 6455, section 4.1); a \
         token in base64 has to leave out its ="
    )]
    Name,
    /// An element comes twice.
    #[error("Sec-WebSocket-Protocol offers a name twice (RFC 6455, section 4.1): offer each once")]
    Repeated,
    /// `bearer` is the last element.
    #[error("Sec-WebSocket-Protocol offers bearer without a token: offer bearer, TOKEN")]
    NoToken,
}

/// Chooses from the offers of a handshake. The first offered name of `configured` is chosen; if
/// `configured` is empty, the first offered name. An offer of `bearer, TOKEN` is chosen as `bearer`
/// if nothing before it is, or if `configured` has none of the others.
///
/// # Errors
/// See [`SubprotocolError`].
pub fn choose<'a>(headers: &'a HeaderMap, configured: &[String]) -> Result<Chosen<'a>, SubprotocolError> {
    let mut offered = Vec::new();
    for value in headers.get_all(SEC_WEBSOCKET_PROTOCOL) {
        let value = value.to_str().map_err(|_| SubprotocolError::Name)?;
        // A list may have empty elements (RFC 9110, section 5.6.1.2).
        for name in value.split(',').map(|name| name.trim_matches([' ', '\t'])).filter(|name| !name.is_empty()) {
            if !is_subprotocol(name) {
                return Err(SubprotocolError::Name);
            }
            offered.push(name);
        }
    }
    if has_repetition(&offered) {
        return Err(SubprotocolError::Repeated);
    }
    let mut token = None;
    if let Some(at) = offered.iter().position(|&name| name == BEARER) {
        if at + 1 == offered.len() {
            return Err(SubprotocolError::NoToken);
        }
        token = Some(offered.remove(at + 1));
    }
    let subprotocol = if configured.is_empty() {
        offered.first()
    } else {
        let listed = offered.iter().find(|&&name| configured.iter().any(|configured| configured == name));
        listed.or_else(|| offered.iter().find(|&&name| name == BEARER))
    };
    Ok(Chosen { subprotocol: subprotocol.copied(), token })
}

fn has_repetition(names: &[&str]) -> bool {
    // A head of 16 KiB offers up to 8,192 names: comparing all pairs would take milliseconds.
    let mut sorted = names.to_vec();
    sorted.sort_unstable();
    sorted.windows(2).any(|pair| pair[0] == pair[1])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choice(offers: &[&str], configured: &[&str]) -> Result<(Option<String>, Option<String>), SubprotocolError> {
        let headers =
            offers.iter().map(|offer| (SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_bytes(offer.as_bytes()).unwrap()));
        let headers = headers.collect();
        let configured: Vec<_> = configured.iter().map(ToString::to_string).collect();
        let chosen = choose(&headers, &configured)?;
        assert_eq!(chosen.header().as_ref().and_then(|header| header.to_str().ok()), chosen.subprotocol);
        Ok((chosen.subprotocol.map(str::to_owned), chosen.token.map(str::to_owned)))
    }

    fn chosen(name: &str) -> Result<(Option<String>, Option<String>), SubprotocolError> {
        Ok((Some(name.to_owned()), None))
    }

    #[test]
    fn the_first_offered_is_chosen_unless_some_are_configured() {
        assert_eq!(choice(&[], &[]), Ok((None, None)));
        assert_eq!(choice(&[""], &[]), Ok((None, None)));
        assert_eq!(choice(&["chat, super.chat"], &[]), chosen("chat"));
        assert_eq!(choice(&[" , a ,,b,"], &[]), chosen("a"));
        assert_eq!(choice(&["a", "b"], &[]), chosen("a"));
        assert_eq!(choice(&["a, b", "c"], &["c", "b"]), chosen("b"));
        assert_eq!(choice(&["a"], &["b"]), Ok((None, None)));
        assert_eq!(choice(&["A"], &["a"]), Ok((None, None)), "names have a case");
        assert_eq!(choice(&[], &["a"]), Ok((None, None)));
    }

    #[test]
    fn a_token_is_carried_and_never_chosen() {
        let with_token = |name: &str| Ok((Some(name.to_owned()), Some("e30.e30.x-_".to_owned())));
        assert_eq!(choice(&["bearer, e30.e30.x-_"], &[]), with_token("bearer"));
        assert_eq!(choice(&["bearer", "e30.e30.x-_"], &[]), with_token("bearer"));
        assert_eq!(choice(&["bearer, e30.e30.x-_"], &["chat"]), with_token("bearer"));
        assert_eq!(choice(&["bearer, e30.e30.x-_, chat"], &["chat"]), with_token("chat"));
        assert_eq!(choice(&["chat, bearer, e30.e30.x-_"], &[]), with_token("chat"));
        assert_eq!(
            choice(&["bearer, e30.e30.x-_"], &["e30.e30.x-_"]),
            with_token("bearer"),
            "not even if it is listed"
        );
        assert_eq!(choice(&["bearer"], &[]), Err(SubprotocolError::NoToken));
        assert_eq!(choice(&["chat, bearer,"], &[]), Err(SubprotocolError::NoToken));
        assert_eq!(choice(&["Bearer, x"], &[]), chosen("Bearer"), "another name");
    }

    #[test]
    fn names_are_tokens_and_come_once() {
        for wrong in ["a b", "a/b", "a;q=1", "\"a\"", "bearer, dG9rZW4=", "a\tb", "é", "a, (b)", "a@b"] {
            assert_eq!(choice(&[wrong], &[]), Err(SubprotocolError::Name), "{wrong}");
        }
        for twice in [&["a, a"][..], &["a, b", "a"], &["bearer, bearer"], &["x, bearer, x"]] {
            assert_eq!(choice(twice, &[]), Err(SubprotocolError::Repeated), "{twice:?}");
        }
        assert_eq!(choice(&["!#$%&'*+-.^_`|~09azAZ"], &[]), chosen("!#$%&'*+-.^_`|~09azAZ"));
    }
}
