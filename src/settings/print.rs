//! Settings as a file: the ones in effect, and a template with all of them.

use std::fmt::Write;

use super::{Form, Group, Loaded, Origin, SETTINGS, Setting};

/// Columns of the template.
const COLUMNS: usize = 100;

/// A text as a string of TOML.
fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' | '\\' => quoted.extend(['\\', character]),
            control if control.is_control() => {
                // Writing to a `String` does not fail.
                let _ = write!(quoted, "\\u{:04X}", u32::from(control));
            }
            other => quoted.push(other),
        }
    }
    quoted + "\""
}

impl Setting {
    /// A text of this setting as a value of TOML.
    fn in_file(&self, text: &str) -> String {
        match self.form {
            Form::Number if text.parse::<i64>().is_ok() => text.to_owned(),
            Form::Switch => (matches!(text, "true" | "1")).to_string(),
            Form::List if text.is_empty() => "[]".to_owned(),
            Form::List => {
                format!("[{}]", text.split(',').map(|item| quoted(item.trim())).collect::<Vec<_>>().join(", "))
            }
            Form::Number | Form::Text | Form::Secret => quoted(text),
        }
    }
}

/// A text as lines of comments.
fn comment(text: &str) -> String {
    let mut lines = vec![String::from("#")];
    for word in text.split_whitespace() {
        let line = lines.last_mut().expect("there is one");
        if line.len() + 1 + word.len() > COLUMNS {
            lines.push(format!("# {word}"));
        } else {
            line.push(' ');
            line.push_str(word);
        }
    }
    lines.join("\n")
}

/// A file of every setting with its help and its default, as a comment each: it sets nothing. A
/// setting without a default has its unit in place of a value, and one more `#`.
#[must_use]
pub fn template() -> String {
    let mut text = comment(
        "Settings of Hydrant. Each line with a default is a comment: remove the # and change the value. Flags and \
         environment variables go before this file: max_connections is --max-connections and HYDRANT_MAX_CONNECTIONS. \
         SIGHUP has the file read again; a setting with (reload) then changes in the running server. Sizes are bytes or \
         have units (\"64KiB\"); durations have units (\"3s\", \"500ms\").",
    ) + "\n";
    let mut group = None;
    for setting in SETTINGS {
        let Setting { group: of, form, default, unit, reloads, .. } = setting;
        if group.replace(*of) != Some(*of) {
            text += &format!("\n##### {} #####\n", of.heading());
        }
        let reload = if *reloads { " (reload)" } else { "" };
        let line = match form {
            Form::Text | Form::Secret if default.is_empty() => format!("##{} = {}", setting.key(), quoted(unit)),
            _ => format!("#{} = {}", setting.key(), setting.in_file(default)),
        };
        text += &format!("\n{}\n{line}\n", comment(&format!("{}{reload}", setting.help_line())));
    }
    text
}

impl Loaded {
    /// Every setting in effect and where it comes from, as a file; secrets are masked.
    #[must_use]
    pub fn print(&self) -> String {
        let mut text = String::new();
        let mut group: Option<Group> = None;
        for effective in &self.effective {
            let (setting, origin) = (effective.setting, &effective.origin);
            if group.replace(setting.group) != Some(setting.group) {
                text += &format!("{}# {}\n", if text.is_empty() { "" } else { "\n" }, setting.group.heading());
            }
            let key = setting.key();
            let line = match setting.form {
                _ if setting.flag == "admin-listen" => {
                    format!("{key} = {}", quoted(&self.config.admin_address().to_string()))
                }
                Form::Secret if !effective.text.is_empty() => format!("{key} = \"***\""),
                Form::Text | Form::Secret if effective.text.is_empty() => format!("#{key} is not set"),
                _ => format!("{key} = {}", setting.in_file(&effective.text)),
            };
            text += &match origin {
                Origin::Default => format!("{line:<40} # default\n"),
                Origin::Flag => format!("{line:<40} # --{}\n", setting.flag),
                other => format!("{line:<40} # {other}\n"),
            };
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Config, Flags, file, load};
    use super::*;

    #[test]
    fn the_template_sets_nothing_and_has_every_setting() {
        let template = template();
        assert!(file::parse(&template, Path::new("t")).unwrap().is_empty());
        for setting in SETTINGS {
            let key = setting.key();
            let is_of = |line: &&str| line.trim_start_matches('#').starts_with(&format!("{key} = "));
            assert_eq!(template.lines().filter(is_of).count(), 1, "{key}");
        }
        assert!(template.lines().all(|line| line.len() <= COLUMNS), "{template}");
    }

    #[test]
    fn the_template_without_its_marks_gives_the_defaults() {
        let is_value = |line: &&str| line.starts_with('#') && !line.starts_with("# ") && !line.starts_with("##");
        let values: Vec<_> = template().lines().filter(is_value).map(|line| line[1..].to_owned()).collect();
        let parsed = file::parse(&values.join("\n"), Path::new("t")).unwrap();
        assert_eq!(parsed.len(), values.len());
        assert!(parsed.len() > 30, "{parsed:?}");
        let mut config = Config::default();
        for (setting, text, _) in parsed {
            assert_eq!(text, setting.default, "{}", setting.flag);
            (setting.set)(&mut config, &text).unwrap();
        }
        assert_eq!(format!("{config:?}"), format!("{:?}", Config::default()));
    }

    #[test]
    fn what_is_in_effect_reads_as_a_file() {
        let flags = Flags {
            written: vec![
                (Setting::of("token"), "hidden".to_owned(), Origin::Flag),
                (
                    Setting::of("max-connections"),
                    "7".to_owned(),
                    Origin::Variable("HYDRANT_MAX_CONNECTIONS".to_owned()),
                ),
                (Setting::of("allow-origin"), "https://a.b,*".to_owned(), Origin::Flag),
            ],
            file: None,
        };
        let text = load(&flags).unwrap().print();
        let line =
            |key: &str| text.lines().find(|line| line.contains(key)).unwrap().split_whitespace().collect::<Vec<_>>();
        assert_eq!(line("token ="), ["token", "=", "\"***\"", "#", "--token"]);
        assert_eq!(line("max_connections"), ["max_connections", "=", "7", "#", "HYDRANT_MAX_CONNECTIONS"]);
        assert_eq!(line("allow_origin"), ["allow_origin", "=", "[\"https://a.b\",", "\"*\"]", "#", "--allow-origin"]);
        assert_eq!(line("tick"), ["tick", "=", "\"3s\"", "#", "default"]);
        assert_eq!(line("admin_listen"), ["admin_listen", "=", "\"127.0.0.1:3001\"", "#", "default"]);
        assert!(!text.contains("hidden"));
        let again = file::parse(&text, Path::new("t")).unwrap();
        assert!(again.iter().any(|(setting, text, _)| setting.flag == "allow-origin" && text == "https://a.b,*"));
    }

    #[test]
    fn any_text_can_be_quoted() {
        let text = "a \"b\" \\c\n\u{7f}é";
        let parsed = file::parse(&format!("jwt_secret = {}", quoted(text)), Path::new("t")).unwrap();
        assert_eq!(parsed[0].1, text);
    }
}
