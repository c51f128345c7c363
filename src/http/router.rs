//! The routes of a listener: what each path names, who may use it, and at which port.
//!
//! axum finds the route; this module adds what every response needs (counts, `Keep-Alive`,
//! `Connection: close`), and explains what is wrong with a request that has no route. Clients'
//! routes and admin routes are separate routers: a listener has one of them, or both.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::IntoResponse;
use axum::routing::{any, get, post};
use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use hyper::header::{ALLOW, AUTHORIZATION, CONNECTION, EXPECT, HOST, HeaderName, HeaderValue, LINK, ORIGIN};
use hyper::{HeaderMap, Method, Response, StatusCode, Uri, Version};
use tower_http::normalize_path::NormalizePath;
use tower_service::Service;

use super::answer::{self, denied, text, with};
use super::conn_table::{HttpConn, Peer, Progress};
use super::request_body::RequestBody;
use super::{Answer, HttpListener, cors, debug, profile, publish, upgrade};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");

/// The routes of a listener; a trailing slash and repeated leading ones do not count.
pub(super) type Routes = NormalizePath<Router>;

/// The paths that publish or administer.
const ADMIN_ROUTES: [&str; 3] = ["/publish", "/metrics", "/debug"];

/// Builds the routes of `listener`.
pub(super) fn routes(listener: &Arc<HttpListener>) -> Routes {
    let mut router = Router::new()
        .route("/", any(root))
        .route("/healthz", get(async || text(StatusCode::OK, "ok")))
        .route("/readyz", get(debug::readyz));
    if listener.config.websockets {
        router = router
            .route("/ws", any(upgrade::events))
            .route("/ws/{channel}", any(upgrade::events))
            .route("/echo", any(upgrade::echo));
    }
    if listener.config.admin {
        let admin = Router::new()
            .route("/publish", post(publish::publish).options(preflight))
            .route("/publish/{channel}", post(publish::publish).options(preflight))
            .route("/debug/mem", get(debug::mem))
            .route("/debug/mem/purge", post(debug::purge))
            .route("/debug/pprof", get(async || text(StatusCode::OK, profile::INDEX)))
            .route("/debug/pprof/{name}", any(profile::profile))
            .route("/metrics", get(debug::metrics))
            .route_layer(middleware::from_fn_with_state(listener.clone(), authorise));
        #[cfg(debug_assertions)]
        let admin = admin.route("/debug/panic", post(debug::panic));
        router = router.merge(admin);
    }
    NormalizePath::trim_trailing_slash(router.fallback(no_such_route).with_state(listener.clone()))
}

/// `GET /`, which load balancers ask for; with an upgrade, the same as `/ws`.
async fn root(state: State<Arc<HttpListener>>, request: Request) -> Answer {
    if state.config.websockets && upgrade::is_wanted(&request) {
        return upgrade::events(state, request).await;
    }
    match *request.method() {
        Method::GET | Method::HEAD => {
            let publishes = match &state.admin_url {
                Some(url) if !state.config.admin => format!("{url}/publish"),
                _ => "/publish".to_owned(),
            };
            let routes = if state.config.websockets { "WebSocket at /ws and /echo, " } else { "" };
            text(StatusCode::OK, &format!("Hydrant: {routes}publish with POST {publishes}, health at /healthz"))
        }
        Method::OPTIONS => {
            with(text(StatusCode::OK, "GET, HEAD"), ALLOW, HeaderValue::from_static("GET, HEAD, OPTIONS"))
        }
        _ => method_not_allowed("GET, HEAD, OPTIONS"),
    }
}

/// 405, with the methods that the route takes.
pub(super) fn method_not_allowed(allowed: &'static str) -> Answer {
    let answer = text(StatusCode::METHOD_NOT_ALLOWED, &format!("use {}", allowed.replace(",", " or")));
    with(answer, ALLOW, HeaderValue::from_static(allowed))
}

/// Gives the router's own 405 a sentence.
fn explain_method(response: Response<Body>) -> Response<Body> {
    if response.status() != StatusCode::METHOD_NOT_ALLOWED || response.body().size_hint().lower() > 0 {
        return response;
    }
    let Some(allowed) = response.headers().get(ALLOW).cloned() else { return response };
    let methods: Vec<_> = allowed.to_str().unwrap_or_default().split(',').map(str::trim).collect();
    let answer = text(StatusCode::METHOD_NOT_ALLOWED, &format!("use {}", methods.join(" or ")));
    let allowed = HeaderValue::try_from(methods.join(", ")).unwrap_or(allowed);
    with(answer, ALLOW, allowed).into_response()
}

/// 404: says where the route is, if it is at the other port.
async fn no_such_route(State(listener): State<Arc<HttpListener>>, request: Request) -> Answer {
    let path = request.uri().path();
    let is_admin = ADMIN_ROUTES
        .iter()
        .any(|route| path.strip_prefix(route).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')));
    if is_admin
        && !listener.config.admin
        && let Some(url) = admin_url(&listener, &request)
    {
        let sentence = format!("publishing and administration are at another port: {url}");
        let link = HeaderValue::try_from(format!("<{url}>; rel=\"alternate\""));
        let answer = text(StatusCode::NOT_FOUND, &sentence);
        return match link {
            Ok(link) => with(answer, LINK, link),
            Err(_) => answer,
        };
    }
    let routes = match (listener.config.websockets, listener.config.admin) {
        (true, true) => {
            "/ws, /ws/{channel}, /echo, /publish, /publish/{channel}, /debug/mem, /debug/pprof, /metrics, /healthz, /readyz"
        }
        (true, false) => "/ws, /ws/{channel}, /echo, /healthz, /readyz",
        (false, _) => "/publish, /publish/{channel}, /debug/mem, /debug/pprof, /metrics, /healthz, /readyz",
    };
    text(StatusCode::NOT_FOUND, &format!("no such route: try {routes}"))
}

/// The URL of this request at the admin port. At an address of all interfaces, the host that the
/// client asked for.
fn admin_url(listener: &HttpListener, request: &Request) -> Option<String> {
    let base = listener.admin_url.as_ref()?;
    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
    let Some(port) = base.strip_prefix("http://0.0.0.0:").or_else(|| base.strip_prefix("http://[::]:")) else {
        return Some(format!("{base}{path}"));
    };
    let host: hyper::http::uri::Authority = request.headers().get(HOST)?.to_str().ok()?.parse().ok()?;
    Some(format!("http://{}:{port}{path}", host.host()))
}

/// Answers a request of hyper's.
pub(super) async fn respond(
    listener: &Arc<HttpListener>,
    conn: &Arc<HttpConn>,
    mut request: hyper::Request<Incoming>,
) -> Response<Body> {
    let (mut keeps, version) = (client_keeps(&request), request.version());
    // With `Expect: 100-continue`, hyper asks for the body as soon as somebody reads it.
    let expects_continue = request.headers().contains_key(EXPECT);
    request.extensions_mut().insert(conn.clone());
    let (head, body) = request.into_parts();
    let body = RequestBody::new(body);
    let Ok(response) = listener.routes().clone().call(hyper::Request::from_parts(head, body.clone())).await;
    let mut response = explain_method(response);
    if keeps && !body.is_read() {
        keeps = !expects_continue && body.discard().await;
    }
    if finish(listener, conn, &mut response, !keeps) && version == Version::HTTP_10 {
        // To a response of HTTP/1.1 hyper would add the client's `keep-alive`, beside `close`.
        *response.version_mut() = version;
    }
    if !conn.is_granted() {
        conn.set(Progress::Idle);
    }
    response
}

/// Answers a small whole publication, which needs no router.
pub(super) async fn publish_directly(
    listener: &Arc<HttpListener>,
    conn: &Arc<HttpConn>,
    request: hyper::Request<http_body_util::Empty<Bytes>>,
    body: Bytes,
    closes: bool,
) -> Answer {
    let (head, _) = request.into_parts();
    let mut answer = if !listener.config.admin {
        no_such_route(State(listener.clone()), Request::from_parts(head.clone(), Body::empty())).await
    } else if let Some(rejected) = forbidden(listener, conn.peer, &head.uri, &head.headers) {
        rejected
    } else {
        publish::execute(listener, &head, Ok(body)).await
    };
    if head.headers.contains_key(ORIGIN) {
        answer.headers_mut().extend(cors_headers(listener, conn.peer, &head.uri, &head.headers));
    }
    finish(listener, conn, &mut answer, closes);
    answer
}

/// Whether this publication is not rejected before its body is read.
pub(super) fn may_publish<B>(listener: &HttpListener, conn: &HttpConn, request: &hyper::Request<B>) -> bool {
    listener.config.admin && forbidden(listener, conn.peer, request.uri(), request.headers()).is_none()
}

/// Whether the client lets the connection go on behind this request (RFC 9112, section 9.3). hyper
/// agrees, except that it ends the connection behind a request with two lengths, which it hides.
pub(super) fn client_keeps<B>(request: &hyper::Request<B>) -> bool {
    let values = request.headers().get_all(CONNECTION).iter().filter_map(|value| value.to_str().ok());
    let (mut closes, mut keeps) = (false, request.version() >= Version::HTTP_11);
    for option in values.flat_map(|value| value.split(',')).map(str::trim) {
        closes |= option.eq_ignore_ascii_case("close");
        keeps |= option.eq_ignore_ascii_case("keep-alive");
    }
    keeps && !closes
}

/// Adds the headers and counts that every response needs; whether it is the last one.
pub(super) fn finish<B>(listener: &HttpListener, conn: &HttpConn, response: &mut Response<B>, closes: bool) -> bool {
    answer::count(listener, conn.peer.address, response);
    if conn.is_granted() {
        return false;
    }
    let is_last = closes || conn.ends_soon() || listener.engine.is_draining();
    if is_last {
        conn.note_last_response();
        // Beside `upgrade`, which a 426 has.
        response.headers_mut().append(CONNECTION, HeaderValue::from_static("close"));
    } else {
        let seconds = listener.engine.live().keep_alive_timeout.as_secs();
        let timeout = HeaderValue::try_from(format!("timeout={seconds}")).expect("digits are header text");
        response.headers_mut().insert(KEEP_ALIVE, timeout);
    }
    is_last
}

/// Lets only those through who may publish and administer.
async fn authorise(State(listener): State<Arc<HttpListener>>, request: Request, next: Next) -> Response<Body> {
    let peer = peer(&request);
    let of_pages = request.headers().contains_key(ORIGIN) && request.uri().path().starts_with("/publish");
    let cors = of_pages.then(|| cors_headers(&listener, peer, request.uri(), request.headers()));
    let is_preflight = request.method() == Method::OPTIONS && of_pages;
    let mut response = match forbidden(&listener, peer, request.uri(), request.headers()) {
        Some(rejected) if !is_preflight => rejected.into_response(),
        _ => next.run(request).await,
    };
    response.headers_mut().extend(cors.into_iter().flatten());
    response
}

/// Answers a preflight (the Fetch standard, "CORS-preflight fetch"): a browser asks whether a page
/// may publish.
async fn preflight(State(listener): State<Arc<HttpListener>>, request: Request) -> Answer {
    let asked = (request.method(), request.uri(), request.headers());
    match listener.with_origin_policy(peer(&request), |policy| cors::preflight(policy, asked, &[Method::POST])) {
        None => with(text(StatusCode::OK, "POST"), ALLOW, HeaderValue::from_static("POST, OPTIONS")),
        Some(Err(error)) => answer::rejected_origin(&listener, &error),
        Some(Ok(headers)) => {
            let mut answer = Answer::default();
            *answer.status_mut() = StatusCode::NO_CONTENT;
            *answer.headers_mut() = headers;
            answer
        }
    }
}

/// The headers by which a browser lets a page read the response.
fn cors_headers(listener: &HttpListener, peer: Peer, uri: &Uri, headers: &HeaderMap) -> HeaderMap {
    listener.with_origin_policy(peer, |policy| cors::answer_headers(policy, uri, headers))
}

/// The other end of a request's connection.
fn peer(request: &Request) -> Peer {
    request.extensions().get::<Arc<HttpConn>>().map(|conn| conn.peer).unwrap_or_default()
}

/// The token of the header `Authorization: Bearer TOKEN`.
pub(super) fn bearer(headers: &HeaderMap) -> Option<&[u8]> {
    let (scheme, token) = headers.get(AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

/// Why a request may not publish or administer, if it may not.
fn forbidden(listener: &HttpListener, peer: Peer, uri: &Uri, headers: &HeaderMap) -> Option<Answer> {
    let live = listener.engine.live();
    let served = listener.config;
    if let Some(token) = &live.token {
        let given = bearer(headers).unwrap_or_default();
        if !constant_time_eq::constant_time_eq(given, token.as_bytes()) {
            let sentence = match given.is_empty() {
                true => "this route needs the header: Authorization: Bearer TOKEN (--token)",
                false => "the token in the header Authorization is not the one of --token",
            };
            return Some(denied(StatusCode::UNAUTHORIZED, sentence));
        }
    } else if live.lacks_token(served) {
        let sentence = match served.websockets {
            true => {
                "this route needs a token on a port that clients share: set --token or HYDRANT_TOKEN, another \
                 --admin-listen, or --open if everybody may publish"
            }
            false => {
                "this route needs a token as soon as its port is open beyond loopback: set --token or HYDRANT_TOKEN, \
                 or --open if everybody may publish"
            }
        };
        return Some(denied(StatusCode::FORBIDDEN, sentence));
    }
    // A page in a browser reaches every port that its browser reaches.
    let is_free = live.token.is_none() && !live.open;
    drop(live);
    let may = listener.with_origin_policy(peer, |policy| match is_free {
        true => policy.may_publish(uri, headers),
        false => policy.may_connect(uri, headers),
    });
    may.err().map(|error| answer::rejected_origin(listener, &error))
}
