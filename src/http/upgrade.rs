//! The upgrade of a request to a WebSocket (RFC 6455, section 4.2).

use std::sync::Arc;

use axum::extract::State;
use bytes::Bytes;
use fastwebsockets::upgrade::is_upgrade_request;
use http_body_util::Full;
use hyper::body::Body;
use hyper::header::{
    CONNECTION, HOST, HeaderValue, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use hyper::{Method, Request, Response, StatusCode, Version};

use super::answer::{rejected, rejected_because, text, with};
use super::conn_table::HttpConn;
use super::query::{self, WsQuery};
use super::router::{bearer, method_not_allowed};
use super::{Answer, HttpListener, answer, peer, subprotocol};
use crate::admission::{Permit, Rejection};
use crate::conn::Role;
use crate::engine::PendingSubscription;
use crate::engine::publication::ChannelName;
use crate::jwt::{Grant, TokenError, TokenKey};

/// The parts of a granted request that its shard needs.
#[derive(Debug)]
pub(super) struct Granted {
    pub(super) role: Role,
    pub(super) pending: PendingSubscription,
    pub(super) permit: Permit,
}

/// Whether a request asks for a WebSocket.
pub(super) fn is_wanted<B>(request: &Request<B>) -> bool {
    request.headers().contains_key(UPGRADE)
}

/// `GET /ws` and `GET /ws/{channel}`.
pub(super) async fn events(State(listener): State<Arc<HttpListener>>, mut request: axum::extract::Request) -> Answer {
    let Some(conn) = request.extensions().get::<Arc<HttpConn>>().cloned() else { return unreachable() };
    upgrade(&listener, &conn, &mut request, Role::Events)
}

/// `GET /echo`.
pub(super) async fn echo(State(listener): State<Arc<HttpListener>>, mut request: axum::extract::Request) -> Answer {
    let Some(conn) = request.extensions().get::<Arc<HttpConn>>().cloned() else { return unreachable() };
    upgrade(&listener, &conn, &mut request, Role::Echo)
}

/// Every request carries its connection.
fn unreachable() -> Answer {
    text(StatusCode::INTERNAL_SERVER_ERROR, "the request has no connection")
}

/// The meaning of a client's messages by the path of its handshake, if WebSockets are there.
pub(super) fn role(path: &str) -> Option<Role> {
    match path {
        "/ws" | "/" => Some(Role::Events),
        "/echo" => Some(Role::Echo),
        _ => path.strip_prefix("/ws/").filter(|rest| !rest.is_empty() && !rest.contains('/')).map(|_| Role::Events),
    }
}

/// Checks a handshake and grants it, or says why not.
pub(super) fn upgrade<B: Body>(
    listener: &Arc<HttpListener>,
    conn: &HttpConn,
    request: &mut Request<B>,
    role: Role,
) -> Answer {
    if request.method() != Method::GET {
        return method_not_allowed("GET");
    }
    match try_upgrade(listener, conn, request, role) {
        Ok(answer) => answer,
        Err(rejection) => *rejection,
    }
}

fn try_upgrade<B: Body>(
    listener: &Arc<HttpListener>,
    conn: &HttpConn,
    request: &mut Request<B>,
    role: Role,
) -> Result<Answer, Box<Answer>> {
    let bad = |sentence: String| Box::new(text(StatusCode::BAD_REQUEST, &sentence));
    let rejected = |rejection| Box::new(rejected(rejection));
    let (path, query) = (request.uri().path(), request.uri().query());
    let WsQuery { channels, token } = match role {
        Role::Echo => query::echo(query).map(|token| WsQuery { channels: Vec::new(), token }),
        Role::Events => query::ws(path.strip_prefix("/ws/"), query),
    }
    .map_err(|error| bad(error.to_string()))?;
    check(request)?;
    let engine = &listener.engine;
    let live = engine.live();
    // A trusted proxy that names no client is the client itself: its health checks, for example.
    let counted_here = match conn.peer.is_trusted_proxy {
        true => peer::forwarded_for(request.headers(), &live.trusted_proxy)
            .map_err(|error| bad(error.to_string()))?
            .or(conn.peer.address),
        false => None,
    };
    listener
        .with_origin_policy(conn.peer, |policy| policy.may_connect(request.uri(), request.headers()))
        .map_err(|error| Box::new(answer::rejected_origin(listener, &error)))?;
    let chosen = subprotocol::choose(request.headers(), &live.subprotocol).map_err(|error| bad(error.to_string()))?;
    let subprotocol = chosen.header();
    let header = bearer(request.headers()).and_then(|token| std::str::from_utf8(token).ok());
    let token = header.or(chosen.token).or(token.as_deref());
    let grant = grant(live.subscriber_key.as_ref(), token, &channels)
        .map_err(|error| Box::new(rejected_because((&error).into(), &error.to_string())))?;
    drop(live);
    if engine.is_draining() {
        return Err(rejected(Rejection::Draining));
    }
    // The future that comes with it would build a reader of 8 KiB: the socket is taken from hyper
    // instead.
    let (handshake, _) =
        fastwebsockets::upgrade::upgrade(&mut *request).map_err(|_| bad("not a WebSocket handshake".to_owned()))?;
    let shard = engine.least_loaded();
    let of_client = counted_here.map_or(Ok(None), |address| engine.permit_address(address)).map_err(rejected)?;
    let pending = engine.announce(shard, channels, grant).map_err(rejected)?;
    let permit = engine.loads[shard].permit_of(of_client.or_else(|| conn.take_address_permit()));
    let client = counted_here.or(conn.peer.address).map(|ip| tracing::field::display(ip.to_canonical()));
    tracing::debug!(client, shard, "WebSocket granted");
    conn.grant(Granted { role, pending, permit });
    let (mut head, _) = handshake.into_parts();
    if let Some(subprotocol) = subprotocol {
        head.headers.insert(SEC_WEBSOCKET_PROTOCOL, subprotocol);
    }
    Ok(Response::from_parts(head, Full::new(Bytes::new())))
}

/// The grant of the token, if the server requires one and it allows these channels.
fn grant(key: Option<&TokenKey>, token: Option<&str>, channels: &[ChannelName]) -> Result<Option<Grant>, TokenError> {
    let Some(key) = key else { return Ok(None) };
    let grant = key.verify(token.ok_or(TokenError::Missing)?)?;
    grant.check(channels.iter().map(ChannelName::as_str))?;
    Ok(Some(grant))
}

/// The checks of a client's handshake by RFC 6455, section 4.2.1.
fn check<B: Body>(request: &Request<B>) -> Result<(), Box<Answer>> {
    let headers = request.headers();
    if !is_upgrade_request(request) {
        let sentence = match headers.contains_key(SEC_WEBSOCKET_KEY) {
            true => {
                "a proxy has removed the headers Upgrade and Connection: let it pass them on (nginx: proxy_http_version \
                 1.1; proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection \"upgrade\";)"
            }
            false => "this route speaks WebSocket: connect with a WebSocket client",
        };
        let rejection =
            with(text(StatusCode::UPGRADE_REQUIRED, sentence), UPGRADE, HeaderValue::from_static("websocket"));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_sixteen_bytes() {
        assert!(is_key(b"dGhlIHNhbXBsZSBub25jZQ=="));
        for bad in ["", "==", "dGhlIHNhbXBsZSBub25jZQ=", "dGhlIHNhbXBsZSBub25j ZQ==", "dGhlIHNhbXBsZSBub25jZQQ=="] {
            assert!(!is_key(bad.as_bytes()), "{bad}");
        }
    }
}
