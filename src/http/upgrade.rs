//! From a request to a WebSocket (RFC 6455, section 4.2).

use std::cell::RefCell;
use std::rc::Rc;

use bytes::Bytes;
use fastwebsockets::upgrade::is_upgrade_request;
use http_body_util::Full;
use hyper::body::Body;
use hyper::header::{CONNECTION, HOST, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION, UPGRADE};
use hyper::{Request, Response, StatusCode, Version};

use super::answer::{refused, text, with};
use super::route::bearer;
use super::{Answer, origin};
use crate::admission::Rejection;
use crate::config::CHANNELS_PER_CONNECTION_MAX;
use crate::conn::Role;
use crate::engine::connections::PendingSubscription;
use crate::engine::publication::ChannelName;
use crate::engine::shard::Shard;
use crate::jwt::Grant;

/// What becomes of the socket once the 101 has left.
pub(super) struct Upgrade {
    pub(super) role: Role,
    pub(super) pending: PendingSubscription,
}

/// `GET /ws` and `GET /ws/{channel}`.
pub(super) fn events<B: Body>(
    shard: &Rc<Shard>,
    slot: &RefCell<Option<Upgrade>>,
    request: &mut Request<B>,
    channel: Option<&str>,
) -> Answer {
    match channels(channel, request.uri().query()) {
        Ok(channels) => upgrade(shard, slot, request, Role::Events, channels),
        Err(sentence) => text(StatusCode::BAD_REQUEST, &sentence),
    }
}

/// `GET /echo`.
pub(super) fn echo<B: Body>(shard: &Rc<Shard>, slot: &RefCell<Option<Upgrade>>, request: &mut Request<B>) -> Answer {
    upgrade(shard, slot, request, Role::Echo, Vec::new())
}

fn upgrade<B: Body>(
    shard: &Rc<Shard>,
    slot: &RefCell<Option<Upgrade>>,
    request: &mut Request<B>,
    role: Role,
    channels: Vec<ChannelName>,
) -> Answer {
    if let Err(rejection) = check(request) {
        return *rejection;
    }
    if !origin::may_connect(request.headers(), &shard.engine.config.allow_origin) {
        return refused(Rejection::Origin);
    }
    let grant = match grant(shard, request, &channels) {
        Ok(grant) => grant,
        Err(rejection) => return refused(rejection),
    };
    if shard.engine.is_draining() {
        return refused(Rejection::Draining);
    }
    // The future that comes with it would build a reader of 8 KiB: the socket is taken from hyper instead.
    let Ok((handshake, _)) = fastwebsockets::upgrade::upgrade(request) else {
        return text(StatusCode::BAD_REQUEST, "not a WebSocket handshake");
    };
    match shard.announce(channels, grant) {
        Ok(pending) => *slot.borrow_mut() = Some(Upgrade { role, pending }),
        Err(rejection) => return refused(rejection),
    }
    let (head, _) = handshake.into_parts();
    Response::from_parts(head, Full::new(Bytes::new()))
}

/// What the request's token grants, if one is asked for and reaches as far as these channels.
fn grant<B>(shard: &Shard, request: &Request<B>, channels: &[ChannelName]) -> Result<Option<Grant>, Rejection> {
    let Some(key) = &shard.engine.config.subscriber_key else { return Ok(None) };
    let header = bearer(request).and_then(|token| std::str::from_utf8(token).ok());
    let query = request.uri().query().unwrap_or_default();
    let token = header.or_else(|| query.split('&').find_map(|pair| pair.strip_prefix("token=")));
    let grant = token.and_then(|token| key.verify(token).ok()).ok_or(Rejection::Unauthorized)?;
    let reaches = channels.iter().all(|channel| grant.allows(channel.as_str()));
    if reaches { Ok(Some(grant)) } else { Err(Rejection::Forbidden) }
}

/// What RFC 6455, section 4.2.1 asks of a client's handshake.
fn check<B: Body>(request: &Request<B>) -> Result<(), Box<Answer>> {
    let headers = request.headers();
    if !is_upgrade_request(request) {
        let rejection =
            text(StatusCode::UPGRADE_REQUIRED, "this route speaks WebSocket: connect with a WebSocket client");
        let rejection = with(rejection, UPGRADE, HeaderValue::from_static("websocket"));
        return Err(Box::new(with(rejection, CONNECTION, HeaderValue::from_static("upgrade"))));
    }
    if headers.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        let rejection = text(StatusCode::UPGRADE_REQUIRED, "the WebSocket version has to be 13");
        return Err(Box::new(with(rejection, SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"))));
    }
    if !headers.get(SEC_WEBSOCKET_KEY).is_some_and(|key| is_key(key.as_bytes())) {
        let sentence = "Sec-WebSocket-Key has to be 16 bytes in base64 (RFC 6455, section 4.1)";
        return Err(Box::new(text(StatusCode::BAD_REQUEST, sentence)));
    }
    let once = [HOST, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION]
        .into_iter()
        .all(|name| headers.get_all(name).iter().count() == 1);
    if request.version() != Version::HTTP_11 || !once {
        let sentence = "a handshake needs HTTP/1.1, and Host, Sec-WebSocket-Key and Sec-WebSocket-Version once each";
        return Err(Box::new(text(StatusCode::BAD_REQUEST, sentence)));
    }
    if !request.body().is_end_stream() {
        return Err(Box::new(text(StatusCode::BAD_REQUEST, "a handshake has no body")));
    }
    Ok(())
}

/// 16 bytes in base64 are 22 characters and two of padding.
fn is_key(key: &[u8]) -> bool {
    let digit = |byte: &u8| byte.is_ascii_alphanumeric() || b"+/".contains(byte);
    matches!(key, [digits @ .., b'=', b'='] if digits.len() == 22 && digits.iter().all(digit))
}

/// The channels of a connection: that of the path, or those of the query, or `all`.
fn channels(path: Option<&str>, query: Option<&str>) -> Result<Vec<ChannelName>, String> {
    let named = query.unwrap_or_default().split('&').filter_map(|pair| pair.strip_prefix("channel="));
    let mut channels = Vec::new();
    for name in path.into_iter().chain(named) {
        let name = ChannelName::from_url(name).map_err(|invalid| invalid.to_string())?;
        if !channels.contains(&name) {
            channels.push(name);
        }
        if channels.len() > CHANNELS_PER_CONNECTION_MAX {
            return Err(format!("a connection has at most {CHANNELS_PER_CONNECTION_MAX} channels"));
        }
    }
    if channels.is_empty() {
        channels.push(ChannelName::all());
    }
    Ok(channels)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_come_from_path_and_query() {
        let names =
            |path, query| channels(path, query).map(|names| names.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(names(None, None).unwrap(), ["all"]);
        assert_eq!(names(None, Some("x=1")).unwrap(), ["all"]);
        assert_eq!(names(Some("a"), None).unwrap(), ["a"]);
        assert_eq!(names(None, Some("channel=a&x=1&channel=b&channel=a")).unwrap(), ["a", "b"]);
        assert!(names(Some(""), None).is_err());
        assert!(names(None, Some("channel=a%20b")).is_err());
        assert_eq!(names(Some("r%3A1"), Some("channel=r:2")).unwrap(), ["r:1", "r:2"]);
        let many = (0..=CHANNELS_PER_CONNECTION_MAX).map(|n| format!("channel={n}&")).collect::<String>();
        assert!(names(None, Some(&many)).unwrap_err().contains("at most"));
    }

    #[test]
    fn keys_are_sixteen_bytes() {
        assert!(is_key(b"dGhlIHNhbXBsZSBub25jZQ=="));
        for bad in ["", "==", "dGhlIHNhbXBsZSBub25jZQ=", "dGhlIHNhbXBsZSBub25j ZQ==", "dGhlIHNhbXBsZSBub25jZQQ=="] {
            assert!(!is_key(bad.as_bytes()), "{bad}");
        }
    }
}
