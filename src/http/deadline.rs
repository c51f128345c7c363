//! The moments at which an HTTP connection has to end, and what is said then.
//!
//! Owns the timeouts of request heads and of idle connections, the wait of a drain, and the last
//! response to a request that has not arrived whole.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Poll, ready};
use std::time::Duration;

use hyper::StatusCode;
use tokio::time::{Instant, Sleep, sleep};

use super::conn_table::{HttpConn, Progress};
use super::{Answer, HttpListener, answer};

/// How long an idle connection lives beyond the time that `Keep-Alive` announces: a request that
/// was sent in time arrives.
pub(super) const KEEP_ALIVE_GRACE: Duration = Duration::from_secs(2);
/// How long a drain waits for the next request of a kept connection, and for the rest of one that
/// has begun: a publisher that sends one a second gets its last answer, with `Connection: close`.
const LAST_REQUEST_TIMEOUT: Duration = Duration::from_secs(1);

/// Why a connection has to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// It was closed to make room.
    Evicted,
    /// The server drains, and no request has come.
    Draining,
    /// Its request head, or its next request, has not arrived in time.
    Timeout,
}

/// The timer of one connection. It is set for a deadline that is nearer than its own, and looks at
/// the deadline again when it is over: a request that sets the deadline back costs nothing.
pub(super) fn deadline_timer(listener: &HttpListener) -> Sleep {
    sleep(listener.engine.live().handshake_timeout)
}

/// Waits until a connection has to end.
pub(super) async fn time_is_up(listener: &HttpListener, conn: &HttpConn, mut timer: Pin<&mut Sleep>) -> Over {
    let own_deadline = || match conn.progress() {
        // It had something to read when it was evicted.
        Progress::Head if conn.is_evicted() => Some(conn.since() + LAST_REQUEST_TIMEOUT),
        Progress::New | Progress::Head => Some(conn.since() + listener.engine.live().handshake_timeout),
        Progress::Sending => Some(conn.since() + listener.engine.config.write_timeout),
        Progress::Idle if !conn.ends_soon() => {
            Some(conn.since() + listener.engine.live().keep_alive_timeout + KEEP_ALIVE_GRACE)
        }
        _ => None,
    };
    let (mut evicted, mut draining) = (pin!(conn.evicted()), pin!(listener.engine.draining()));
    let mut drain_deadline = None;
    poll_fn(|context| {
        let is_watched = !conn.ends_soon() || conn.progress() == Progress::Sending;
        if is_watched && evicted.as_mut().poll(context).is_ready() {
            return Poll::Ready(Over::Evicted);
        }
        if drain_deadline.is_none()
            && let Poll::Ready(since) = draining.as_mut().poll(context)
        {
            drain_deadline = Some(since + LAST_REQUEST_TIMEOUT);
        }
        // The response to a request that is being answered says that it is the last one.
        let drain_deadline = drain_deadline.filter(|_| is_watched && conn.progress() != Progress::Busy);
        let deadlines = [(own_deadline(), Over::Timeout), (drain_deadline, Over::Draining)];
        let first = deadlines.into_iter().filter_map(|(deadline, over)| Some((deadline?, over)));
        let Some((deadline, over)) = first.min_by_key(|&(deadline, _)| deadline) else { return Poll::Pending };
        loop {
            if timer.is_elapsed() || timer.deadline() > deadline {
                timer.as_mut().reset(deadline);
            }
            ready!(timer.as_mut().poll(context));
            if Instant::now() >= deadline {
                return Poll::Ready(over);
            }
        }
    })
    .await
}

/// The response to a request that has begun and is not whole. Every earlier response has left.
pub(super) fn last_words(listener: &HttpListener, conn: &HttpConn, over: Over) -> Option<Answer> {
    let has_begun = matches!(conn.progress(), Progress::Head | Progress::Body);
    let answer = match over {
        _ if !has_begun || conn.has_said_last() => return None,
        Over::Timeout => {
            let sentence = "the request did not arrive in time (--handshake-timeout)";
            answer::text(StatusCode::REQUEST_TIMEOUT, sentence)
        }
        Over::Draining => answer::draining(),
        // Counted as rejected when it was evicted.
        Over::Evicted => answer::unavailable("the server has too many unfinished requests: try again later"),
    };
    Some(answer::last(listener, conn.peer.address, answer))
}
