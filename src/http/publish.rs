//! `POST /publish` and `POST /publish/{channel}`: the body goes, verbatim, as one message to every subscriber.

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::{Request, StatusCode};
use serde::Serialize;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::Answer;
use super::answer::{draining, json, text, unavailable};
use super::route::RequestContext;
use crate::config::Config;
use crate::engine::publication::{ChannelName, Origin, Publication, PublishError, Receipt, Settled};
use crate::wire::Frame;

#[derive(Serialize)]
struct AcceptedBody<'a> {
    channel: &'a str,
    offset: u64,
    matched: u64,
}

#[derive(Serialize)]
struct SettledBody<'a> {
    channel: &'a str,
    offset: u64,
    #[serde(flatten)]
    settled: Settled,
}

pub(super) async fn publish(context: &RequestContext, channel: Option<&str>, request: Request<Incoming>) -> Answer {
    match try_publish(context, channel, request).await {
        Ok(answer) => answer,
        Err(rejection) => *rejection,
    }
}

async fn try_publish(
    context: &RequestContext,
    channel: Option<&str>,
    request: Request<Incoming>,
) -> Result<Answer, Box<Answer>> {
    let RequestContext { shard, phase, .. } = context;
    let refuse = |status, sentence: &str| Box::new(text(status, sentence));
    let channel = ChannelName::from_url(channel.unwrap_or(ChannelName::ALL))
        .map_err(|invalid| refuse(StatusCode::BAD_REQUEST, &invalid.to_string()))?;
    let wants_receipt = request.uri().query().is_some_and(|query| query.split('&').any(|pair| pair == "receipt=1"));
    let binary = request.headers().get(CONTENT_TYPE).is_some_and(is_binary);
    let body = read(request.into_body(), &shard.engine.config).await?;
    context.phases().begin(phase);
    let frame = if binary {
        Frame::binary(&body)
    } else {
        let sentence = "the body is not UTF-8: send text, or binary with Content-Type: application/octet-stream";
        Frame::text(str::from_utf8(&body).map_err(|_| refuse(StatusCode::BAD_REQUEST, sentence))?)
    };
    drop(body);
    let (answer, accepted) = oneshot::channel();
    let (receipt, settled) = if wants_receipt { Some(Receipt::new()) } else { None }.unzip();
    let publication = Publication { channel: channel.clone(), frame, origin: Origin::Request(answer), receipt };
    let result = match shard.engine.publish(publication) {
        // A sequencer that does not answer has ended with the server.
        Ok(()) => accepted.await.unwrap_or(Err(PublishError::Draining)),
        Err(refused) => Err(refused),
    };
    let accepted = result.map_err(|refused| match refused {
        PublishError::Overloaded => Box::new(unavailable(&refused.to_string())),
        PublishError::Draining => Box::new(draining()),
    })?;
    let (channel, offset) = (channel.as_str(), accepted.offset);
    let Some(settled) = settled else {
        let body = AcceptedBody { channel, offset, matched: accepted.matched };
        return Ok(json(StatusCode::ACCEPTED, &body));
    };
    let settled = settled.await.map_err(|_| Box::new(draining()))?;
    Ok(json(StatusCode::ACCEPTED, &SettledBody { channel, offset, settled }))
}

/// `application/octet-stream`, in any case and with any parameters.
fn is_binary(content_type: &HeaderValue) -> bool {
    let kind = content_type.to_str().unwrap_or_default().split(';').next().unwrap_or_default();
    kind.trim().eq_ignore_ascii_case("application/octet-stream")
}

/// The whole body: refused by its announced length before it is read, and by its real one while it is.
async fn read(body: Incoming, config: &Config) -> Result<Bytes, Box<Answer>> {
    let bytes_max = config.message_bytes_max;
    let refuse = |status, sentence: &str| Box::new(text(status, sentence));
    let too_big =
        || refuse(StatusCode::PAYLOAD_TOO_LARGE, &format!("a message has at most {bytes_max} bytes (--message-bytes)"));
    if body.size_hint().lower() > bytes_max as u64 {
        return Err(too_big());
    }
    match timeout(config.handshake_timeout, Limited::new(body, bytes_max).collect()).await {
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_big()),
        Ok(Err(error)) => Err(refuse(StatusCode::BAD_REQUEST, &format!("the body could not be read: {error}"))),
        Err(_) => Err(refuse(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time")),
    }
}
