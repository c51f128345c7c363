//! Merges what the user wrote into a [`Config`]: flags over environment over file over defaults.

use std::path::Path;
use std::ptr;

use ring::digest::{Digest, SHA256, digest};

use super::error::Written;
use super::{Config, ConfigError, Flags, Form, Origin, SETTINGS, Setting, SettingsError, file};
use crate::files;
use crate::jwt::TokenKey;
#[cfg(feature = "tls")]
use crate::tls::Tls;

/// The value of a setting that is in effect.
#[derive(Clone, Debug)]
pub struct Effective {
    /// Which setting.
    pub setting: &'static Setting,
    /// Its text, as the user wrote it.
    pub text: String,
    /// Where.
    pub origin: Origin,
}

impl Effective {
    fn default_of(setting: &'static Setting) -> Self {
        Self { setting, text: setting.default.to_owned(), origin: Origin::Default }
    }

    fn written(&self) -> Written {
        Written::new(self.setting, &self.text, &self.origin)
    }

    /// Its flag, variable or key, whichever the user wrote.
    fn name(&self) -> String {
        match &self.origin {
            Origin::Flag | Origin::Default => format!("--{}", self.setting.flag),
            Origin::Variable(name) => name.clone(),
            Origin::File { path, line, key } => format!("{}:{line}: {key}", path.display()),
        }
    }
}

/// Settings that work together.
#[derive(Debug)]
pub struct Loaded {
    /// Their values.
    pub config: Config,
    /// The origin of each setting, in the order of [`SETTINGS`].
    pub effective: Vec<Effective>,
    /// The digest of each file that a setting names, by its flag.
    pub(super) contents: Vec<(&'static str, Digest)>,
}

/// Settings that exclude each other, since each gives the same value.
const ALTERNATIVES: [&[&str]; 2] = [&["token", "token-file"], &["jwt-secret", "jwt-secret-file", "jwt-key"]];

/// Merges, reads the files that settings name, and checks.
///
/// # Errors
/// One line that names the flag, the variable or the line of the file that the user wrote.
pub fn load(flags: &Flags) -> Result<Loaded, SettingsError> {
    let in_file = match &flags.file {
        Some((path, origin)) => {
            let written = match origin {
                Origin::Variable(name) => format!("{name}={}", path.display()),
                _ => format!("--config {}", path.display()),
            };
            let failed = |source| SettingsError::ConfigFile { written, source };
            file::parse(&files::read_text(path).map_err(failed)?, path)?
        }
        None => Vec::new(),
    };
    let written = |setting: &'static Setting| {
        let all = flags.written.iter().chain(&in_file).filter(|(of, ..)| ptr::eq(*of, setting));
        all.max_by_key(|(.., origin)| origin.rank())
    };
    let effective = SETTINGS.iter().map(|setting| match written(setting) {
        Some((_, text, origin)) => Effective { setting, text: text.clone(), origin: origin.clone() },
        None => Effective::default_of(setting),
    });
    let mut loaded = Loaded { config: Config::default(), effective: effective.collect(), contents: Vec::new() };
    loaded.choose_alternatives()?;
    for effective in &loaded.effective {
        let Effective { setting, text, origin } = effective;
        let wrong = |reason: String| SettingsError::Value { written: effective.written(), reason };
        if *origin != Origin::Default && text.is_empty() && setting.form != Form::List {
            return Err(wrong("it is empty: leave it out, or set a value".to_owned()));
        }
        (setting.set)(&mut loaded.config, text).map_err(wrong)?;
    }
    loaded.read_files()?;
    loaded.config.check().map_err(|source| loaded.contradiction(source))?;
    Ok(loaded)
}

impl Loaded {
    /// The flag, the variable or the key that the user wrote for a setting, to name it in an error.
    ///
    /// # Panics
    /// When there is no such flag.
    #[must_use]
    pub fn name_of(&self, flag: &str) -> String {
        self.of(flag).name()
    }

    /// The effective value of a flag.
    pub(super) fn of(&self, flag: &str) -> &Effective {
        self.effective.iter().find(|effective| effective.setting.flag == flag).expect("every setting has a value")
    }

    /// Names what the user wrote, where the sentence names a flag that he did not write.
    fn contradiction(&self, source: ConfigError) -> SettingsError {
        let written = source.flags.iter().map(|flag| self.of(flag)).find(|of| of.origin != Origin::Default);
        let written = written.filter(|of| of.origin != Origin::Flag).map(Effective::written);
        SettingsError::Contradiction { written, source }
    }

    /// Of two settings that exclude each other, the one with the overriding origin counts.
    fn choose_alternatives(&mut self) -> Result<(), SettingsError> {
        for flags in ALTERNATIVES {
            let rank = |flag: &&&'static str| self.of(flag).origin.rank();
            let most = flags.iter().map(|flag| rank(&flag)).max().unwrap_or(0);
            let mut given = flags.iter().filter(|flag| rank(flag) == most);
            if let (1.., Some(first), Some(second)) = (most, given.next(), given.next()) {
                let problem = format!("--{second} and --{first} exclude each other: leave one of them out");
                return Err(self.contradiction(ConfigError::new(&[second, first], problem)));
            }
            for effective in &mut self.effective {
                if flags.contains(&effective.setting.flag) && effective.origin.rank() < most {
                    *effective = Effective::default_of(effective.setting);
                }
            }
        }
        Ok(())
    }

    /// Reads tokens, keys and certificates.
    fn read_files(&mut self) -> Result<(), SettingsError> {
        let mut contents = Vec::new();
        let mut note = |flag, content: &[u8]| contents.push((flag, digest(&SHA256, content)));
        if let Some(path) = &self.config.token_file {
            let text = self.read_text("token-file", path)?;
            note("token-file", text.trim().as_bytes());
            self.config.token = Some(text.trim().into());
        }
        let secret = match (&self.config.jwt_secret, &self.config.jwt_secret_file) {
            (Some(secret), _) => Some(secret.clone()),
            (None, Some(path)) => {
                let text = self.read_text("jwt-secret-file", path)?;
                let secret = text.trim_end_matches(['\r', '\n']);
                note("jwt-secret-file", secret.as_bytes());
                Some(secret.into())
            }
            (None, None) => None,
        };
        self.config.subscriber_key = match (secret, &self.config.jwt_key) {
            (Some(secret), _) => Some(TokenKey::from_secret(&secret)),
            (None, Some(path)) => {
                let (pem, key) = self.read_key(path)?;
                note("jwt-key", &pem);
                Some(key)
            }
            (None, None) => None,
        }
        .map(|key| key.with_leeway(self.config.token_leeway));
        #[cfg(feature = "tls")]
        match (&self.config.tls_cert, &self.config.tls_key) {
            (Some(cert), Some(key)) => {
                for (flag, path) in [("tls-cert", cert), ("tls-key", key)] {
                    // An error shows again below.
                    note(flag, &files::read(path).unwrap_or_default());
                }
                let failed = |source| {
                    let names = format!("{} and {}", self.name_of("tls-cert"), self.name_of("tls-key"));
                    SettingsError::Tls { names, source: Box::new(source) }
                };
                self.config.tls = Some(Tls::load(cert, key).map_err(failed)?.into());
            }
            (None, None) => {}
            (cert, _) => {
                let (given, missing) = if cert.is_some() { ("tls-cert", "tls-key") } else { ("tls-key", "tls-cert") };
                let problem = format!("--{given} needs --{missing}: set it, too");
                return Err(self.contradiction(ConfigError::new(&[given], problem)));
            }
        }
        self.contents = contents;
        Ok(())
    }

    /// The text of a file that has to have some.
    fn read_text(&self, flag: &'static str, path: &Path) -> Result<String, SettingsError> {
        let written = || self.of(flag).written();
        let text = files::read_text(path).map_err(|source| SettingsError::File { written: written(), source })?;
        if text.trim().is_empty() {
            return Err(SettingsError::Content { written: written(), reason: "the file is empty".to_owned() });
        }
        Ok(text)
    }

    /// The key of a file, and its PEM text.
    fn read_key(&self, path: &Path) -> Result<(Vec<u8>, TokenKey), SettingsError> {
        let written = || self.of("jwt-key").written();
        let pem = files::read(path).map_err(|source| SettingsError::File { written: written(), source })?;
        let key = TokenKey::from_pem(&pem)
            .map_err(|error| SettingsError::Content { written: written(), reason: error.to_string() })?;
        Ok((pem, key))
    }
}
