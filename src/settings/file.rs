//! The settings of a file in TOML: keys are the flags with underscores, all at the top level.

use std::ops::Range;
use std::path::Path;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{FileError, nearest};
use super::{Form, Origin, SETTINGS, Setting};

/// The values of a file, each with its line.
///
/// # Errors
/// The first line that is no TOML, names no setting, or has no value of one.
pub(super) fn parse(text: &str, path: &Path) -> Result<Vec<(&'static Setting, String, Origin)>, FileError> {
    let line = |at: usize| text.as_bytes()[..at.min(text.len())].iter().filter(|byte| **byte == b'\n').count() + 1;
    let error = |at: usize, reason: String| FileError { path: path.to_owned(), line: line(at), reason };
    let table = DeTable::parse(text).map_err(|wrong| {
        let Range { start, .. } = wrong.span().unwrap_or_default();
        error(start, format!("{}{}", wrong.message().trim(), key_at(text, start)))
    })?;
    let mut values: Vec<(&'static Setting, String, Origin)> = Vec::new();
    for (key, value) in table.get_ref() {
        let (at, key) = (key.span().start, key.get_ref().as_ref());
        let Some(setting) = setting_of(key) else {
            return Err(error(at, unknown(key, value.get_ref())));
        };
        let text = text_of(setting, value).map_err(|reason| error(at, format!("{key}: {reason}")))?;
        if values.iter().any(|(of, ..)| std::ptr::eq(*of, setting)) {
            return Err(error(at, format!("{key} is set twice, by its present and an earlier name")));
        }
        values.push((setting, text, Origin::File { path: path.to_owned(), line: line(at), key: key.to_owned() }));
    }
    Ok(values)
}

/// The setting of a key, or of an earlier name of it.
fn setting_of(key: &str) -> Option<&'static Setting> {
    let is = |flag: &str| flag.replace('-', "_") == key;
    SETTINGS.iter().find(|setting| is(setting.flag) || setting.was.iter().any(|flag| is(flag)))
}

/// The error of a key that names no setting.
fn unknown(key: &str, value: &DeValue<'_>) -> String {
    if value.is_table() {
        return format!("[{key}]: all keys are at the top level: remove the table");
    }
    match nearest(&key.replace('-', "_"), SETTINGS.iter().map(Setting::key)) {
        Some(nearest) => format!("no setting is called {key}: did you mean {nearest}?"),
        None => format!("no setting is called {key}: `hydrant config template` prints all of them"),
    }
}

/// The key of the line at this byte, to name it: the value may be secret.
fn key_at(text: &str, at: usize) -> String {
    let start = text.get(..at).and_then(|before| before.rfind('\n')).map_or(0, |newline| newline + 1);
    let line = text.get(start..).and_then(|rest| rest.lines().next()).unwrap_or_default();
    match line.split_once('=') {
        Some((key, _)) => format!(", at {}", key.trim()),
        None => String::new(),
    }
}

/// The value as its flag would have it.
fn text_of(setting: &Setting, value: &Spanned<DeValue<'_>>) -> Result<String, String> {
    let item = |value: &DeValue<'_>| match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) => i128::from_str_radix(&number.as_str().replace('_', ""), number.radix())
            .map(|number| number.to_string())
            .map_err(|error| error.to_string()),
        DeValue::Boolean(switch) => Ok(switch.to_string()),
        DeValue::Float(_) => {
            Err("a number with a fraction is no value: write a whole number, or a text with a unit".to_owned())
        }
        DeValue::Array(_) => Err("a list is no value here: write one value".to_owned()),
        DeValue::Datetime(_) | DeValue::Table(_) => Err(format!("a {} is no value here", value.type_str())),
    };
    match value.get_ref() {
        DeValue::Array(values) if setting.form == Form::List => {
            let texts: Vec<_> = values.iter().map(|value| item(value.get_ref())).collect::<Result<_, _>>()?;
            match texts.iter().find(|text| text.is_empty() || text.contains(',')) {
                Some(wrong) => Err(format!("{wrong:?} is no item of a list: write one value for each, without commas")),
                None => Ok(texts.join(",")),
            }
        }
        value => item(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Vec<(&'static str, String, usize)> {
        let line = |origin| match origin {
            Origin::File { line, .. } => line,
            other => panic!("{other:?}"),
        };
        let values = parse(text, Path::new("h.toml")).unwrap();
        values.into_iter().map(|(setting, text, origin)| (setting.flag, text, line(origin))).collect()
    }

    fn error(text: &str) -> String {
        parse(text, Path::new("h.toml")).unwrap_err().to_string()
    }

    #[test]
    fn values_are_texts_with_their_lines() {
        let text = "# a comment\nlisten = [\"3000\", 3001]\nmax_connections = 1_000\n\nopen = true\ntick = '5s'\n";
        assert_eq!(
            parsed(text),
            [
                ("listen", "3000,3001".to_owned(), 2),
                ("max-connections", "1000".to_owned(), 3),
                ("open", "true".to_owned(), 5),
                ("tick", "5s".to_owned(), 6),
            ]
        );
        assert_eq!(
            parsed("memory_max = '1MiB'\nlisten = '3000'"),
            [("listen", "3000".to_owned(), 2), ("max-memory", "1MiB".to_owned(), 1)]
        );
        assert_eq!((parsed(""), parsed("\u{feff}\n")), (vec![], vec![]));
    }

    #[test]
    fn a_wrong_line_is_named() {
        for (text, expected) in [
            ("\ntikc = '3s'", "h.toml:2: no setting is called tikc: did you mean tick?"),
            ("max-connections = 3", "h.toml:1: no setting is called max-connections: did you mean max_connections?"),
            ("zzzzzzzz = 3", "h.toml:1: no setting is called zzzzzzzz: `hydrant config template` prints all of them"),
            ("[limits]\ntick = '3s'", "h.toml:1: [limits]: all keys are at the top level: remove the table"),
            ("tick = ['3s']", "h.toml:1: tick: a list is no value here: write one value"),
            (
                "tick = 3.5",
                "h.toml:1: tick: a number with a fraction is no value: write a whole number, or a text with a unit",
            ),
            ("tick = 2026-01-01", "h.toml:1: tick: a datetime is no value here"),
            (
                "listen = ['a,b']",
                "h.toml:1: listen: \"a,b\" is no item of a list: write one value for each, without commas",
            ),
            ("max_memory = 1\nmemory_max = 1", "h.toml:2: memory_max is set twice, by its present and an earlier name"),
        ] {
            assert_eq!(error(text), expected);
        }
    }

    #[test]
    fn what_is_no_toml_is_named_without_its_value() {
        let twice = error("tick = '3s'\n\ntick = '4s'");
        assert!(twice.starts_with("h.toml:3: duplicate key"), "{twice}");
        let open = error("log = 'info'\ntoken = 'very secret");
        assert!(open.starts_with("h.toml:2: ") && open.ends_with(", at token") && !open.contains("very"), "{open}");
        assert!(error("tick").starts_with("h.toml:1: "));
    }
}
