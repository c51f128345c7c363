//! What each path names, who may use it, and at which port.

use std::cell::RefCell;
use std::rc::Rc;

use hyper::body::{Body, Incoming};
use hyper::header::{ALLOW, AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE};
use hyper::{Method, Request, StatusCode};

use super::answer::{text, with};
use super::upgrade::Upgrade;
use super::{Answer, answer, debug, origin, profile, publish, upgrade};
use crate::admission::Rejection;
use crate::config::{Config, ListenerConfig};
use crate::engine::phases::{HttpPhase, Phases};
use crate::engine::shard::Shard;

/// What the answers to one socket's requests need.
pub(super) struct RequestContext {
    pub(super) shard: Rc<Shard>,
    pub(super) listener_config: ListenerConfig,
    pub(super) phase: Rc<HttpPhase>,
    /// What the last request asked for and was granted.
    pub(super) upgrade: RefCell<Option<Upgrade>>,
}

impl RequestContext {
    /// Those that this one is among.
    pub(super) fn phases(&self) -> &Phases {
        &self.shard.http_phases[self.listener_config.port]
    }
}

/// What a path names.
pub(super) enum Route<'a> {
    Events(Option<&'a str>),
    Echo,
    Publish(Option<&'a str>),
    Mem,
    Purge,
    Profiles,
    Profile(profile::Which),
    Metrics,
    Healthz,
    Readyz,
    /// A fault to test with.
    #[cfg(debug_assertions)]
    Panic,
}

impl<'a> Route<'a> {
    pub(super) fn of(path: &'a str) -> Option<Self> {
        let mut parts = path.split('/').skip(1);
        Some(match (parts.next()?, parts.next(), parts.next(), parts.next()) {
            ("ws", channel, None, None) => Self::Events(channel),
            ("echo", None, None, None) => Self::Echo,
            ("publish", channel, None, None) => Self::Publish(channel),
            ("debug", Some("mem"), None, None) => Self::Mem,
            ("debug", Some("mem"), Some("purge"), None) => Self::Purge,
            ("debug", Some("pprof"), None | Some(""), None) => Self::Profiles,
            ("debug", Some("pprof"), Some(name), None) => Self::Profile(profile::Which::of(name)?),
            #[cfg(debug_assertions)]
            ("debug", Some("panic"), None, None) => Self::Panic,
            ("metrics", None, None, None) => Self::Metrics,
            ("healthz", None, None, None) => Self::Healthz,
            ("readyz", None, None, None) => Self::Readyz,
            _ => return None,
        })
    }

    fn methods(&self) -> &'static [Method] {
        match self {
            // An answer to HEAD would cost what the profile does.
            Self::Events(_) | Self::Echo | Self::Profile(_) => &[Method::GET],
            Self::Mem | Self::Profiles | Self::Metrics | Self::Healthz | Self::Readyz => &[Method::GET, Method::HEAD],
            Self::Publish(_) | Self::Purge => &[Method::POST],
            #[cfg(debug_assertions)]
            Self::Panic => &[Method::POST],
        }
    }

    /// Whether it is to be had at this port.
    fn is_behind(&self, listener_config: ListenerConfig) -> bool {
        match self {
            Self::Events(_) | Self::Echo => listener_config.websockets,
            Self::Publish(_) | Self::Healthz | Self::Readyz => true,
            _ => listener_config.admin,
        }
    }

    /// Whether it publishes or administers, and so is not for everybody.
    fn is_guarded(&self) -> bool {
        !matches!(self, Self::Events(_) | Self::Echo | Self::Healthz | Self::Readyz)
    }
}

/// Answers a request, and counts it if that turns somebody away.
pub(super) async fn respond(context: &RequestContext, request: Request<Incoming>) -> Answer {
    let answer = route(context, request).await;
    // Who is about to be a WebSocket keeps its place until it is one.
    if context.upgrade.borrow().is_none() {
        context.phases().finish(&context.phase);
    }
    if let Some(&rejection) = answer.extensions().get::<Rejection>() {
        context.shard.engine.rejections.count(rejection);
    }
    context.shard.engine.count_answer(answer.status().as_u16());
    answer
}

async fn route(context: &RequestContext, mut request: Request<Incoming>) -> Answer {
    let RequestContext { shard, upgrade, phase, .. } = context;
    if request.body().is_end_stream() {
        context.phases().begin(phase);
    }
    let path = request.uri().path().to_owned();
    let Some(route) = Route::of(&path).filter(|route| route.is_behind(context.listener_config)) else {
        return text(
            StatusCode::NOT_FOUND,
            "no such route: try /ws, /ws/{channel}, /echo, /publish, /publish/{channel}, /debug/mem, /debug/pprof/, /metrics, /healthz, /readyz",
        );
    };
    let engine = &shard.engine;
    let guard = || if route.is_guarded() { forbidden(&engine.config, context.listener_config, &request) } else { None };
    if let Some(rejection) = only(&request, route.methods()).or_else(guard) {
        return rejection;
    }
    match route {
        Route::Events(channel) => upgrade::events(shard, upgrade, &mut request, channel),
        Route::Echo => upgrade::echo(shard, upgrade, &mut request),
        Route::Publish(channel) => publish::publish(context, channel, request).await,
        Route::Mem => debug::mem(engine, false).await,
        Route::Purge => debug::mem(engine, true).await,
        Route::Profiles => text(StatusCode::OK, profile::INDEX),
        Route::Profile(which) => profile::profile(shard, which, request.uri().query()).await,
        Route::Metrics => debug::metrics(engine).await,
        Route::Healthz => text(StatusCode::OK, "ok"),
        Route::Readyz if engine.is_draining() => answer::draining(),
        Route::Readyz => text(StatusCode::OK, "ready"),
        #[cfg(debug_assertions)]
        Route::Panic => {
            engine.inboxes[0].push(crate::engine::Item::Panic);
            text(StatusCode::ACCEPTED, "shard 0 will panic")
        }
    }
}

/// 405 for any other method.
fn only(request: &Request<Incoming>, methods: &[Method]) -> Option<Answer> {
    if methods.contains(request.method()) {
        return None;
    }
    let allowed = methods.iter().map(Method::as_str).collect::<Vec<_>>().join(", ");
    let rejection = text(StatusCode::METHOD_NOT_ALLOWED, &format!("use {allowed}"));
    Some(with(rejection, ALLOW, HeaderValue::try_from(allowed).expect("methods are header text")))
}

/// The token of the header `Authorization: Bearer TOKEN`.
pub(super) fn bearer<B>(request: &Request<B>) -> Option<&[u8]> {
    let (scheme, token) = request.headers().get(AUTHORIZATION)?.as_bytes().split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then_some(token)
}

/// Refuses publish and admin routes to whoever may not use them.
fn forbidden(config: &Config, listener_config: ListenerConfig, request: &Request<Incoming>) -> Option<Answer> {
    let Some(token) = &config.token else {
        if listener_config.loopback {
            // A page in a browser on this machine gets there too.
            if !origin::may_connect(request.headers(), &config.allow_origin) {
                return Some(answer::refused(Rejection::Origin));
            }
            let elsewhere = "without a token this route answers to this machine only: ask for localhost, or set --token or HYDRANT_TOKEN";
            let may = origin::is_for_this_machine(request.uri(), request.headers());
            return (!may).then(|| text(StatusCode::FORBIDDEN, elsewhere));
        }
        let set =
            "this route needs a token as soon as the server listens beyond loopback: set --token or HYDRANT_TOKEN";
        return Some(text(StatusCode::FORBIDDEN, set));
    };
    let given = bearer(request).unwrap_or_default();
    if constant_time_eq::constant_time_eq(given, token.as_bytes()) {
        return None;
    }
    let rejection = text(StatusCode::UNAUTHORIZED, "this route needs the header: Authorization: Bearer TOKEN");
    Some(with(rejection, WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")))
}
