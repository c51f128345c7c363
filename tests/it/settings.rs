//! Settings as a user meets them: the real binary with flags, variables, a file, and SIGHUP.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use hydrant::close::CloseReason;

use crate::support::{Binary, Client, Received, masked, request};

/// A folder for one test, deleted at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let folder = std::env::temp_dir().join(format!("hydrant-settings-{name}-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, text).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A folder that cannot be deleted is no failure of the test.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Runs the binary to its end: exit code, standard output, standard error.
fn run(arguments: &[&str], variables: &[(&str, &str)]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hydrant"));
    let output = command.args(arguments).envs(variables.iter().copied()).output().unwrap();
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    (output.status.code().unwrap(), out, err)
}

/// The one line that a command with this file fails with, its path as `FILE`.
fn error(file: &Path, arguments: &[&str], variables: &[(&str, &str)]) -> String {
    let path = file.to_str().unwrap();
    let arguments = [&["config", "check", "--config", path], arguments].concat();
    let (code, out, err) = run(&arguments, variables);
    assert_eq!((code, out.as_str()), (64, ""), "{err}");
    assert_eq!(err.lines().count(), 1, "{err}");
    err.trim_end().replace(path, "FILE")
}

#[test]
fn flags_go_before_variables_before_the_file() {
    let folder = Folder::new("layers");
    let text = "tick = \"1s\"\nmax_connections = 1\nmax_memory = \"1MiB\"\ntoken = \"hidden\"\nallow_origin = [\"null\", \"*\"]\n";
    let file = folder.file("h.toml", text);
    let path = file.to_str().unwrap();
    let variables = [("HYDRANT_CONFIG", path), ("HYDRANT_MAX_CONNECTIONS", "2"), ("HYDRANT_TICK", "2s")];
    let (code, out, err) = run(&["config", "print", "--tick", "3s"], &variables);
    assert_eq!((code, err.as_str()), (0, ""));
    let line = |key: &str| {
        let line = out.lines().find(|line| line.starts_with(key)).unwrap().replace(path, "FILE");
        line.split_whitespace().collect::<Vec<_>>().join(" ")
    };
    assert_eq!(line("tick"), "tick = \"3s\" # --tick");
    assert_eq!(line("max_connections"), "max_connections = 2 # HYDRANT_MAX_CONNECTIONS");
    assert_eq!(line("max_memory"), "max_memory = \"1MiB\" # FILE:3");
    assert_eq!(line("token ="), "token = \"***\" # FILE:4");
    assert_eq!(line("allow_origin"), "allow_origin = [\"null\", \"*\"] # FILE:5");
    assert_eq!(line("shards"), "shards = 0 # default");
    assert!(!out.contains("hidden"));
}

#[test]
fn earlier_names_go_on_working() {
    let folder = Folder::new("earlier");
    let file = folder.file("h.toml", "client_messages = 5\n");
    let path = file.to_str().unwrap();
    let (_, out, err) =
        run(&["config", "print", "--config", path, "--pages-bytes", "32KiB"], &[("HYDRANT_MEMORY_MAX", "1GiB")]);
    let value =
        |key: &str| out.lines().find(|line| line.starts_with(key)).map(|line| line.split('#').next().unwrap().trim());
    assert_eq!(value("client_message_rate"), Some("client_message_rate = 5"), "{err}");
    assert_eq!(value("max_memory"), Some("max_memory = \"1GiB\""));
    assert_eq!(value("shared_pages_min"), Some("shared_pages_min = \"32KiB\""));
}

#[test]
fn an_error_names_what_the_user_wrote() {
    let folder = Folder::new("errors");
    let with = |text: &str, arguments: &[&str], variables: &[(&str, &str)]| {
        error(&folder.file("h.toml", text), arguments, variables)
    };
    for (text, expected) in [
        ("\ntikc = \"3s\"", "error: FILE:2: no setting is called tikc: did you mean tick?"),
        ("tick = \"3 apples\"", "error: FILE:1: tick = 3 apples: "),
        ("tick = 3", "error: FILE:1: tick = 3: "),
        ("slow = \"never\"", "error: FILE:1: slow = never: write one of disconnect, drop-newest, drop-oldest"),
        ("tick = \"3s\"\ntick = \"3s\"", "error: FILE:2: duplicate key"),
        ("token = \" secret \"", "error: FILE:1: token = ***: --token has a blank"),
        ("token = \"\"", "error: FILE:1: token = : it is empty: leave it out, or set a value"),
        (
            "message_bytes = \"2MiB\"",
            "error: FILE:1: message_bytes = 2MiB: --outbox-bytes 1048576 cannot hold one message",
        ),
        ("[limits]\ntick = \"3s\"", "error: FILE:1: [limits]: all keys are at the top level: remove the table"),
        ("token_file = \"/nowhere\"", "error: FILE:1: token_file = /nowhere: No such file"),
        ("token_file = \"/dev/zero\"", "error: FILE:1: token_file = /dev/zero: the file is larger than 1 MiB"),
        ("jwt_key = \"/dev/zero\"", "error: FILE:1: jwt_key = /dev/zero: the file is larger than 1 MiB"),
        ("token = \"secret\"\ntoken_file = \"x\"", "error: FILE:2: token_file = x: --token-file and --token exclude"),
        ("jwt_secret = \"secret", "error: FILE:1: "),
    ] {
        let error = with(text, &[], &[]);
        assert!(error.starts_with(expected), "{text:?}: {error}");
        assert!(!error.contains("secret\""), "{error}");
    }
    assert!(with("", &["--tick", "3"], &[]).starts_with("error: --tick 3: "));
    assert!(with("", &[], &[("HYDRANT_TICK", "3")]).starts_with("error: HYDRANT_TICK=3: "));
    assert!(with("", &[], &[("HYDRANT_MEMORY_MAX", "x")]).starts_with("error: HYDRANT_MEMORY_MAX=x: "));
    assert!(with("", &["--outbox-bytes", "1KiB"], &[]).starts_with("error: --outbox-bytes 1024 cannot hold"));
    // A flag overrides a file, also where two settings exclude each other.
    assert_eq!(run(&["config", "check", "--token", "a"], &[("HYDRANT_TOKEN_FILE", "/nowhere")]).0, 0);
    assert!(error(&folder.0, &[], &[]).starts_with("error: --config FILE: Is a directory"));
    let endless = run(&["config", "check", "--config", "/dev/zero"], &[]).2;
    assert!(endless.starts_with("error: --config /dev/zero: the file is larger than 1 MiB"), "{endless}");
    assert!(error(&folder.0.join("none"), &[], &[]).starts_with("error: --config FILE: No such file"));
    let (_, _, err) = run(&["config", "check"], &[("HYDRANT_CONFIG", "/nowhere")]);
    assert!(err.starts_with("error: HYDRANT_CONFIG=/nowhere: No such file"), "{err}");
    let (code, _, err) = run(&["--tikc", "3s"], &[]);
    assert!(code == 64 && err.contains("--tick"), "{err}");
}

#[cfg(feature = "tls")]
#[test]
fn an_error_of_a_certificate_names_both_settings_as_the_user_wrote_them() {
    let folder = Folder::new("certificate");
    let file = folder.file("h.toml", "\ntls_key = \"/nowhere\"\n");
    let with = |arguments: &[&str], variables: &[(&str, &str)]| error(&file, arguments, variables);
    let by_variable = with(&[], &[("HYDRANT_TLS_CERT", "/nowhere")]);
    let begin = "error: HYDRANT_TLS_CERT and FILE:2: tls_key: cannot read a certificate";
    assert!(by_variable.starts_with(begin), "{by_variable}");
    let by_flag = with(&["--tls-cert", "/nowhere", "--tls-key", "/nowhere"], &[]);
    assert!(by_flag.starts_with("error: --tls-cert and --tls-key: cannot read a certificate"), "{by_flag}");
    let endless = with(&["--tls-cert", "/dev/zero", "--tls-key", "/dev/zero"], &[]);
    assert!(endless.contains("/dev/zero: the file is larger than 1 MiB"), "{endless}");
}

#[test]
fn a_warning_names_what_the_user_wrote() {
    let folder = Folder::new("warnings");
    let secret = folder.file("secret", "short");
    let text = format!("jwt_secret_file = {secret:?}\nmax_connections = 1_000_000_000\n");
    let file = folder.file("h.toml", &text);
    let path = file.to_str().unwrap();
    let mut binary = Binary::start(&["--shards", "1", "--config", path]);
    for warning in [":1: jwt_secret_file: the secret is shorter than", ":2: max_connections: 1000000000 is more than"] {
        let named = binary.seen.iter().any(|line| line.contains(&format!("{path}{warning}")));
        assert!(named, "{warning}: {:?}", binary.seen);
    }
    binary.signal(libc::SIGTERM);
    assert_eq!(binary.wait().code(), Some(0));
    let (code, out, err) = run(&["config", "check", "--config", path], &[("HYDRANT_TIKC", "3s")]);
    assert_eq!((code, out.as_str(), err.lines().count()), (0, "the settings are right\n", 3), "{err}");
    for warning in ["no setting reads the variable HYDRANT_TIKC", "the secret is shorter", "1000000000 is more than"] {
        let is_it = |line: &str| line.starts_with("warning: ") && line.contains(warning);
        assert!(err.lines().any(is_it), "{warning}: {err}");
    }
}

#[test]
fn a_start_at_which_nobody_can_publish_is_warned_of() {
    let warnings = |arguments: &[&str]| run(&[&["config", "check"], arguments].concat(), &[]).2;
    let (shared, exposed) = (["--listen", "27000", "--admin-listen", "27000"], ["--admin-listen", "0.0.0.0:27001"]);
    for arguments in [shared.as_slice(), &exposed] {
        assert!(warnings(arguments).contains("warning: nobody can publish"), "{arguments:?}");
        assert_eq!(warnings(&[arguments, &["--open"]].concat()), "", "{arguments:?}");
        assert_eq!(warnings(&[arguments, &["--token", "a-token-of-some-length"]].concat()), "", "{arguments:?}");
    }
    assert_eq!(warnings(&[]), "");
}

#[test]
fn the_log_has_words_as_the_user_writes_them() {
    let mut binary = Binary::start(&["--log", "debug", "--fanout", "ring"]);
    assert!(binary.seen.iter().any(|line| line.contains(" fanout=ring ")), "{:?}", binary.seen);
    let _client = Client::connect(binary.address, "/ws");
    let line = binary.wait_for_line("WebSocket granted");
    assert!(line.contains(" client=127.0.0.1 "), "{line}");
}

#[test]
fn addresses_that_exclude_each_other_are_found_without_a_start() {
    for arguments in [&["config", "check"][..], &["serve"]] {
        let (code, out, err) = run(&[arguments, &["--listen", ":27000,:27000"]].concat(), &[]);
        assert_eq!((code, out.as_str()), (64, ""), "{err}");
        assert!(err.contains("--listen :27000 and --listen :27000 are at the same port"), "{err}");
    }
    let folder = Folder::new("overlap");
    let file = folder.file("h.toml", "listen = [\"127.0.0.1:27000\", \":27001\"]\n");
    let error = error(&file, &[], &[]);
    assert!(
        error.starts_with("error: FILE:1: listen = 127.0.0.1:27000,:27001: --listen :27001 and --admin"),
        "{error}"
    );
}

#[test]
fn an_option_before_a_command_is_told_its_place() {
    for (arguments, expected) in [
        (&["--config", "f", "config", "check"][..], "as in hydrant config check --config FILE"),
        (&["config", "--config", "f", "check"], "'check --config' exists; see hydrant --help"),
        (&["--tick", "3s", "serve"], "as in hydrant serve --config FILE"),
        (&["--tick", "3s", "load"], "see hydrant load --help"),
    ] {
        let (code, _, err) = run(arguments, &[]);
        assert!(code == 64 && err.trim_end().ends_with(expected), "{arguments:?}: {err}");
        assert_eq!(err.lines().count(), 1, "{err}");
    }
}

#[test]
fn the_template_is_a_file_that_sets_nothing() {
    let (code, template, _) = run(&["config", "template"], &[]);
    assert_eq!(code, 0);
    let folder = Folder::new("template");
    for text in ["", &template] {
        let file = folder.file("h.toml", text);
        let path = file.to_str().unwrap();
        assert_eq!(run(&["config", "check", "--config", path], &[]).0, 0);
        assert_eq!(run(&["config", "print", "--config", path], &[]), run(&["config", "print"], &[]));
    }
}

#[test]
fn sighup_changes_what_can_change_and_names_the_rest() {
    let folder = Folder::new("sighup");
    let file = folder.file("h.toml", "max_connections = 5\nmessage_bytes = \"64KiB\"\n");
    let mut binary = Binary::start(&["--shards", "1", "--config", file.to_str().unwrap()]);
    let mut reload = |text: &str, line: &str| {
        folder.file("h.toml", text);
        binary.signal(libc::SIGHUP);
        binary.wait_for_line(line)
    };
    let changed =
        reload("max_connections = 6\nmessage_bytes = \"32KiB\"\ntoken = \"new\"\nlog = \"warn\"\n", "only a restart");
    assert!(changed.ends_with("only a restart changes: --message-bytes 64KiB -> 32KiB"), "{changed}");
    let kept = reload("max_connections = 7\nmax_handshakes = \"many\"\n", "not reloaded");
    assert!(kept.contains("all settings stay as they are") && kept.contains(":2: max_handshakes = many: "), "{kept}");
    let back = reload("max_connections = 5\nmessage_bytes = \"64KiB\"\nlog = \"info\"\n", "reloaded: ");
    assert!(
        back.ends_with("reloaded: --token *** -> (not set), --max-connections 6 -> 5, --log warn -> info"),
        "{back}"
    );
    // With log = "warn" the first reload said only what a restart needs.
    assert_eq!(binary.seen.iter().filter(|line| line.contains(" reloaded: ")).count(), 1, "{:?}", binary.seen);
    assert_eq!(request(binary.address, "GET", "/healthz", &[], b"").status, 200);
    binary.signal(libc::SIGTERM);
    assert_eq!(binary.wait().code(), Some(0));
}

#[test]
fn a_new_limit_binds_clients_that_are_connected() {
    let folder = Folder::new("rates");
    let file = folder.file("h.toml", "");
    let mut binary = Binary::start(&["--shards", "1", "--config", file.to_str().unwrap()]);
    let mut client = Client::connect(binary.address, "/ws");
    let flood = masked(0x89, b"x").repeat(50);
    client.send_raw(&flood);
    for _ in 0..50 {
        assert_eq!(client.receive(), Received::Pong(b"x".to_vec()));
    }
    folder.file("h.toml", "client_message_rate = 3\n");
    binary.signal(libc::SIGHUP);
    binary.wait_for_line("reloaded: --client-message-rate 0 -> 3");
    client.send_raw(&flood);
    for _ in 0..3 {
        assert_eq!(client.receive(), Received::Pong(b"x".to_vec()));
    }
    assert_eq!(client.receive(), Received::Close(Some(1008), CloseReason::TooFast.row().text.to_owned()));
}
