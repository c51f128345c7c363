//! Decides which settings of a running server change on a reload. Pure.

use super::{ConfigError, Form, Loaded, Setting};

/// The difference between the settings in effect and others.
#[derive(Debug)]
pub struct Reload {
    /// The settings that are in effect after it: only those that can change have changed.
    pub loaded: Loaded,
    /// Settings that change, each with its earlier and its new value, and files whose content does.
    pub changes: Vec<String>,
    /// The same for settings that only a restart can change.
    pub needs_restart: Vec<String>,
}

impl Loaded {
    /// Compares with settings that were loaded later.
    ///
    /// # Errors
    /// When the new values contradict those that cannot change.
    pub fn reload(&self, fresh: &Self) -> Result<Reload, ConfigError> {
        let (mut changes, mut needs_restart) = (Vec::new(), Vec::new());
        let mut config = self.config.clone();
        let mut effective = self.effective.clone();
        let (had_tls, has_tls) = (self.config.tls.is_some(), fresh.config.tls.is_some());
        for (current, new) in effective.iter_mut().zip(&fresh.effective) {
            let setting = new.setting;
            if current.text == new.text {
                current.origin = new.origin.clone();
                continue;
            }
            let change =
                format!("--{} {} -> {}", setting.flag, shown(setting, &current.text), shown(setting, &new.text));
            // A listener speaks TLS from its start, or never.
            let begins_tls = setting.flag.starts_with("tls-") && had_tls != has_tls;
            if setting.reloads && !begins_tls {
                // It was read without an error when it was loaded.
                let _ = (setting.set)(&mut config, &new.text);
                changes.push(change);
                *current = new.clone();
            } else {
                needs_restart.push(change);
            }
        }
        for (flag, content) in &fresh.contents {
            let earlier = self.contents.iter().find(|(of, _)| of == flag).map(|(_, content)| content.as_ref());
            if self.of(flag).text == fresh.of(flag).text && earlier != Some(content.as_ref()) {
                changes.push(format!("the content of --{flag}"));
            }
        }
        config.token.clone_from(&fresh.config.token);
        config.subscriber_key.clone_from(&fresh.config.subscriber_key);
        config.check()?;
        #[cfg(feature = "tls")]
        if let (Some(current), Some(new)) = (&config.tls, &fresh.config.tls)
            && changes.iter().any(|change| change.contains("--tls-"))
        {
            current.adopt(new);
        }
        let contents = fresh.contents.clone();
        Ok(Reload { loaded: Self { config, effective, contents }, changes, needs_restart })
    }
}

/// A value in the log.
fn shown<'a>(setting: &Setting, text: &'a str) -> &'a str {
    match setting.form {
        _ if text.is_empty() => "(not set)",
        Form::Secret => "***",
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Config, Flags, Origin, load};
    use super::*;

    fn loaded(written: &[(&str, &str)]) -> Loaded {
        let written =
            written.iter().map(|(flag, text)| (Setting::of(flag), (*text).to_owned(), Origin::Flag)).collect();
        load(&Flags { written, file: None }).unwrap()
    }

    #[test]
    fn nothing_changes_without_a_change() {
        let reload = loaded(&[("tick", "3s")]).reload(&loaded(&[])).unwrap();
        assert_eq!((reload.changes, reload.needs_restart), (vec![], vec![]));
    }

    #[test]
    fn what_can_change_does_and_the_rest_is_named() {
        let old = loaded(&[("max-per-address", "3"), ("shards", "2"), ("token", "one")]);
        let new = loaded(&[("max-connections", "100"), ("shards", "4"), ("token", "two")]);
        let Reload { loaded, changes, needs_restart } = old.reload(&new).unwrap();
        let expected = ["--token *** -> ***", "--max-connections 0 -> 100", "--max-per-address 3 -> 0"];
        assert_eq!(changes, expected);
        assert_eq!(needs_restart, ["--shards 2 -> 4"]);
        let Config { connections_max, per_address_max, shards, token, .. } = &loaded.config;
        assert_eq!((*connections_max, *per_address_max, shards.get()), (100, None, 2));
        assert_eq!(token.as_deref(), Some("two"));
        // A restart is still needed at the next reload.
        let again = loaded.reload(&new).unwrap();
        assert_eq!((again.changes, again.needs_restart), (vec![], vec!["--shards 2 -> 4".to_owned()]));
    }

    #[test]
    fn what_cannot_work_together_changes_nothing() {
        let old = loaded(&[("outbox-bytes", "100KiB")]);
        let mut new = loaded(&[("token", "two")]);
        new.config.token = Some("".into());
        assert!(old.reload(&new).unwrap_err().to_string().contains("--token"));
        assert_eq!(old.config.token, None);
    }

    #[test]
    fn a_file_whose_content_has_changed_is_named() {
        let folder = std::env::temp_dir().join(format!("hydrant-reload-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let put = |name: &str, content: &str| {
            std::fs::write(folder.join(name), content).unwrap();
            folder.join(name).to_str().unwrap().to_owned()
        };
        let key = |name: &str| std::fs::read_to_string(format!("tests/it/keys/{name}-public.pem")).unwrap();
        let (token, secret) = (put("token", "one"), put("secret", "a secret"));
        let public = put("key", &key("rsa"));
        let changes = |old: &Loaded, new: &[(&str, &str)]| {
            let reload = old.reload(&loaded(new)).unwrap();
            assert_eq!(reload.loaded.config.token, loaded(new).config.token);
            reload.changes
        };
        let with_secret = [("token-file", &*token), ("jwt-secret-file", &secret)];
        let old = loaded(&with_secret);
        assert_eq!(changes(&old, &with_secret), [""; 0]);
        put("token", " one\n");
        assert_eq!(changes(&old, &with_secret), [""; 0], "white space does not count");
        put("token", "two");
        assert_eq!(changes(&old, &with_secret), ["the content of --token-file"]);
        let leeway = [("token-file", &*token), ("jwt-secret-file", &secret), ("token-leeway", "9s")];
        assert_eq!(changes(&old, &leeway), ["--token-leeway 5s -> 9s", "the content of --token-file"]);
        put("secret", "another secret");
        let both = ["the content of --token-file", "the content of --jwt-secret-file"];
        assert_eq!(changes(&old, &with_secret), both);
        let with_key = [("jwt-key", &*public)];
        let old = loaded(&with_key);
        put("key", &key("ec"));
        assert_eq!(changes(&old, &with_key), ["the content of --jwt-key"]);
        // Another path is named as such.
        let moved = put("moved", "three");
        let old = loaded(&[("token-file", &token)]);
        assert_eq!(changes(&old, &[("token-file", &moved)]), [format!("--token-file {token} -> {moved}")]);
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
