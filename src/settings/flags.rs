//! The flags and environment variables of all settings, as clap knows them.

use std::path::PathBuf;

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};

use super::{Form, Origin, SETTINGS, Setting, variable};

/// The flag that names the file of settings.
const CONFIG: &str = "config";

/// The settings that the command line and the environment give, as texts, and the file that gives
/// more.
#[derive(Clone, Debug, Default)]
pub struct Flags {
    /// The file of `--config`, and whether a flag or a variable names it.
    pub(super) file: Option<(PathBuf, Origin)>,
    /// Each with its origin; a list's texts are joined with commas.
    pub(super) written: Vec<(&'static Setting, String, Origin)>,
}

/// The environment variable to read: an earlier name if only that one is set.
fn variable_in_use(setting: &Setting) -> String {
    let is_set = |name: &String| std::env::var_os(name).is_some();
    let current = setting.variable();
    if is_set(&current) {
        return current;
    }
    setting.was.iter().map(|flag| variable(flag)).find(is_set).unwrap_or(current)
}

/// A sentence for each variable that looks like one of Hydrant's and is none: its nearest one is
/// meant. A variable that resembles none may be another program's.
#[must_use]
pub fn misspelt_variables() -> Vec<String> {
    let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    names.filter_map(|name| misspelt(&name)).collect()
}

fn misspelt(name: &str) -> Option<String> {
    /// More changes of single letters than this are no typing error.
    const CHANGES_MAX: usize = 2;
    let flags = SETTINGS.iter().flat_map(|setting| setting.was.iter().chain([&setting.flag]));
    let known: Vec<_> = flags.chain([&CONFIG]).map(|flag| variable(flag)).collect();
    if !name.starts_with("HYDRANT_") || known.iter().any(|known| known == name) {
        return None;
    }
    let changes = known.iter().map(|known| (strsim::osa_distance(name, known), known));
    let (_, nearest) = changes.filter(|(changes, _)| *changes <= CHANGES_MAX).min()?;
    Some(format!("no setting reads the variable {name}: did you mean {nearest}?"))
}

fn argument(setting: &'static Setting) -> Arg {
    let mut help = setting.help_line();
    if !setting.default.is_empty() && setting.form != Form::Switch {
        help += &format!(" [default: {}]", setting.default);
    }
    let argument = Arg::new(setting.flag)
        .long(setting.flag)
        .aliases(setting.was)
        .env(variable_in_use(setting))
        .hide_env(true)
        .help_heading(setting.group.heading())
        .help(help);
    match setting.form {
        Form::Switch => {
            argument.num_args(0..=1).require_equals(true).default_missing_value("true").value_name("true|false")
        }
        Form::List => argument.action(ArgAction::Append).value_name(setting.unit),
        Form::Number | Form::Text | Form::Secret => argument.value_name(setting.unit),
    }
}

impl FromArgMatches for Flags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        let origin = match matches.value_source(CONFIG) {
            Some(ValueSource::EnvVariable) => Origin::Variable(variable(CONFIG)),
            _ => Origin::Flag,
        };
        self.file = matches.get_one::<PathBuf>(CONFIG).map(|path| (path.clone(), origin));
        for setting in SETTINGS {
            let origin = match matches.value_source(setting.flag) {
                Some(ValueSource::CommandLine) => Origin::Flag,
                Some(ValueSource::EnvVariable) => Origin::Variable(variable_in_use(setting)),
                _ => continue,
            };
            let texts: Vec<&str> =
                matches.get_many::<String>(setting.flag).into_iter().flatten().map(String::as_str).collect();
            self.written.push((setting, texts.join(","), origin));
        }
        Ok(())
    }
}

impl Args for Flags {
    fn augment_args(command: Command) -> Command {
        let file = Arg::new(CONFIG)
            .long(CONFIG)
            .env(variable(CONFIG))
            .hide_env(true)
            .value_name("FILE")
            .value_parser(value_parser!(PathBuf))
            .help(
                "File with settings, in TOML: max_connections = 1000 is --max-connections 1000. Flags and variables \
                 override it. Relative paths, in the file as well, are relative to the directory in which the server was \
                 started. `hydrant config template` prints one. SIGHUP reloads it.",
            );
        command.arg(file).args(SETTINGS.iter().map(argument))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_misspelt_variable_is_named_and_foreign_ones_are_not() {
        assert_eq!(
            misspelt("HYDRANT_TIKC").unwrap(),
            "no setting reads the variable HYDRANT_TIKC: did you mean HYDRANT_TICK?"
        );
        assert!(misspelt("HYDRANT_MAX_CONECTIONS").unwrap().ends_with("did you mean HYDRANT_MAX_CONNECTIONS?"));
        // Kubernetes sets such ones for a service with this name.
        for name in
            ["HYDRANT_PORT", "HYDRANT_SERVICE_HOST", "HYDRANT_TICK", "HYDRANT_MEMORY_MAX", "HYDRANT_CONFIG", "TICK"]
        {
            assert_eq!(misspelt(name), None, "{name}");
        }
    }
}
