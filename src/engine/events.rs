//! The meaning of clients' messages, and the answers to a single client.
//!
//! Owns what each event does: names, `SAY`, subscriptions. An event that cannot be carried out is
//! answered with an `ERROR` event; it never ends the connection. A `SAY` is published through the
//! sequencer like any other publication, never sent to subscribers directly.

use std::borrow::Cow;
use std::rc::Rc;

use super::publication::{CHANNELS_PER_CONNECTION_MAX, ChannelName, Origin, Publication};
use super::shard::{Conn, Shard};
use crate::close::CloseReason;
use crate::conn::{Phase, Role, Sent};
use crate::metrics::DropReason;
use crate::outbox::Bound;
use crate::settings::SayPolicy;
use crate::wire::event::USER_NAME_BYTES_MAX;
use crate::wire::event::{self, ClientEvent, EventError};
use crate::wire::inbound::Inbound;
use crate::wire::{Batch, Frame};

/// The name of a client that has not set one.
const NAMELESS: &str = "anonymous";

impl Shard {
    /// Handles a message or a control frame of a client.
    pub(super) fn on_inbound(&self, connection: &Rc<Conn>, inbound: Inbound<'_>) {
        if let Inbound::Close(code) = inbound {
            return self.on_close(connection, code);
        }
        if connection.phase() != Phase::Open {
            // Between the two close frames only the second one matters.
            return;
        }
        match (inbound, connection.role) {
            (Inbound::Close(_) | Inbound::Pong, _) => {}
            (Inbound::Ping(payload), _) => {
                if !connection.pong(&payload) {
                    self.end(connection, CloseReason::Disconnected);
                }
            }
            (Inbound::Text(text), Role::Echo) => self.answer(connection, Frame::text(&text)),
            (Inbound::Binary(bytes), Role::Echo) => self.answer(connection, Frame::binary(&bytes)),
            (Inbound::Binary(_), Role::Events) => self.end(connection, CloseReason::NotText),
            (Inbound::Text(text), Role::Events) => {
                if let Err(error) = event::parse(&text).and_then(|event| self.on_event(connection, event)) {
                    self.answer(connection, error.frame());
                }
            }
        }
    }

    fn on_event(&self, connection: &Rc<Conn>, event: ClientEvent<'_>) -> Result<(), EventError> {
        match event {
            ClientEvent::SetName { new_name } => return self.set_name(connection, new_name),
            ClientEvent::Say { message, channel } => return self.say(connection, &message, channel.as_deref()),
            ClientEvent::Leave => self.end(connection, CloseReason::Left),
            ClientEvent::Subscribe { channel } => {
                let channel = channel_name(&channel)?;
                if !self.channels.borrow().has(&channel, connection) {
                    self.check_subscription(connection, &channel)?;
                    self.subscribe(connection, channel.clone());
                }
                // The sequencer's inbox has the subscription already, and no pass runs before this
                // answer is queued. So every message that is published after the client has seen
                // the answer arrives, and no message of the channel arrives before the answer.
                self.answer(connection, event::subscribed(channel.as_str()));
            }
            ClientEvent::Unsubscribe { channel } => {
                let channel = channel_name(&channel)?;
                if !self.unsubscribe(connection, channel.clone()) {
                    return Err(EventError::NothingToUnsubscribe(channel.to_string()));
                }
                self.answer(connection, event::unsubscribed(channel.as_str()));
            }
        }
        Ok(())
    }

    /// Sets the name of a client whose token has no `sub`.
    fn set_name(&self, connection: &Conn, name: Cow<'_, str>) -> Result<(), EventError> {
        if !(1..=USER_NAME_BYTES_MAX).contains(&name.len()) {
            return Err(EventError::InvalidName(USER_NAME_BYTES_MAX));
        }
        if event::is_reserved_name(&name) {
            return Err(EventError::ReservedName);
        }
        let grants = self.grants.borrow();
        if let Some(user) = grants.get(&connection.slot).and_then(|grant| grant.user.as_deref()) {
            return if *user == *name { Ok(()) } else { Err(EventError::NameOfToken) };
        }
        connection.name.set(Some(Box::new(name.into())));
        Ok(())
    }

    /// Whether a connection may subscribe to another channel, and to this one.
    fn check_subscription(&self, connection: &Conn, channel: &ChannelName) -> Result<(), EventError> {
        if connection.memberships.borrow().len() >= CHANNELS_PER_CONNECTION_MAX {
            let channel = channel.to_string();
            return Err(EventError::TooManyChannels { channel, most: CHANNELS_PER_CONNECTION_MAX });
        }
        if self.grants.borrow().get(&connection.slot).is_some_and(|grant| !grant.allows(channel.as_str())) {
            return Err(EventError::Forbidden(channel.to_string()));
        }
        Ok(())
    }

    /// Publishes a client's message once per room: to the room that it names; else to all rooms
    /// that it joined by name, and to `all` only if the policy says so.
    fn say(&self, connection: &Conn, message: &str, channel: Option<&str>) -> Result<(), EventError> {
        let policy = self.engine.live().say;
        let is_published = |channel: &ChannelName| match policy {
            SayPolicy::Off => false,
            SayPolicy::Rooms => !channel.is_all(),
            SayPolicy::All => true,
        };
        let channels = if let Some(name) = channel {
            let channel = channel_name(name)?;
            if !self.channels.borrow().has(&channel, connection) {
                return Err(EventError::NotSubscribed(channel.to_string()));
            }
            if !is_published(&channel) {
                return Err(EventError::SayDisabled(channel.to_string()));
            }
            vec![channel]
        } else {
            let mut channels = self.channels.borrow().of(connection);
            channels.retain(is_published);
            channels
        };
        let grants = self.grants.borrow();
        let sub = grants.get(&connection.slot).and_then(|grant| grant.user.as_deref());
        if sub.is_some_and(|sub| event::is_reserved_name(sub) || !event::fits_name(sub)) {
            return Err(EventError::UnusableSub);
        }
        self.says.set(self.says.get() + 1);
        let name = connection.name.take();
        let user = sub.or(name.as_deref().map(Box::as_ref)).unwrap_or(NAMELESS);
        let mut result = Ok(());
        for channel in channels {
            let frame = event::chat_msg(user, message, channel.as_str());
            let origin = Origin::Connection { id: connection.id };
            let overloaded = || EventError::Overloaded(channel.to_string());
            // A drain rejects as well, but then the client gets a close frame soon.
            let publication = Publication { channel: channel.clone(), frame, origin, receipt: None };
            result = result.and(self.engine.publish(publication).map_err(|_| overloaded()));
        }
        connection.name.set(name);
        result
    }

    /// Sends a frame to one client, after all earlier frames.
    pub(super) fn answer(&self, connection: &Rc<Conn>, frame: Frame) {
        connection.catch_up();
        let batch = Rc::new(Batch::answer(frame, self.answers.clone()));
        let bound = match connection.role {
            Role::Events => self.bound().of_answers(),
            // An echo connection is not read while its answers wait, so the size of one read is the
            // bound.
            Role::Echo => Bound { bytes_max: usize::MAX, ..self.bound() },
        };
        self.answers.matched(1);
        let sent = match connection.mailbox() {
            // The messages in the mailbox come first. An echo connection has none there.
            Some(mailbox) if connection.role == Role::Events && connection.phase() == Phase::Open => {
                Sent::Part(mailbox.offer(&batch, bound))
            }
            _ => connection.send(&batch, bound),
        };
        match sent {
            Sent::All => self.answers.delivered(1),
            Sent::Part(offered) if offered.overflow => self.end(connection, CloseReason::Slow),
            Sent::Part(_) => {}
            Sent::Gone => {
                self.answers.dropped(DropReason::Closed, 1);
                self.end(connection, CloseReason::Disconnected);
            }
        }
    }
}

fn channel_name(name: &str) -> Result<ChannelName, EventError> {
    ChannelName::new(name).map_err(|invalid| EventError::InvalidChannel(invalid.to_string()))
}
