//! Sends the messages: by `POST` on keep-alive connections, or as the event SAY of separate
//! clients. It is part of the event loop and does not wait, except for a connection that has to be
//! opened again.
//!
//! One publication is one write, even when several are due together, so that every server gets the
//! same bursts.

use std::net::SocketAddr;

use mio::Registry;
use mio::event::Event;

use super::LoadError;
use super::event_loop::{Clock, EventLoop};
use super::http_publisher::HttpPublisher;
use super::message::Tags;
use super::options::{Options, PublishBy};
use super::say_publisher::SayPublisher;

/// See the head of this file.
pub(crate) enum Publisher {
    Http(Box<HttpPublisher>),
    Say(Box<SayPublisher>),
}

impl Publisher {
    /// Connects; tokens begin at `first_token`.
    pub(crate) fn connect(
        options: &Options,
        servers: (SocketAddr, SocketAddr),
        tags: Tags,
        event_loop: &mut EventLoop,
        first_token: usize,
        clock: Clock,
    ) -> Result<Self, LoadError> {
        match options.publish_by {
            PublishBy::Http => {
                HttpPublisher::connect(options, servers.1, tags, event_loop.registry(), first_token, clock)
                    .map(|http| Self::Http(Box::new(http)))
            }
            PublishBy::Say => SayPublisher::connect(options, servers.0, tags, event_loop, first_token, clock)
                .map(|say| Self::Say(Box::new(say))),
        }
    }

    /// Whether a message can be published in this room now.
    pub(crate) fn is_ready(&self, room: usize) -> bool {
        match self {
            Self::Http(http) => http.is_ready(),
            Self::Say(say) => say.is_ready(room),
        }
    }

    /// Whether everything is sent and every response has arrived.
    pub(crate) fn is_idle(&self) -> bool {
        match self {
            Self::Http(http) => http.is_idle(),
            Self::Say(say) => say.is_idle(),
        }
    }

    /// Publications that the server has answered with 503.
    pub(crate) fn rejected(&self) -> u64 {
        match self {
            Self::Http(http) => http.rejections(),
            Self::Say(_) => 0,
        }
    }

    /// Publishes message `number`. To be called only when [`Self::is_ready`].
    pub(crate) fn publish(&mut self, number: u32, room: usize, registry: &Registry) -> Result<(), LoadError> {
        match self {
            Self::Http(http) => http.publish(number, registry),
            Self::Say(say) => {
                say.publish(number, room);
                Ok(())
            }
        }
    }

    /// When a rejected publication is due again.
    pub(crate) fn retry_ns(&self) -> u64 {
        match self {
            Self::Http(http) => http.retry_ns(),
            Self::Say(_) => u64::MAX,
        }
    }

    /// Sends rejected publications that are due again.
    pub(crate) fn retry(&mut self, now_ns: u64, registry: &Registry) -> Result<(), LoadError> {
        match self {
            Self::Http(http) => http.retry(now_ns, registry),
            Self::Say(_) => Ok(()),
        }
    }

    /// Handles an event of a publishing connection.
    pub(crate) fn event(&mut self, event: &Event) -> Result<(), LoadError> {
        match self {
            Self::Http(http) => http.event(event),
            Self::Say(say) => say.event(event),
        }
    }
}
