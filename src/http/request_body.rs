//! The body of a request that hyper reads, shared by its handler and its connection.
//!
//! Owns the answer to whether the body was read whole: the rest of one that was not would be taken
//! for the next request. Promises that a connection can be kept behind a rejection whose body is
//! short, as it is kept when the same request needs no hyper (`fast_path`).

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::timeout;

/// Longest rest of a body that is read and thrown away, in bytes. For a longer one a new connection
/// is cheaper.
const DISCARD_BYTES_MAX: usize = 16 * 1024;
/// How long an answer waits for such a rest.
const DISCARD_TIMEOUT: Duration = Duration::from_millis(500);

/// See the module.
#[derive(Clone, Debug)]
pub(super) struct RequestBody(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    incoming: Incoming,
    is_read: bool,
}

impl RequestBody {
    pub(super) fn new(incoming: Incoming) -> Self {
        let is_read = incoming.is_end_stream();
        Self(Arc::new(Mutex::new(State { incoming, is_read })))
    }

    /// Whether nothing of it is left.
    pub(super) fn is_read(&self) -> bool {
        self.with(|state| state.is_read)
    }

    /// Reads the rest and throws it away, if it is short and arrives soon; whether nothing is left.
    pub(super) async fn discard(mut self) -> bool {
        if self.is_read() {
            return true;
        }
        if self.size_hint().lower() > DISCARD_BYTES_MAX as u64 {
            return false;
        }
        let rest = async {
            let mut bytes = 0;
            while let Some(frame) = poll_fn(|context| Pin::new(&mut self).poll_frame(context)).await {
                // An error means that the client has gone, or that the rest cannot be read.
                let Ok(frame) = frame else { return false };
                bytes += frame.data_ref().map_or(0, Bytes::len);
                if bytes > DISCARD_BYTES_MAX {
                    return false;
                }
            }
            true
        };
        timeout(DISCARD_TIMEOUT, rest).await.unwrap_or(false)
    }

    fn with<T>(&self, with: impl FnOnce(&mut State) -> T) -> T {
        // Nothing under the lock can be left half done.
        with(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        self.with(|state| {
            let frame = ready!(Pin::new(&mut state.incoming).poll_frame(context));
            state.is_read = frame.is_none();
            Poll::Ready(frame)
        })
    }

    fn is_end_stream(&self) -> bool {
        self.with(|state| state.incoming.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|state| state.incoming.size_hint())
    }
}
