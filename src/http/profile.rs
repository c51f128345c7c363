//! `GET /debug/pprof/…`: profiles of the running server. This module reads the request;
//! [`crate::profile`] makes the profile, on a thread of its own.

use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use hyper::header::{CONTENT_DISPOSITION, HeaderValue};
use hyper::{Method, StatusCode};
use tokio::sync::oneshot;

use super::answer::{body, draining, text, with};
use super::conn_table::HttpConn;
use super::router::method_not_allowed;
use super::{Answer, HttpListener};
use crate::engine::AdminRequest;
use crate::profile::{Format, NoProfile, Request, Subject, VALUES_ALLOCATED, VALUES_CPU, VALUES_LIVE};

/// The answer to `GET /debug/pprof/`.
pub(super) const INDEX: &str = "\
/debug/pprof/heap                    what the heap holds and what has been allocated, for go tool pprof
/debug/pprof/heap.svg                what the heap holds, as a flamegraph; ?sample=alloc_space: what has been allocated
/debug/pprof/profile?seconds=30      CPU time of every thread over 1 to 120 seconds, for go tool pprof
/debug/pprof/profile.svg?seconds=30  the same as a flamegraph; both: &frequency=100, 1 to 1000 samples a second";

/// How long a CPU profile may take, in seconds; another value gets 400.
const SECONDS: RangeInclusive<u32> = 1..=120;
const SECONDS_DEFAULT: u32 = 30;
/// Samples per second of a thread's CPU time; another value gets 400. The default is that of Go,
/// and costs a thread about 0.1 % of its time.
const FREQUENCY_HZ: RangeInclusive<u32> = 1..=1000;
const FREQUENCY_HZ_DEFAULT: u32 = 100;

/// The profile that a path names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Heap,
    HeapSvg,
    Cpu,
    CpuSvg,
}

impl Which {
    pub(super) fn of(name: &str) -> Option<Self> {
        Some(match name {
            "heap" => Self::Heap,
            "heap.svg" => Self::HeapSvg,
            "profile" => Self::Cpu,
            "profile.svg" => Self::CpuSvg,
            _ => return None,
        })
    }

    /// The subject and the format that a query asks for.
    ///
    /// # Errors
    /// A sentence that says which values the query may have.
    fn wanted(self, query: Option<&str>) -> Result<(Subject, Format), String> {
        match self {
            Self::Heap => Ok((Subject::Heap, Format::Pprof)),
            Self::HeapSvg => {
                let value = match parameter(query, "sample") {
                    None | Some("inuse_space") => VALUES_LIVE,
                    Some("alloc_space") => VALUES_ALLOCATED,
                    Some(_) => return Err("sample has to be inuse_space or alloc_space".to_owned()),
                };
                Ok((Subject::Heap, Format::Svg { value }))
            }
            Self::Cpu | Self::CpuSvg => {
                let seconds = number(query, "seconds", SECONDS, SECONDS_DEFAULT)?;
                let frequency = number(query, "frequency", FREQUENCY_HZ, FREQUENCY_HZ_DEFAULT)?;
                let frequency_hz = NonZeroU32::new(frequency).unwrap_or(NonZeroU32::MIN);
                let subject = Subject::Cpu { duration: Duration::from_secs(seconds.into()), frequency_hz };
                let format = if self == Self::Cpu { Format::Pprof } else { Format::Svg { value: VALUES_CPU } };
                Ok((subject, format))
            }
        }
    }
}

fn parameter<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    let pairs = query.unwrap_or_default().split('&');
    pairs.filter_map(|pair| pair.split_once('=')).find(|(found, _)| *found == name).map(|(_, value)| value)
}

fn number(query: Option<&str>, name: &str, range: RangeInclusive<u32>, default: u32) -> Result<u32, String> {
    let Some(value) = parameter(query, name) else { return Ok(default) };
    let number = value.parse().ok().filter(|number| range.contains(number));
    number.ok_or_else(|| format!("{name} has to be a whole number from {} to {}", range.start(), range.end()))
}

/// Answers with a profile. It ends early when the client disconnects or the server drains.
pub(super) async fn profile(
    State(listener): State<Arc<HttpListener>>,
    Path(name): Path<String>,
    request: axum::extract::Request,
) -> Answer {
    if request.method() != Method::GET {
        // An answer to HEAD would cost as much as the profile itself.
        return method_not_allowed("GET");
    }
    let Some(which) = Which::of(&name) else {
        return text(StatusCode::NOT_FOUND, INDEX);
    };
    let (subject, format) = match which.wanted(request.uri().query()) {
        Ok(wanted) => wanted,
        Err(sentence) => return text(StatusCode::BAD_REQUEST, &sentence),
    };
    // Every request carries its connection.
    let Some(conn) = request.extensions().get::<Arc<HttpConn>>().cloned() else { return draining() };
    let (answer, profile) = oneshot::channel();
    if listener.engine.admin.send(AdminRequest::Profile(Request { subject, format, answer })).await.is_err() {
        return draining();
    }
    drop(request);
    let profile = tokio::select! {
        profile = profile => profile,
        _ = listener.engine.draining() => return draining(),
        () = conn.ended() => return text(StatusCode::BAD_REQUEST, "the client did not wait for its profile"),
    };
    match profile {
        Ok(Ok(profile)) => {
            let (content_type, name) = match which {
                Which::Heap => ("application/octet-stream", "attachment; filename=\"heap.pb.gz\""),
                Which::Cpu => ("application/octet-stream", "attachment; filename=\"profile.pb.gz\""),
                Which::HeapSvg | Which::CpuSvg => ("image/svg+xml", "inline"),
            };
            let answer = body(StatusCode::OK, HeaderValue::from_static(content_type), profile.into());
            with(answer, CONTENT_DISPOSITION, HeaderValue::from_static(name))
        }
        Ok(Err(rejected)) => {
            let status = match rejected {
                NoProfile::Unavailable(_) => StatusCode::NOT_IMPLEMENTED,
                NoProfile::Empty(_) => StatusCode::NOT_FOUND,
                NoProfile::Busy => StatusCode::CONFLICT,
                NoProfile::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
            };
            text(status, &rejected.to_string())
        }
        Err(_) if listener.engine.is_draining() => draining(),
        Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "the profile's thread could not be started"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_read_and_bounded() {
        let cpu = |seconds: u64, frequency: u32| Subject::Cpu {
            duration: Duration::from_secs(seconds),
            frequency_hz: NonZeroU32::new(frequency).unwrap(),
        };
        assert_eq!(Which::Cpu.wanted(None), Ok((cpu(30, 100), Format::Pprof)));
        let svg = Format::Svg { value: VALUES_CPU };
        assert_eq!(Which::CpuSvg.wanted(Some("frequency=1000&seconds=120")), Ok((cpu(120, 1000), svg)));
        for wrong in
            ["seconds=0", "seconds=121", "seconds=", "seconds=1.5", "seconds=-1", "frequency=0", "frequency=1001"]
        {
            let sentence = Which::Cpu.wanted(Some(wrong)).unwrap_err();
            assert!(sentence.contains("whole number from 1 to"), "{wrong}: {sentence}");
        }
        assert_eq!(Which::Heap.wanted(Some("seconds=60&gc=1")), Ok((Subject::Heap, Format::Pprof)));
        let live = Format::Svg { value: VALUES_LIVE };
        assert_eq!(Which::HeapSvg.wanted(Some("sample=inuse_space")), Ok((Subject::Heap, live)));
        assert!(Which::HeapSvg.wanted(Some("sample=x")).is_err());
    }
}
