//! The origin of a value, and the errors of settings.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::{ConfigError, Form, Setting};

/// Where the value of a setting was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// On the command line.
    Flag,
    /// In this environment variable.
    Variable(String),
    /// In the file of `--config`.
    File {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The key: the present or an earlier name.
        key: String,
    },
    /// Nowhere: it is the default.
    Default,
}

impl Origin {
    /// Which origin counts, of two that give a value: the larger.
    pub(super) fn rank(&self) -> u8 {
        match self {
            Self::Default => 0,
            Self::File { .. } => 1,
            Self::Variable(_) => 2,
            Self::Flag => 3,
        }
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flag => f.write_str("flag"),
            Self::Variable(name) => f.write_str(name),
            Self::File { path, line, .. } => write!(f, "{}:{line}", path.display()),
            Self::Default => f.write_str("default"),
        }
    }
}

/// The most similar of some names, if any is.
pub(super) fn nearest(name: &str, names: impl Iterator<Item = String>) -> Option<String> {
    /// Below this two names have little in common, by Jaro and Winkler.
    const SIMILAR: f64 = 0.8;
    let scored = names.map(|known| (strsim::jaro_winkler(name, &known), known));
    let best = scored.filter(|(score, _)| *score > SIMILAR).max_by(|(a, _), (b, _)| a.total_cmp(b));
    best.map(|(_, known)| known)
}

/// A value as the user wrote it, to begin an error with: the flag or the variable, and the text
/// unless it is secret.
#[derive(Debug)]
pub struct Written {
    setting: &'static Setting,
    text: Box<str>,
    origin: Box<Origin>,
}

impl Written {
    pub(super) fn new(setting: &'static Setting, text: &str, origin: &Origin) -> Self {
        let text = if setting.form == Form::Secret && !text.is_empty() { "***" } else { text };
        Self { setting, text: text.into(), origin: Box::new(origin.clone()) }
    }
}

impl fmt::Display for Written {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &*self.origin {
            Origin::Flag | Origin::Default => write!(f, "--{} {}", self.setting.flag, self.text),
            Origin::Variable(name) => write!(f, "{name}={}", self.text),
            Origin::File { path, line, key } => write!(f, "{}:{line}: {key} = {}", path.display(), self.text),
        }
    }
}

/// Why the settings cannot be used: one line that names what the user wrote.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A text is no value of its setting.
    #[error("{written}: {reason}")]
    Value {
        /// The text and its origin.
        written: Written,
        /// The value to write instead.
        reason: String,
    },
    /// Values contradict each other; names the first one that the user wrote.
    #[error("{}{source}", match written { Some(written) => format!("{written}: "), None => String::new() })]
    Contradiction {
        /// The text and its origin, unless the sentence says so itself.
        written: Option<Written>,
        /// The sentence.
        source: ConfigError,
    },
    /// A file that a setting names cannot be read.
    #[error("{written}: {source}: name a readable file")]
    File {
        /// The setting and its origin.
        written: Written,
        /// The kernel's error.
        source: io::Error,
    },
    /// A file that a setting names has something else in it.
    #[error("{written}: {reason}")]
    Content {
        /// The setting and its origin.
        written: Written,
        /// The error.
        reason: String,
    },
    /// A certificate or its key cannot be used.
    #[cfg(feature = "tls")]
    #[error("{names}: {source}")]
    Tls {
        /// The settings of both, as the user named them.
        names: String,
        /// The error.
        source: Box<crate::tls::TlsError>,
    },
    /// The file of `--config` cannot be read.
    #[error("{written}: {source}: name a readable file")]
    ConfigFile {
        /// The flag or the variable, and the path.
        written: String,
        /// The kernel's error.
        source: io::Error,
    },
    /// A line of that file is wrong.
    #[error(transparent)]
    Line(#[from] FileError),
}

/// A line of a file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}:{line}: {reason}", path.display())]
pub struct FileError {
    /// The file.
    pub path: PathBuf,
    /// The line, from 1.
    pub line: usize,
    /// The error, and the value to write instead.
    pub reason: String,
}
