//! Whether a published body is text or binary, by its headers (RFC 9110, sections 8.3 and 8.4; RFC
//! 9112, section 6.1).
//!
//! Owns the table of types. Promises that a body of a binary type stays binary, whatever its bytes
//! are, and that text is UTF-8. Never decodes a body: an encoded one is rejected.

use hyper::HeaderMap;
use hyper::header::{CONTENT_ENCODING, CONTENT_TYPE, HeaderName, TRANSFER_ENCODING};

/// The kind of message that a body becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyKind {
    /// Text: the body has to be UTF-8.
    Text,
    /// Binary.
    Binary,
    /// A body without a type: text if it is UTF-8, else binary.
    TextIfUtf8,
}

/// A body that cannot be published: 415, with the header `Accept-Encoding: identity` for
/// [`UnsupportedBody::Encoded`] (RFC 9110, section 15.5.16), or 501 for
/// [`UnsupportedBody::TransferCoding`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnsupportedBody {
    /// A coding other than `identity`.
    #[error("the body is compressed: send it without Content-Encoding")]
    Encoded,
    /// A transfer coding other than one `chunked`, which alone is decoded.
    #[error("the server knows no transfer coding but chunked: send the body without another one")]
    TransferCoding,
    /// Several messages in one body.
    #[error("a body is one message, and application/x-ndjson means several: send one request for each message")]
    Several,
    /// More than one type, or something that is not `type/subtype`.
    #[error("Content-Type has to be one type, such as text/plain, application/json or application/octet-stream")]
    Type,
    /// Text in an encoding whose bytes are not those of UTF-8 even for ASCII.
    #[error("text has to be UTF-8: send it with charset=utf-8, or as application/octet-stream")]
    Charset,
}

/// A body that is text by its type has other bytes: 400.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body is not UTF-8: send text, or binary with Content-Type: application/octet-stream")]
pub struct NotUtf8;

impl BodyKind {
    /// The kind that the headers name.
    ///
    /// # Errors
    /// See [`UnsupportedBody`].
    pub fn of(headers: &HeaderMap) -> Result<Self, UnsupportedBody> {
        if codings(headers, &CONTENT_ENCODING).any(|coding| !coding.eq_ignore_ascii_case(b"identity")) {
            return Err(UnsupportedBody::Encoded);
        }
        let mut transfer = codings(headers, &TRANSFER_ENCODING);
        let first_is_known = transfer.next().is_none_or(|coding| coding.eq_ignore_ascii_case(b"chunked"));
        if !first_is_known || transfer.next().is_some() {
            return Err(UnsupportedBody::TransferCoding);
        }
        let mut types = headers.get_all(CONTENT_TYPE).iter().filter(|value| !value.as_bytes().trim_ascii().is_empty());
        match (types.next(), types.next()) {
            (None, _) => Ok(Self::TextIfUtf8),
            (Some(value), None) => of_type(value.to_str().map_err(|_| UnsupportedBody::Type)?),
            (Some(_), Some(_)) => Err(UnsupportedBody::Type),
        }
    }

    /// The text of a body; `None` if the body is binary.
    ///
    /// # Errors
    /// When the type says text and the bytes are not UTF-8.
    pub fn text(self, body: &[u8]) -> Result<Option<&str>, NotUtf8> {
        match self {
            Self::Text => str::from_utf8(body).map(Some).map_err(|_| NotUtf8),
            Self::Binary => Ok(None),
            Self::TextIfUtf8 => Ok(str::from_utf8(body).ok()),
        }
    }
}

/// The codings that a header lists.
fn codings<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    let values = headers.get_all(name).into_iter();
    let codings = values.flat_map(|value| value.as_bytes().split(|&byte| byte == b',').map(<[u8]>::trim_ascii));
    codings.filter(|coding| !coding.is_empty())
}

fn of_type(content_type: &str) -> Result<BodyKind, UnsupportedBody> {
    let (essence, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
    let essence = essence.trim().to_ascii_lowercase();
    let Some((kind, subtype)) = essence.split_once('/') else { return Err(UnsupportedBody::Type) };
    let token = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_graphic() && byte != b',');
    if !token(kind) || !token(subtype) || subtype.contains('/') {
        return Err(UnsupportedBody::Type);
    }
    let is_text = match (kind, subtype) {
        (_, "x-ndjson" | "ndjson" | "jsonl" | "jsonlines" | "x-jsonlines") => return Err(UnsupportedBody::Several),
        ("text", _) | ("application", "json" | "xml" | "x-www-form-urlencoded") => true,
        _ => subtype.ends_with("+json") || subtype.ends_with("+xml"),
    };
    if !is_text {
        return Ok(BodyKind::Binary);
    }
    let charset = parameters.split(';').filter_map(|parameter| parameter.split_once('='));
    let mut charset = charset.filter(|(name, _)| name.trim().eq_ignore_ascii_case("charset"));
    let wide = charset.any(|(_, value)| {
        let value = value.trim().trim_matches('"').to_ascii_lowercase();
        value.starts_with("utf-16") || value.starts_with("utf-32")
    });
    if wide { Err(UnsupportedBody::Charset) } else { Ok(BodyKind::Text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(headers: &[(HeaderName, &str)]) -> Result<BodyKind, UnsupportedBody> {
        BodyKind::of(&headers.iter().map(|(name, value)| (name.clone(), value.parse().unwrap())).collect())
    }

    #[test]
    fn text_json_xml_and_forms_are_text_and_all_else_is_binary() {
        for text in [
            "text/plain",
            "TEXT/HTML; charset=utf-8",
            "text/event-stream",
            "application/json",
            "Application/JSON;charset=UTF-8",
            "application/cloudevents+json",
            "application/xml",
            "image/svg+xml",
            "application/x-www-form-urlencoded",
            "text/plain; charset=ISO-8859-1",
        ] {
            assert_eq!(of(&[(CONTENT_TYPE, text)]), Ok(BodyKind::Text), "{text}");
        }
        for binary in [
            "application/octet-stream",
            "APPLICATION/Octet-Stream; x=1",
            "application/x-protobuf",
            "application/protobuf",
            "application/msgpack",
            "application/cbor",
            "application/jsonp",
            "application/json-seq",
            "multipart/form-data; boundary=x",
            "image/png",
            "x/text",
        ] {
            assert_eq!(of(&[(CONTENT_TYPE, binary)]), Ok(BodyKind::Binary), "{binary}");
        }
        assert_eq!((of(&[]), of(&[(CONTENT_TYPE, " ")])), (Ok(BodyKind::TextIfUtf8), Ok(BodyKind::TextIfUtf8)));
    }

    #[test]
    fn the_bytes_decide_only_without_a_type() {
        let (utf8, other) = ("é".as_bytes(), &b"\x08\x96\x01\xff"[..]);
        assert_eq!((BodyKind::Text.text(utf8), BodyKind::Text.text(other)), (Ok(Some("é")), Err(NotUtf8)));
        assert_eq!((BodyKind::Binary.text(utf8), BodyKind::Binary.text(other)), (Ok(None), Ok(None)));
        assert_eq!((BodyKind::TextIfUtf8.text(utf8), BodyKind::TextIfUtf8.text(other)), (Ok(Some("é")), Ok(None)));
        // A protobuf message whose bytes happen to be ASCII.
        assert_eq!(BodyKind::Binary.text(b"\x08\x01"), Ok(None));
    }

    #[test]
    fn encoded_and_divided_bodies_are_rejected() {
        for coding in ["gzip", "br", "identity, gzip", "GZIP", "aws-chunked"] {
            assert_eq!(of(&[(CONTENT_ENCODING, coding)]), Err(UnsupportedBody::Encoded), "{coding}");
        }
        let twice = [(CONTENT_ENCODING, "identity"), (CONTENT_ENCODING, "deflate")];
        assert_eq!(of(&twice), Err(UnsupportedBody::Encoded));
        for plain in ["identity", "Identity", "", "identity,"] {
            assert_eq!(of(&[(CONTENT_ENCODING, plain)]), Ok(BodyKind::TextIfUtf8), "{plain}");
        }
        for several in
            ["application/x-ndjson", "application/ndjson", "application/X-NDJSON; charset=utf-8", "text/jsonl"]
        {
            assert_eq!(of(&[(CONTENT_TYPE, several)]), Err(UnsupportedBody::Several), "{several}");
        }
    }

    #[test]
    fn the_only_transfer_coding_is_chunked() {
        for coding in ["chunked", "Chunked", "chunked,", ""] {
            assert_eq!(of(&[(TRANSFER_ENCODING, coding)]), Ok(BodyKind::TextIfUtf8), "{coding}");
        }
        for coding in ["gzip, chunked", "gzip", "chunked, chunked", "identity, chunked", "x"] {
            assert_eq!(of(&[(TRANSFER_ENCODING, coding)]), Err(UnsupportedBody::TransferCoding), "{coding}");
        }
        let twice = [(TRANSFER_ENCODING, "deflate"), (TRANSFER_ENCODING, "chunked")];
        assert_eq!(of(&twice), Err(UnsupportedBody::TransferCoding));
    }

    #[test]
    fn a_type_that_cannot_be_read_is_rejected() {
        for wrong in ["json", "text", "text/", "/plain", "text/plain/x", "text/pl ain", "text/plain, text/html", ";"] {
            assert_eq!(of(&[(CONTENT_TYPE, wrong)]), Err(UnsupportedBody::Type), "{wrong}");
        }
        let twice = [(CONTENT_TYPE, "text/plain"), (CONTENT_TYPE, "application/octet-stream")];
        assert_eq!(of(&twice), Err(UnsupportedBody::Type));
        for wide in
            ["text/plain; charset=UTF-16", "application/xml;x=1; charset=\"utf-16le\"", "text/plain;charset=utf-32"]
        {
            assert_eq!(of(&[(CONTENT_TYPE, wide)]), Err(UnsupportedBody::Charset), "{wide}");
        }
    }
}
