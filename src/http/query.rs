//! The query parameters of `/ws`, `/echo` and `/publish`.
//!
//! Owns their names and values, and the decoding of a query (`application/x-www-form-urlencoded`,
//! as the URL standard has it: `%41` and `+`). Promises that every parameter either has its meaning
//! or is an error that names the right one. Never ignores a parameter, and never repeats the value
//! of a token in an error.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use crate::engine::publication::{CHANNELS_PER_CONNECTION_MAX, ChannelName, InvalidChannel};

/// Most characters of an unknown name that an error repeats.
const SHOWN_CHARS_MAX: usize = 40;

/// A parameter that one of these routes knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parameter {
    Channel,
    Token,
    Receipt,
}

impl Parameter {
    const fn name(self) -> &'static str {
        match self {
            Self::Channel => "channel",
            Self::Token => "token",
            Self::Receipt => "receipt",
        }
    }

    /// How the parameter is written.
    const fn example(self) -> &'static str {
        match self {
            Self::Channel => "channel=NAME",
            Self::Token => "token=TOKEN",
            Self::Receipt => "receipt=1",
        }
    }

    /// The parameter that a client of another server means by this name.
    fn meant_by(name: &str) -> Option<Self> {
        let name = name.to_ascii_lowercase();
        let name = name.split_once('[').map_or(name.as_str(), |(name, _)| name);
        Some(match name.trim_end_matches('s') {
            "channel" | "chan" | "ch" | "room" | "topic" | "stream" | "subject" | "channel_name" => Self::Channel,
            "token" | "jwt" | "auth" | "authorization" | "bearer" | "access_token" | "auth_token" => Self::Token,
            "receipt" | "ack" | "wait" => Self::Receipt,
            _ => return None,
        })
    }
}

/// A query that asks for something that the route does not have: 400.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// The route has no such parameter.
    #[error("there is no parameter {name}: {instead}")]
    Unknown {
        /// The name in quotation marks, escaped and shortened.
        name: String,
        /// The parameters that the route has, the likely one first.
        instead: String,
    },
    /// A `%` without two hexadecimal digits behind it, or bytes that are not UTF-8.
    #[error("the query is not percent-encoded UTF-8: write % as %25")]
    Encoding,
    /// A parameter that has one value comes twice.
    #[error("the parameter {0} comes twice: leave one out")]
    Repeated(&'static str),
    /// `receipt` has another value than 0 or 1.
    #[error("receipt has to be 1 or 0: write receipt=1 for a receipt")]
    Receipt,
    /// `token` is empty.
    #[error("token is empty: write token=TOKEN")]
    NoToken,
    /// A channel has a name that no channel may have.
    #[error(transparent)]
    Channel(#[from] InvalidChannel),
    /// Several names in one parameter.
    #[error("a parameter names one channel: write channel=a&channel=b for two")]
    ChannelList,
    /// More channels than a connection or a publication may have.
    #[error("a request has at most {CHANNELS_PER_CONNECTION_MAX} channels")]
    TooManyChannels,
}

/// The parameters of `GET /ws`.
#[derive(Debug, PartialEq, Eq)]
pub struct WsQuery {
    /// The channels of path and query in their order, each once; `all` if there are none.
    pub channels: Vec<ChannelName>,
    /// The token.
    pub token: Option<String>,
}

/// The parameters of `POST /publish`.
#[derive(Debug, PartialEq, Eq)]
pub struct PublishQuery {
    /// As those of [`WsQuery`].
    pub channels: Vec<ChannelName>,
    /// The publisher waits for a receipt.
    pub receipt: bool,
}

/// Reads the query of `GET /ws` and `GET /ws/{channel}`.
///
/// # Errors
/// The first parameter that has no meaning.
pub fn ws(path_channel: Option<&str>, query: Option<&str>) -> Result<WsQuery, QueryError> {
    let Values { channels, token, .. } = read(path_channel, query, &[Parameter::Channel, Parameter::Token])?;
    Ok(WsQuery { channels: or_all(channels), token })
}

/// Reads the query of `GET /echo`: the token.
///
/// # Errors
/// The first parameter that has no meaning.
pub fn echo(query: Option<&str>) -> Result<Option<String>, QueryError> {
    Ok(read(None, query, &[Parameter::Token])?.token)
}

/// Reads the query of `POST /publish` and `POST /publish/{channel}`.
///
/// # Errors
/// The first parameter that has no meaning.
pub fn publish(path_channel: Option<&str>, query: Option<&str>) -> Result<PublishQuery, QueryError> {
    let Values { channels, receipt, .. } = read(path_channel, query, &[Parameter::Channel, Parameter::Receipt])?;
    Ok(PublishQuery { channels: or_all(channels), receipt: receipt.unwrap_or(false) })
}

#[derive(Default)]
struct Values {
    channels: Vec<ChannelName>,
    token: Option<String>,
    receipt: Option<bool>,
}

fn or_all(channels: Vec<ChannelName>) -> Vec<ChannelName> {
    if channels.is_empty() { vec![ChannelName::all()] } else { channels }
}

fn read(path_channel: Option<&str>, query: Option<&str>, known: &[Parameter]) -> Result<Values, QueryError> {
    let mut values = Values::default();
    if let Some(name) = path_channel {
        values.channels.push(ChannelName::from_url(name)?);
    }
    // A pair without any character has no name, and so no meaning that it could miss.
    for pair in query.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = decode(name)?;
        let Some(parameter) = known.iter().find(|parameter| parameter.name() == name) else {
            return Err(unknown(&name, known));
        };
        let value = decode(value)?;
        match parameter {
            Parameter::Channel => add(&mut values.channels, &value)?,
            Parameter::Token if value.is_empty() => return Err(QueryError::NoToken),
            Parameter::Token => set_once(&mut values.token, value.into_owned(), *parameter)?,
            Parameter::Receipt => {
                let wanted = match &*value {
                    "1" => true,
                    "0" => false,
                    _ => return Err(QueryError::Receipt),
                };
                set_once(&mut values.receipt, wanted, *parameter)?;
            }
        }
    }
    Ok(values)
}

fn add(channels: &mut Vec<ChannelName>, name: &str) -> Result<(), QueryError> {
    if name.contains([',', ' ']) {
        return Err(QueryError::ChannelList);
    }
    let name = ChannelName::new(name)?;
    if !channels.contains(&name) {
        if channels.len() == CHANNELS_PER_CONNECTION_MAX {
            return Err(QueryError::TooManyChannels);
        }
        channels.push(name);
    }
    Ok(())
}

fn set_once<T>(slot: &mut Option<T>, value: T, parameter: Parameter) -> Result<(), QueryError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(QueryError::Repeated(parameter.name())),
    }
}

fn unknown(name: &str, known: &[Parameter]) -> QueryError {
    let shown: String = name.chars().take(SHOWN_CHARS_MAX).collect();
    let instead = match Parameter::meant_by(name) {
        Some(meant) if known.contains(&meant) => format!("write {}", meant.example()),
        Some(Parameter::Token) => "send the header Authorization: Bearer TOKEN".to_owned(),
        _ => {
            let examples: Vec<_> = known.iter().map(|parameter| parameter.example()).collect();
            format!("this route has {}", examples.join(" and "))
        }
    };
    QueryError::Unknown { name: format!("{shown:?}"), instead }
}

/// Decodes a name or a value.
fn decode(text: &str) -> Result<Cow<'_, str>, QueryError> {
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|&byte| byte == b'%') {
        let digits = rest.get(at + 1..at + 3).ok_or(QueryError::Encoding)?;
        if !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err(QueryError::Encoding);
        }
        rest = &rest[at + 3..];
    }
    if text.contains('+') {
        let spaced = text.replace('+', " ");
        let decoded = percent_decode_str(&spaced).decode_utf8().map_err(|_| QueryError::Encoding)?;
        return Ok(Cow::Owned(decoded.into_owned()));
    }
    percent_decode_str(text).decode_utf8().map_err(|_| QueryError::Encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(channels: &[ChannelName]) -> Vec<&str> {
        channels.iter().map(ChannelName::as_str).collect()
    }

    #[test]
    fn channels_come_from_path_and_query_once_each() {
        for (path, query, right) in [
            (None, None, &["all"][..]),
            (None, Some(""), &["all"]),
            (None, Some("&&"), &["all"]),
            (Some("a"), None, &["a"]),
            (Some("a"), Some("channel=b&channel=a&"), &["a", "b"]),
            (None, Some("channel=a&token=t&channel=b&channel=a"), &["a", "b"]),
            (Some("r%3A1"), Some("channel=r%3a2&channel=r:3"), &["r:1", "r:2", "r:3"]),
            (None, Some("%63hannel=%61"), &["a"]),
        ] {
            assert_eq!(names(&ws(path, query).unwrap().channels), right, "{path:?} {query:?}");
        }
        assert_eq!(names(&publish(Some("a"), Some("channel=b")).unwrap().channels), ["a", "b"]);
        assert_eq!(names(&publish(None, None).unwrap().channels), ["all"]);
    }

    #[test]
    fn a_channel_that_cannot_be_is_an_error() {
        assert_eq!(ws(Some(""), None), Err(QueryError::Channel(InvalidChannel)));
        assert_eq!(ws(None, Some("channel")), Err(QueryError::Channel(InvalidChannel)));
        assert_eq!(ws(None, Some("channel=a%2Fb")), Err(QueryError::Channel(InvalidChannel)));
        for list in ["channel=a,b", "channel=a%2Cb", "channel=a+b", "channel=a%20b"] {
            assert_eq!(ws(None, Some(list)), Err(QueryError::ChannelList), "{list}");
        }
        let most: Vec<_> = (0..CHANNELS_PER_CONNECTION_MAX).map(|n| format!("channel={n}")).collect();
        let most = most.join("&");
        assert_eq!(ws(None, Some(&most)).unwrap().channels.len(), 64);
        assert_eq!(ws(None, Some(&format!("{most}&channel=63"))).unwrap().channels.len(), 64);
        assert_eq!(ws(None, Some(&format!("{most}&channel=x"))), Err(QueryError::TooManyChannels));
        assert_eq!(publish(Some("x"), Some(&most)), Err(QueryError::TooManyChannels));
    }

    #[test]
    fn a_token_comes_once() {
        assert_eq!(ws(None, Some("token=a.b-c_d")).unwrap().token.as_deref(), Some("a.b-c_d"));
        assert_eq!(echo(Some("token=a%2Eb")).unwrap().as_deref(), Some("a.b"));
        assert_eq!(echo(None), Ok(None));
        assert_eq!(echo(Some("token=a=b")).unwrap().as_deref(), Some("a=b"));
        assert_eq!(echo(Some("token=")), Err(QueryError::NoToken));
        let twice = echo(Some("token=secret1&token=secret2")).unwrap_err();
        assert_eq!(twice.to_string(), "the parameter token comes twice: leave one out");
    }

    #[test]
    fn a_receipt_is_one_or_zero() {
        let receipt = |query| publish(None, Some(query)).map(|query| query.receipt);
        assert_eq!((receipt(""), receipt("receipt=1"), receipt("receipt=0")), (Ok(false), Ok(true), Ok(false)));
        for wrong in ["receipt", "receipt=", "receipt=true", "receipt=2", "receipt=+1"] {
            let error = receipt(wrong).unwrap_err();
            assert_eq!(error.to_string(), "receipt has to be 1 or 0: write receipt=1 for a receipt", "{wrong}");
        }
        assert_eq!(receipt("receipt=1&receipt=1"), Err(QueryError::Repeated("receipt")));
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_right_one() {
        let error = |result: Result<WsQuery, QueryError>| result.unwrap_err().to_string();
        for name in ["channels", "channel[]", "channel[0]", "channel%5B%5D", "Channel", "room", "ROOMS", "topic"] {
            assert!(error(ws(None, Some(&format!("{name}=a")))).ends_with(": write channel=NAME"), "{name}");
        }
        for name in ["jwt", "access_token", "Token"] {
            assert!(error(ws(None, Some(&format!("{name}=a")))).ends_with(": write token=TOKEN"), "{name}");
        }
        let right = "there is no parameter \"x\": this route has channel=NAME and token=TOKEN";
        assert_eq!(error(ws(None, Some("x=1"))), right);
        let receipt = ws(None, Some("receipt=1")).unwrap_err().to_string();
        assert_eq!(receipt, "there is no parameter \"receipt\": this route has channel=NAME and token=TOKEN");
        let publish = |query| publish(None, Some(query)).unwrap_err().to_string();
        assert_eq!(publish("ack=1"), "there is no parameter \"ack\": write receipt=1");
        let token = "there is no parameter \"token\": send the header Authorization: Bearer TOKEN";
        assert_eq!(publish("token=secret"), token);
        assert_eq!(
            echo(Some("channel=a")).unwrap_err().to_string().split(": ").nth(1),
            Some("this route has token=TOKEN")
        );
    }

    #[test]
    fn an_error_is_short_and_printable() {
        let long = format!("{}\u{1b}=1", "%0A".repeat(1000));
        let error = ws(None, Some(&long)).unwrap_err().to_string();
        assert!(error.len() < 200 && !error.chars().any(char::is_control), "{error}");
    }

    #[test]
    fn only_percent_encoded_utf_8_is_a_query() {
        for wrong in ["channel=%", "channel=%4", "channel=%zz", "%=a", "channel=%FF", "x%C3=1"] {
            assert_eq!(ws(None, Some(wrong)), Err(QueryError::Encoding), "{wrong}");
        }
        assert_eq!(echo(Some("token=%2B+")).unwrap().as_deref(), Some("+ "));
    }
}
