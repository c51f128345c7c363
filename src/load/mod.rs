//! `hydrant load`: loads any WebSocket server that sends a posted body to its subscribers, and
//! counts exactly which messages arrive.
//!
//! One process with one thread and one mio event loop. It does as little work per delivery as
//! possible, so that a measurement shows the server. It uses only `settings` of this library, and
//! nothing in the server uses it.
//!
//! | file | owns |
//! |---|---|
//! | `options.rs`, `target.rs` | the command line; URLs |
//! | `fanout.rs`, `churn.rs`, `slow.rs` | the load that publishes, step by step: [`Fanout`] |
//! | `chat.rs` | the article's test |
//! | `client_pool.rs`, `connect.rs` | the clients' connections; their handshakes |
//! | `frames.rs`, `frame_handler.rs` | parsing the frames of a server; the trait that gets them |
//! | `subscribers.rs`, `delivery_tracker.rs` | the messages that each subscriber has received |
//! | `message.rs` | the tag in each message |
//! | `publisher.rs`, `http_publisher.rs`, `say_publisher.rs`, `http.rs` | sending the messages |
//! | `schedule.rs`, `publish_plan.rs`, `latency.rs` | when messages are due; how long they took |
//! | `stream.rs`, `tls.rs` | a socket, with or without TLS |
//! | `event_loop.rs` | the clock and the wait |
//! | `process.rs`, `environment.rs` | the kernel's figures of a process; machine and commit |
//! | `server_sample.rs`, `admin.rs` | cost and memory of the server; its administrative port |
//! | `run.rs`, `error.rs` | one load from start to report; its errors |
//! | `counted.rs`, `report.rs`, `report_text.rs` | the figures; as JSON, and as one screen |
//! | `progress.rs`, `secrets.rs` | the progress output; the removal of secrets from all output |
//!
//! With a rate, latency counts from the time at which a message was due, not from the time at which
//! it could be sent. So latency includes every delay that a slow server causes. If more than a
//! hundredth of the messages could not be sent within the duration, the run fails; without a
//! duration they are all sent, and only the latency shows how late. At every other pace a message
//! is due when it is sent: the next one waits for the server, and latency does not include that
//! wait.

mod admin;
mod chat;
mod churn;
mod client_pool;
mod connect;
mod counted;
mod delivery_tracker;
pub mod environment;
mod error;
mod event_loop;
mod fanout;
mod frame_handler;
mod frames;
pub mod http;
mod http_publisher;
mod latency;
mod message;
mod options;
pub mod process;
mod progress;
mod publish_plan;
mod publisher;
mod report;
mod report_text;
mod run;
mod say_publisher;
mod schedule;
mod secrets;
mod server_sample;
mod slow;
mod stream;
mod subscribers;
mod target;
#[cfg_attr(not(feature = "tls"), path = "no_tls.rs")]
mod tls;

use std::time::Duration;

pub use self::counted::Counted;
pub use self::delivery_tracker::Counts;
pub use self::error::LoadError;
pub use self::fanout::Fanout;
pub use self::latency::{Latencies, Summary};
pub use self::message::TAG_BYTES;
pub use self::options::{Arguments, Options, Pace, PublishBy, Scenario};
pub use self::report::{ClientFigures, Report};
pub use self::run::run;
pub use self::target::Target;

/// How long the server may finish its work before each sample. An idle server spends nothing in it.
const QUIET_TIME: Duration = Duration::from_millis(20);
