//! Settings: how a user sets something, and the [`Config`] that the server is built from.
//!
//! Each setting is declared once, in `declared`: flag, default, unit, help, group, and whether a
//! reload can change it. The environment variable and the key of the file follow from the flag:
//! `--max-connections` is `HYDRANT_MAX_CONNECTIONS` and `max_connections`. [`load()`] merges flags
//! over environment over file over defaults. [`Config::check`] rejects values that contradict each
//! other, so that nothing above this module has to. Nothing here opens a socket or starts a thread.

mod check;
mod declared;
mod error;
mod file;
mod flags;
mod listen;
mod load;
mod print;
mod reload;
mod value;

use std::fmt;

use clap::ValueEnum;

pub use check::{ConfigError, FRAME_EXTRA_BYTES};
pub use declared::{Config, SETTINGS};
pub use error::{FileError, Origin, SettingsError};
pub use flags::{Flags, misspelt_variables};
pub(crate) use listen::FIRST_PASSED_FD;
pub use listen::ListenAddress;
pub use load::{Effective, Loaded, load};
pub use print::template;
pub use reload::Reload;
pub use value::{Secret, TrustedProxy, is_subprotocol, parse_bytes, parse_duration};

/// One setting, however the user writes it.
#[derive(Debug)]
pub struct Setting {
    /// Its flag without the dashes, for example `max-connections`.
    pub flag: &'static str,
    /// Earlier names of the flag, which still work and are not shown.
    pub was: &'static [&'static str],
    /// The heading that it has in `--help`.
    pub group: Group,
    /// The default value, as a user would write it; empty for none.
    pub default: &'static str,
    /// The unit, or the possible values.
    pub unit: &'static str,
    /// One or a few sentences.
    pub help: &'static str,
    /// How its value is written in the file.
    pub form: Form,
    /// SIGHUP changes it in a running server.
    pub reloads: bool,
    /// Reads a text into the field of the [`Config`].
    pub set: fn(&mut Config, &str) -> Result<(), String>,
}

/// How a value is written in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A number, or a text with a unit.
    Number,
    /// A text.
    Text,
    /// A text that nothing shows.
    Secret,
    /// A list of texts.
    List,
    /// `true` or `false`.
    Switch,
}

/// The headings of `--help`, in their order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[expect(missing_docs, reason = "headings")]
pub enum Group {
    Listen,
    Proxies,
    Auth,
    Tls,
    Limits,
    SlowClients,
    Timeouts,
    Engine,
    Log,
}

impl Group {
    /// Its heading.
    #[must_use]
    pub fn heading(self) -> &'static str {
        match self {
            Self::Listen => "Listen",
            Self::Proxies => "Proxies and pages",
            Self::Auth => "Auth",
            Self::Tls => "TLS",
            Self::Limits => "Limits",
            Self::SlowClients => "Slow clients",
            Self::Timeouts => "Timeouts",
            Self::Engine => "Engine",
            Self::Log => "Log and profiles",
        }
    }
}

impl Setting {
    /// Its key in the file.
    #[must_use]
    pub fn key(&self) -> String {
        self.flag.replace('-', "_")
    }

    /// Its environment variable.
    #[must_use]
    pub fn variable(&self) -> String {
        variable(self.flag)
    }

    /// Its sentences in one line.
    pub(super) fn help_line(&self) -> String {
        self.help.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// The setting of a flag.
    ///
    /// # Panics
    /// When there is no such flag.
    #[must_use]
    pub fn of(flag: &str) -> &'static Self {
        SETTINGS.iter().find(|setting| setting.flag == flag).unwrap_or_else(|| panic!("no setting is called {flag}"))
    }
}

/// The environment variable of a flag.
fn variable(flag: &str) -> String {
    format!("HYDRANT_{}", flag.replace('-', "_").to_uppercase())
}

/// The strategies; the contract of each is in `fanout`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Strategy {
    /// Write straight to each socket, what is pending joined into one write.
    Direct,
    /// Add to the backlog of each connection and wake its writer task, which joins what waits into
    /// one write.
    Wake,
    /// One ring per shard, from which the writer task of each connection takes what it is
    /// subscribed to; for shards with few channels.
    Ring,
    /// A bounded queue and a writer task per connection, one write for each message: the baseline.
    Mailbox,
}

impl fmt::Display for Strategy {
    /// As the user writes it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().expect("no strategy is hidden").get_name())
    }
}

/// The treatment of a client whose backlog is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SlowPolicy {
    /// Close the connection with 1013; what was pending for it counts as dropped.
    Disconnect,
    /// Keep what waits, drop the new frame.
    DropNewest,
    /// Drop the frames that have waited longest until the new one fits.
    DropOldest,
}

/// The treatment of a client that sends too fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TooFastPolicy {
    /// Close the connection with 1008.
    Disconnect,
    /// Drop its messages, and its pings, until it is slow enough again; they are counted.
    Drop,
}

/// Whom a client's `SAY` reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SayPolicy {
    /// Nobody: accepted and counted.
    Off,
    /// The rooms that the sender joined by name.
    Rooms,
    /// The rooms, and `all` for a sender who is in it.
    All,
}

/// A listener, and which routes it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerConfig {
    /// Clients have to speak TLS.
    pub secure: bool,
    /// Only this machine can connect: it is a loopback address or a Unix socket.
    pub is_local: bool,
    /// It serves WebSockets.
    pub websockets: bool,
    /// It serves admin routes.
    pub admin: bool,
}

impl ListenerConfig {
    /// Whether its admin routes want a token, unless they are open to everybody: more than the
    /// programs of this machine reach them.
    #[must_use]
    pub fn needs_token(self) -> bool {
        self.websockets || !self.is_local
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_sound() {
        for setting in SETTINGS {
            let Setting { flag, default, unit, help, form, .. } = setting;
            (setting.set)(&mut Config::default(), default).unwrap();
            assert!(flag.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'), "{flag}");
            assert!(help.trim().ends_with('.') && (*form == Form::Switch) == unit.is_empty(), "{flag}");
            let same = |other: &&Setting| other.flag == *flag || other.was.contains(flag);
            assert_eq!(SETTINGS.iter().filter(same).count(), 1, "{flag}");
        }
        assert!(SETTINGS.is_sorted_by_key(|setting| setting.group));
        assert_eq!(Setting::of("max-connections").key(), "max_connections");
        assert_eq!(Setting::of("max-connections").variable(), "HYDRANT_MAX_CONNECTIONS");
    }
}
