//! `POST /publish` and `POST /publish/{channel}`: sends the body, unchanged, as one message to
//! every subscriber.

use std::sync::Arc;

use axum::extract::{Request, State};
use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::StatusCode;
use hyper::body::Body as _;
use hyper::header::{ACCEPT_ENCODING, HeaderValue};
use hyper::http::request::Parts;
use serde::Serialize;
use tokio::time::timeout;

use super::answer::{draining, json, text, unavailable, with};
use super::body_kind::{BodyKind, UnsupportedBody};
use super::conn_table::{HttpConn, Progress};
use super::query::{self, PublishQuery};
use super::wakes::{self, Waiting};
use super::{Answer, HttpListener};
use crate::engine::publication::{ChannelName, Origin, Publication, PublishError, Receipt, ReceiptSum, ReplyTo};
use crate::wire::Frame;

/// The result of a publication to one channel, as the response has it.
#[derive(Serialize)]
#[serde(untagged)]
enum Published<'a> {
    /// The sequencer has given it an offset.
    Accepted { channel: &'a str, offset: u64, matched: u64 },
    /// Every shard has finished its fan-out.
    Finished {
        channel: &'a str,
        offset: u64,
        #[serde(flatten)]
        sum: ReceiptSum,
    },
    /// One of several channels has rejected it.
    Rejected { channel: &'a str, error: String },
}

/// Reads the body, and publishes it.
pub(super) async fn publish(State(listener): State<Arc<HttpListener>>, request: Request) -> Answer {
    let (head, body) = request.into_parts();
    let body = read(body, &listener).await;
    if let (true, Some(conn)) = (body.is_ok(), head.extensions.get::<Arc<HttpConn>>()) {
        // From here on, the connection is not closed to make room for another.
        conn.set(Progress::Busy);
    }
    execute(&listener, &head, body).await
}

/// Publishes the body, or answers why it could not be read.
pub(super) async fn execute(listener: &HttpListener, head: &Parts, body: Result<Bytes, Box<Answer>>) -> Answer {
    match try_publish(listener, head, body).await {
        Ok(answer) => answer,
        Err(rejection) => *rejection,
    }
}

async fn try_publish(
    listener: &HttpListener,
    head: &Parts,
    body: Result<Bytes, Box<Answer>>,
) -> Result<Answer, Box<Answer>> {
    let reject = |status, sentence: String| Box::new(text(status, &sentence));
    let PublishQuery { channels, receipt } =
        query::publish(head.uri.path().strip_prefix("/publish/"), head.uri.query())
            .map_err(|error| reject(StatusCode::BAD_REQUEST, error.to_string()))?;
    let kind = BodyKind::of(&head.headers).map_err(|error| Box::new(unsupported(error)))?;
    let body = body?;
    let text = kind.text(&body).map_err(|error| reject(StatusCode::BAD_REQUEST, error.to_string()))?;
    let frame = text.map_or_else(|| Frame::binary(&body), Frame::text);
    drop(body);
    if let [channel] = &channels[..] {
        let published = publish_to(listener, channel, frame, receipt).await;
        return match published {
            Ok(published) => Ok(json(StatusCode::ACCEPTED, &published)),
            Err(PublishError::Overloaded) => Err(Box::new(unavailable(&PublishError::Overloaded.to_string()))),
            Err(PublishError::Draining) => Err(Box::new(draining())),
        };
    }
    let mut published = Vec::with_capacity(channels.len());
    for channel in &channels {
        let result = publish_to(listener, channel, frame.clone(), receipt).await;
        let rejected =
            |error: PublishError| Published::Rejected { channel: channel.as_str(), error: error.to_string() };
        published.push(result.unwrap_or_else(rejected));
    }
    // Publishers repeat a request that got 503. If some channel has already accepted the message, a
    // repeat would double it, so the status is 202.
    let is_rejected = |published: &Published<'_>| matches!(published, Published::Rejected { .. });
    let status = match published.iter().all(is_rejected) {
        true => StatusCode::SERVICE_UNAVAILABLE,
        false => StatusCode::ACCEPTED,
    };
    Ok(json(status, &published))
}

/// 415, or 501 for a transfer coding. For an encoded body it names the coding that is accepted.
fn unsupported(error: UnsupportedBody) -> Answer {
    let answer = |status| text(status, &error.to_string());
    match error {
        UnsupportedBody::TransferCoding => answer(StatusCode::NOT_IMPLEMENTED),
        UnsupportedBody::Encoded => {
            let identity = HeaderValue::from_static("identity");
            with(answer(StatusCode::UNSUPPORTED_MEDIA_TYPE), ACCEPT_ENCODING, identity)
        }
        UnsupportedBody::Several | UnsupportedBody::Type | UnsupportedBody::Charset => {
            answer(StatusCode::UNSUPPORTED_MEDIA_TYPE)
        }
    }
}

/// Publishes to one channel. Waits until the sequencer has accepted it; with a receipt, until the
/// end of the fan-out.
async fn publish_to<'a>(
    listener: &HttpListener,
    channel: &'a ChannelName,
    frame: Frame,
    wants_receipt: bool,
) -> Result<Published<'a>, PublishError> {
    let (reply, accepted) = ReplyTo::new(wakes::replies());
    let (receipt, sum) = if wants_receipt { Some(Receipt::new()) } else { None }.unzip();
    let publication = Publication { channel: channel.clone(), frame, origin: Origin::Request(reply), receipt };
    let sequencer = listener.engine.enqueue(publication)?;
    let _waiting = Waiting::wake(&listener.engine, sequencer).await;
    // Without an answer, the sequencer has ended with the server.
    let accepted = accepted.await.unwrap_or(Err(PublishError::Draining))?;
    let (channel, offset) = (channel.as_str(), accepted.offset);
    let Some(sum) = sum else {
        return Ok(Published::Accepted { channel, offset, matched: accepted.matched });
    };
    let sum = sum.await.map_err(|_| PublishError::Draining)?;
    Ok(Published::Finished { channel, offset, sum })
}

/// Reads the whole body. A body that is too long is rejected before the read by its announced
/// length, or during the read by its real length.
async fn read(body: axum::body::Body, listener: &HttpListener) -> Result<Bytes, Box<Answer>> {
    let bytes_max = listener.engine.config.message_bytes_max;
    let handshake_timeout = listener.engine.live().handshake_timeout;
    let reject = |status, sentence: &str| Box::new(text(status, sentence));
    let too_big =
        || reject(StatusCode::PAYLOAD_TOO_LARGE, &format!("a message has at most {bytes_max} bytes (--message-bytes)"));
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(too_big());
    }
    match timeout(handshake_timeout, Limited::new(body, bytes_max).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_big()),
        Ok(Err(error)) => Err(reject(StatusCode::BAD_REQUEST, &format!("the body could not be read: {error}"))),
        Err(_) => Err(reject(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")),
    }
}
