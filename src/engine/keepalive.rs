//! Keepalive: one sweep over the shard's connections, in place of a timer for each.
//!
//! A client that is silent for [`Config::ping_interval`] gets a ping; without an answer within
//! [`Config::idle_timeout`] it is closed. Any bytes from the client count as an answer. A
//! connection with a backlog gets no ping and is not closed here: its socket is full, and the
//! kernel ends it when the client stops taking bytes ([`Config::write_timeout`]). On a slow link a
//! ping may take long, because it is queued behind bytes in the kernel. As long as the client
//! acknowledges those bytes, it is not closed.
//!
//! Time is counted in sweeps, so that a connection needs three bytes for it; see `conn`.

use std::convert::Infallible;
use std::future::pending;
use std::rc::Rc;
use std::time::Duration;

use tokio::task::yield_now;
use tokio::time::sleep;

use super::shard::{Conn, Shard};
use crate::close::CloseReason;
use crate::conn::{Liveness, Phase};
use crate::engine::connections::MESSAGES_PER_CALL;
use crate::engine::scheduler::PASS_CHUNK;
use crate::settings::Config;

/// The longest time between two sweeps: the longest delay of a ping or a close.
const SWEEP_INTERVAL_MAX: Duration = Duration::from_secs(1);
/// The shortest time between two sweeps, which bounds their CPU time.
const SWEEP_INTERVAL_MIN: Duration = Duration::from_millis(10);

/// Most sweeps of a timeout: a connection counts them in 16 bits.
const SWEEPS_MAX: u32 = 60_000;

/// How long a connection may be silent, in sweeps.
struct Limits {
    ping_after: u16,
    end_after: u16,
}

impl Shard {
    /// Sends pings to silent clients and closes those that do not answer, for as long as it is
    /// polled.
    pub(super) async fn keep_alive(self: &Rc<Self>) -> Infallible {
        let Config { ping_interval, idle_timeout, .. } = self.engine.config;
        let Some(ping_interval) = ping_interval else { pending().await };
        let sweep_interval = (ping_interval.min(idle_timeout) / 4).clamp(SWEEP_INTERVAL_MIN, SWEEP_INTERVAL_MAX);
        // Keeps both timeouts within SWEEPS_MAX.
        let sweep_interval = sweep_interval.max(ping_interval.max(idle_timeout) / SWEEPS_MAX);
        let sweeps = |time: Duration| time.div_duration_f64(sweep_interval).ceil() as u16;
        let limits = Limits { ping_after: sweeps(ping_interval), end_after: sweeps(idle_timeout) };
        loop {
            sleep(sweep_interval).await;
            self.sweep.set(self.sweep.get().wrapping_add(1));
            let slots = self.connections.borrow().capacity();
            for slot in 0..slots {
                let connection = self.connections.borrow().get(slot).cloned();
                if let Some(connection) = connection {
                    self.check_liveness(&connection, &limits);
                    self.pause_if_due().await;
                }
                if slot % PASS_CHUNK == PASS_CHUNK - 1 {
                    yield_now().await;
                }
            }
        }
    }

    /// Sends a ping to `connection` or closes it, if that is due.
    fn check_liveness(&self, connection: &Rc<Conn>, limits: &Limits) {
        if connection.phase() != Phase::Open {
            return;
        }
        match connection.liveness(self.sweep.get(), limits.ping_after, limits.end_after) {
            Liveness::Alive => {}
            _ if connection.has_backlog() => {}
            Liveness::PingDue => {
                self.spend(MESSAGES_PER_CALL);
                if !connection.send_ping(self.sweep.get()) {
                    self.end(connection, CloseReason::Disconnected);
                }
            }
            Liveness::TimedOut if connection.socket().is_taking(self.engine.config.idle_timeout) => {}
            Liveness::TimedOut => self.end(connection, CloseReason::PingTimeout),
        }
    }
}
