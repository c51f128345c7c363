//! Parses the text of a setting. Every error says what to write instead.

use std::fmt;
use std::num::{NonZeroU32, NonZeroUsize};
use std::ops::Deref;
use std::path::PathBuf;
use std::str::FromStr;
use std::thread::available_parallelism;
use std::time::Duration;

use bytesize::ByteSize;
use clap::ValueEnum;

use crate::origin::AllowedOrigins;

/// One kibibyte, in bytes.
pub(super) const KIB: usize = 1024;
/// One mebibyte, in bytes.
pub(super) const MIB: usize = 1024 * KIB;
/// Longer durations are mistakes, and clocks could overflow.
const DURATION_MAX: Duration = Duration::from_hours(24 * 365);
/// Largest mean distance between two samples of the heap, in bytes.
const HEAP_SAMPLE_MAX: usize = 1024 * MIB;

/// A text that no log and no `Debug` output shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Deref for Secret {
    type Target = str;

    fn deref(&self) -> &str {
        &self.0
    }
}

impl<T: Into<String>> From<T> for Secret {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Reads a size with a unit, such as 64KiB, in bytes.
///
/// # Errors
/// The value to write instead.
pub fn parse_bytes(text: &str) -> Result<usize, String> {
    let size = text.parse().ok().and_then(|size: ByteSize| usize::try_from(size.as_u64()).ok());
    size.ok_or_else(|| "write a number of bytes, for example 65536 or 64KiB".to_owned())
}

/// Reads a duration with a unit, such as 3s or 500ms; 0 needs none.
///
/// # Errors
/// The value to write instead.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let duration = humantime::parse_duration(text)
        .map_err(|_| "write a number with a unit, for example 3s, 500ms or 1h".to_owned())?;
    if duration > DURATION_MAX { Err("write at most one year".to_owned()) } else { Ok(duration) }
}

/// A duration, or none for 0.
pub(super) fn parse_duration_or_none(text: &str) -> Result<Option<Duration>, String> {
    parse_duration(text).map(|duration| Some(duration).filter(|duration| !duration.is_zero()))
}

/// A whole number.
pub(super) fn parse_count<T: FromStr>(text: &str) -> Result<T, String> {
    text.parse().map_err(|_| "write a whole number, for example 1000".to_owned())
}

/// A whole number, of which 0 means any.
pub(super) fn parse_count_or_any(text: &str) -> Result<usize, String> {
    parse_count(text).map(|count| if count == 0 { usize::MAX } else { count })
}

/// A number, or none for 0.
pub(super) fn parse_limit(text: &str) -> Result<Option<NonZeroUsize>, String> {
    parse_count(text).map(NonZeroUsize::new)
}

/// A rate for each second, or none for 0.
pub(super) fn parse_rate(text: &str) -> Result<Option<NonZeroU32>, String> {
    parse_count(text).map(NonZeroU32::new)
}

/// A size, or none for 0.
pub(super) fn parse_bytes_or_none(text: &str) -> Result<Option<NonZeroUsize>, String> {
    parse_bytes(text).map(NonZeroUsize::new)
}

/// A number of threads, or 0 for one a core.
pub(super) fn parse_cores(text: &str) -> Result<NonZeroUsize, String> {
    let count = parse_count(text).map(NonZeroUsize::new)?;
    Ok(count.or_else(|| available_parallelism().ok()).unwrap_or(NonZeroUsize::MIN))
}

/// `true` or `false`; 1 and 0 are the same.
pub(super) fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" => Ok(true),
        "false" | "0" => Ok(false),
        _ => Err("write true or false".to_owned()),
    }
}

/// One of the names of a kind.
pub(super) fn parse_choice<T: ValueEnum>(text: &str) -> Result<T, String> {
    T::from_str(text, false).map_err(|_| {
        let names: Vec<_> = T::value_variants().iter().filter_map(ValueEnum::to_possible_value).collect();
        let names: Vec<_> = names.iter().map(|name| name.get_name()).collect();
        format!("write one of {}", names.join(", "))
    })
}

/// A text, or none when nothing is written.
pub(super) fn parse_secret(text: &str) -> Result<Option<Secret>, String> {
    Ok(Some(text).filter(|text| !text.is_empty()).map(Secret::from))
}

/// The path of a file, or none when nothing is written.
pub(super) fn parse_path(text: &str) -> Result<Option<PathBuf>, String> {
    Ok(Some(text).filter(|text| !text.is_empty()).map(PathBuf::from))
}

/// One value, or none when nothing is written.
pub(super) fn parse_optional<T: FromStr<Err = String>>(text: &str) -> Result<Option<T>, String> {
    if text.is_empty() { Ok(None) } else { text.parse().map(Some) }
}

/// Values between commas.
pub(super) fn parse_list<T: FromStr<Err = String>>(text: &str) -> Result<Vec<T>, String> {
    if text.is_empty() {
        return Ok(Vec::new());
    }
    text.split(',').map(|item| item.trim().parse()).collect()
}

/// Proxies whose headers count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrustedProxy {
    /// Those of a network: `10.0.0.0/8`, or one address.
    Network(ipnet::IpNet),
    /// `unix`: every peer of a Unix socket.
    Unix,
}

impl TrustedProxy {
    /// Whether a peer belongs to them; `None` is one of a Unix socket. An IPv4 address that is
    /// written as IPv6 counts as IPv4.
    #[must_use]
    pub fn is(&self, peer: Option<std::net::IpAddr>) -> bool {
        match (self, peer) {
            (Self::Network(network), Some(address)) => network.contains(&address.to_canonical()),
            (Self::Unix, None) => true,
            _ => false,
        }
    }
}

impl FromStr for TrustedProxy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "unix" {
            return Ok(Self::Unix);
        }
        let address = text.parse().map(|address: std::net::IpAddr| ipnet::IpNet::from(address.to_canonical()));
        let wrong = |_| format!("{text:?} is no network: write for example 10.0.0.0/8, 192.168.1.7, fd00::/8 or unix");
        address.or_else(|_| text.parse()).map(Self::Network).map_err(wrong)
    }
}

/// Patterns of origins.
pub(super) fn parse_origins(text: &str) -> Result<AllowedOrigins, String> {
    AllowedOrigins::parse(&parse_texts(text)).map_err(|error| error.to_string())
}

/// Whether a text can be the name of a subprotocol: a token of HTTP (RFC 6455, section 4.1; RFC
/// 9110, section 5.6.2).
#[must_use]
pub fn is_subprotocol(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}

/// Names of subprotocols.
pub(super) fn parse_subprotocols(text: &str) -> Result<Vec<String>, String> {
    let names = parse_texts(text);
    match names.iter().find(|name| !is_subprotocol(name)) {
        Some(wrong) => Err(format!("{wrong:?} is no subprotocol: write for example chat.v1")),
        None => Ok(names),
    }
}

/// Texts between commas.
fn parse_texts(text: &str) -> Vec<String> {
    if text.is_empty() { Vec::new() } else { text.split(',').map(|item| item.trim().to_owned()).collect() }
}

/// The mean number of bytes between two samples of the heap: 0 or a power of two, of a gibibyte at
/// most.
pub(super) fn parse_heap_sample(text: &str) -> Result<usize, String> {
    match parse_bytes(text)? {
        bytes if bytes == 0 || bytes.is_power_of_two() && bytes <= HEAP_SAMPLE_MAX => Ok(bytes),
        _ => Err("write 0, or a power of two up to 1GiB, for example 16KiB".to_owned()),
    }
}

/// A level of the log.
pub(super) fn parse_level(text: &str) -> Result<tracing::Level, String> {
    text.parse().map_err(|_| "write one of error, warn, info, debug, trace".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_have_units() {
        let (bytes, duration) = (parse_bytes, parse_duration);
        assert_eq!((bytes("64KiB"), bytes("65536"), bytes("1MiB")), (Ok(65_536), Ok(65_536), Ok(1 << 20)));
        assert_eq!((duration("3s"), duration("0")), (Ok(Duration::from_secs(3)), Ok(Duration::ZERO)));
        assert!(bytes("a lot").unwrap_err().contains("64KiB"));
        assert!(duration("3").unwrap_err().contains("3s"));
        assert!(duration("2years").unwrap_err().contains("one year"));
    }

    #[test]
    fn zero_is_no_bound() {
        assert_eq!(parse_count_or_any("0"), Ok(usize::MAX));
        assert_eq!(parse_limit("0"), Ok(None));
        assert_eq!(parse_rate("7"), Ok(NonZeroU32::new(7)));
        assert_eq!(parse_duration_or_none("0"), Ok(None));
        assert!(parse_rate("-1").unwrap_err().contains("1000"));
        assert!(parse_cores("0").unwrap().get() > 0);
    }

    #[test]
    fn a_choice_names_the_others() {
        use super::super::SlowPolicy;
        assert_eq!(parse_choice("drop-oldest"), Ok(SlowPolicy::DropOldest));
        assert_eq!(
            parse_choice::<SlowPolicy>("drop").unwrap_err(),
            "write one of disconnect, drop-newest, drop-oldest"
        );
    }

    #[test]
    fn lists_are_separated_by_commas() {
        assert_eq!(parse_subprotocols("a, b"), Ok(vec!["a".to_owned(), "b".to_owned()]));
        assert!(parse_subprotocols("a,,b").unwrap_err().contains("chat.v1"));
        assert_eq!(parse_origins(""), Ok(AllowedOrigins::default()));
        assert!(parse_origins("https://a.*.b").unwrap_err().contains("https://example.com"));
    }

    #[test]
    fn a_trusted_proxy_is_a_network_an_address_or_unix() {
        let contains = |text: &str, address: &str| {
            let trusted: TrustedProxy = text.parse().unwrap();
            assert_eq!(trusted.is(None), text == "unix");
            trusted.is(Some(address.parse().unwrap()))
        };
        assert!(contains("10.0.0.0/8", "10.1.2.3") && contains("10.0.0.0/8", "::ffff:10.1.2.3"));
        assert!(contains("192.168.1.7", "192.168.1.7") && !contains("192.168.1.7", "192.168.1.8"));
        assert!(contains("fd00::/8", "fd01::1") && !contains("fd00::/8", "10.1.2.3"));
        assert!(!contains("unix", "127.0.0.1"));
        for wrong in ["10.0.0.0/40", "unix:/run/hydrant.sock"] {
            let error = wrong.parse::<TrustedProxy>().unwrap_err();
            assert!(error.contains("10.0.0.0/8") && error.ends_with("or unix"), "{error}");
        }
    }

    #[test]
    fn a_secret_is_not_shown() {
        assert_eq!(format!("{:?}", Secret::from("hidden")), "***");
    }
}
