//! The content of a key file: its PEM sections (RFC 7468), and the kind of a key in them.
//!
//! Owns the reading of PEM and of as much DER as a public key takes (RFC 5280, RFC 8017, RFC 5480).
//! Promises that a key is read exactly: no bytes are skipped, no length is guessed. Never decrypts,
//! and no key is in an error.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// A section between `-----BEGIN LABEL-----` and `-----END LABEL-----`.
#[derive(Clone, Copy)]
pub struct Section<'a> {
    /// The label.
    pub label: &'a str,
    /// The lines between; `None` if the section has no end.
    body: Option<&'a str>,
}

impl fmt::Debug for Section<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Section").field("label", &self.label).finish_non_exhaustive()
    }
}

/// The sections of a file, in their order.
#[must_use]
pub fn sections(pem: &[u8]) -> Vec<Section<'_>> {
    let mut sections = Vec::new();
    let mut rest = str::from_utf8(pem).unwrap_or_default();
    while let Some((label, after)) = rest.split_once("-----BEGIN ").and_then(|(_, begun)| begun.split_once("-----")) {
        let ended = after.split_once(&format!("-----END {label}-----"));
        sections.push(Section { label, body: ended.map(|(body, _)| body) });
        rest = ended.map_or(after, |(_, rest)| rest);
    }
    sections
}

impl Section<'_> {
    /// Whether the section is a private key of any form.
    #[must_use]
    pub fn is_private_key(&self) -> bool {
        self.label.ends_with("PRIVATE KEY")
    }

    /// Whether the section is encrypted with a password, in the form of PKCS#8 or an older one.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        let old_form = || self.body.is_some_and(|body| body.contains("Proc-Type: 4,ENCRYPTED"));
        self.label == "ENCRYPTED PRIVATE KEY" || old_form()
    }

    /// The bytes of the section; `None` if its base64 is damaged.
    #[must_use]
    pub fn der(&self) -> Option<Vec<u8>> {
        STANDARD.decode(self.body?.split_ascii_whitespace().collect::<String>()).ok()
    }
}

/// The kind of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyKind {
    /// RSA, with the length of its modulus in bits.
    Rsa(usize),
    /// ECDSA with the name of a curve.
    Ec(&'static str),
    /// Another algorithm.
    Other(&'static str),
}

const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
/// The curve of ES256.
pub const P256: &str = "P-256";

fn curve_name(oid: &[u8]) -> &'static str {
    match oid {
        [0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07] => P256,
        [0x2b, 0x81, 0x04, 0x00, 0x22] => "P-384",
        [0x2b, 0x81, 0x04, 0x00, 0x23] => "P-521",
        [0x2b, 0x81, 0x04, 0x00, 0x21] => "P-224",
        [0x2b, 0x81, 0x04, 0x00, 0x0a] => "secp256k1",
        [0x2b, 0x24, 0x03, 0x03, 0x02, 0x08, 0x01, 0x01, ..] => "a Brainpool curve",
        _ => "an unknown curve",
    }
}

fn algorithm_name(oid: &[u8]) -> &'static str {
    match oid {
        [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x0a] => "RSA-PSS",
        [0x2b, 0x65, 0x70] => "Ed25519",
        [0x2b, 0x65, 0x71] => "Ed448",
        [0x2b, 0x65, 0x6e] => "X25519",
        [0x2a, 0x86, 0x48, 0xce, 0x38, 0x04, 0x01] => "DSA",
        _ => "an unknown algorithm",
    }
}

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const NULL: u8 = 0x05;
const OBJECT_IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
/// The curve in a private key of RFC 5915.
const CURVE: u8 = 0xa0;

/// A reader of DER values.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The content of the next value, which has this tag and a length of at most 65,535 in its
    /// shortest form.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (&[found, first], rest) = self.0.split_first_chunk()?;
        let (length, rest) = match (first, rest) {
            (..=0x7f, _) => (usize::from(first), rest),
            (0x81, &[length @ 0x80..=0xff, ref rest @ ..]) => (usize::from(length), rest),
            (0x82, &[high @ 1..=0xff, low, ref rest @ ..]) => (usize::from(u16::from_be_bytes([high, low])), rest),
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length).filter(|_| found == tag)?;
        self.0 = rest;
        Some(content)
    }

    fn end(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }

    /// A positive number in its shortest form, without a leading zero.
    fn positive(&mut self) -> Option<&'a [u8]> {
        match self.take(INTEGER)? {
            [0, number @ ..] if number.first().is_some_and(|first| *first >= 0x80) => Some(number),
            number @ [1..=0x7f, ..] => Some(number),
            _ => None,
        }
    }

    /// An algorithm's identifier, and what is known of its kind. The kind of RSA has no length yet.
    fn algorithm(&mut self) -> Option<KeyKind> {
        let mut algorithm = Der(self.take(SEQUENCE)?);
        match algorithm.take(OBJECT_IDENTIFIER)? {
            RSA => {
                let parameters = algorithm.take(NULL)?;
                (parameters.is_empty() && algorithm.0.is_empty()).then_some(KeyKind::Rsa(0))
            }
            EC => match algorithm.take(OBJECT_IDENTIFIER) {
                Some(curve) => algorithm.end().map(|()| KeyKind::Ec(curve_name(curve))),
                None => algorithm.take(SEQUENCE).map(|_| KeyKind::Ec("explicit parameters")),
            },
            other => Some(KeyKind::Other(algorithm_name(other))),
        }
    }
}

fn bits(number: &[u8]) -> usize {
    number.len() * 8 - number.first().map_or(0, |first| first.leading_zeros() as usize)
}

/// A public key, and the bytes that verify.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublicKey {
    /// Its kind.
    pub kind: KeyKind,
    /// Of RSA an `RSAPublicKey` (RFC 8017, appendix A.1.1), of ECDSA a point (SEC 1).
    pub bytes: Vec<u8>,
}

impl PublicKey {
    /// Reads a `SubjectPublicKeyInfo` (label `PUBLIC KEY`).
    #[must_use]
    pub fn from_spki(der: &[u8]) -> Option<Self> {
        let mut outer = Der(der);
        let mut spki = Der(outer.take(SEQUENCE)?);
        outer.end()?;
        let kind = spki.algorithm()?;
        let [0, bytes @ ..] = spki.take(BIT_STRING)? else { return None };
        spki.end()?;
        match kind {
            KeyKind::Rsa(_) => Self::from_pkcs1(bytes),
            kind => Some(Self { kind, bytes: bytes.to_vec() }),
        }
    }

    /// Reads an `RSAPublicKey` (label `RSA PUBLIC KEY`).
    #[must_use]
    pub fn from_pkcs1(der: &[u8]) -> Option<Self> {
        let mut outer = Der(der);
        let mut key = Der(outer.take(SEQUENCE)?);
        outer.end()?;
        let (modulus, _exponent) = (key.positive()?, key.positive()?);
        key.end()?;
        Some(Self { kind: KeyKind::Rsa(bits(modulus)), bytes: der.to_vec() })
    }
}

/// The kind of a private key that is not encrypted. `None` if it cannot be read.
#[must_use]
pub fn private_key_kind(section: &Section<'_>) -> Option<KeyKind> {
    let der = section.der()?;
    let mut key = Der(Der(&der).take(SEQUENCE)?);
    key.take(INTEGER)?;
    match section.label {
        // PKCS#1.
        "RSA PRIVATE KEY" => Some(KeyKind::Rsa(bits(key.positive()?))),
        // RFC 5915.
        "EC PRIVATE KEY" => {
            key.take(OCTET_STRING)?;
            Some(KeyKind::Ec(curve_name(Der(key.take(CURVE)?).take(OBJECT_IDENTIFIER)?)))
        }
        // PKCS#8.
        "PRIVATE KEY" => match key.algorithm()? {
            KeyKind::Rsa(_) => {
                let mut inner = Der(Der(key.take(OCTET_STRING)?).take(SEQUENCE)?);
                inner.take(INTEGER)?;
                Some(KeyKind::Rsa(bits(inner.positive()?)))
            }
            kind => Some(kind),
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RSA_PUBLIC: &[u8] = include_bytes!("../tests/it/keys/rsa-public.pem");
    const EC_PUBLIC: &[u8] = include_bytes!("../tests/it/keys/ec-public.pem");

    fn der(pem: &[u8]) -> Vec<u8> {
        sections(pem)[0].der().unwrap()
    }

    #[test]
    fn sections_are_found_by_their_labels() {
        let text = b"x\n-----BEGIN A B-----\nAAEC\r\nAw==\n-----END A B-----\n-----BEGIN C-----\n*\n-----END C-----\n\
                     -----BEGIN D-----\nAAEC\n-----END E-----";
        let sections = sections(text);
        let found: Vec<_> = sections.iter().map(|section| (section.label, section.der())).collect();
        assert_eq!(found, [("A B", Some(vec![0, 1, 2, 3])), ("C", None), ("D", None)]);
        assert!(!format!("{sections:?}").contains("AAEC"));
        for none in [&b""[..], b"-----BEGIN", b"-----BEGIN A", b"\xff", b"30 82"] {
            assert_eq!(super::sections(none).len(), 0);
        }
    }

    #[test]
    fn encrypted_and_private_keys_are_known() {
        let of = |text: &'static str| sections(text.as_bytes())[0];
        let new = of("-----BEGIN ENCRYPTED PRIVATE KEY-----\nAA==\n-----END ENCRYPTED PRIVATE KEY-----");
        let old = of("-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: AES-128-CBC,0B\n\nAA==\n\
                      -----END RSA PRIVATE KEY-----");
        let plain = of("-----BEGIN EC PRIVATE KEY-----\nAA==\n-----END EC PRIVATE KEY-----");
        assert_eq!([new, old, plain].map(|section| section.is_encrypted()), [true, true, false]);
        assert!([new, old, plain].iter().all(Section::is_private_key) && !sections(RSA_PUBLIC)[0].is_private_key());
    }

    #[test]
    fn public_keys_are_read_exactly() {
        let rsa = der(RSA_PUBLIC);
        let read = PublicKey::from_spki(&rsa).unwrap();
        assert_eq!((read.kind, read.bytes.as_slice()), (KeyKind::Rsa(2048), &rsa[24..]));
        assert_eq!(PublicKey::from_pkcs1(&rsa[24..]), Some(read));
        let ec = der(EC_PUBLIC);
        let read = PublicKey::from_spki(&ec).unwrap();
        assert_eq!((read.kind, read.bytes.as_slice()), (KeyKind::Ec("P-256"), &ec[26..]));
        for key in [&rsa, &ec] {
            for length in 0..key.len() {
                assert_eq!(PublicKey::from_spki(&key[..length]), None, "{length}");
            }
            assert_eq!(PublicKey::from_spki(&[key, &[0][..]].concat()), None);
        }
    }

    #[test]
    fn der_has_one_form_only() {
        let take = |bytes: &[u8]| Der(bytes).take(OCTET_STRING).map(<[u8]>::to_vec);
        assert_eq!((take(&[4, 0]), take(&[4, 1, 7])), (Some(vec![]), Some(vec![7])));
        assert_eq!(take(&[&[4, 0x81, 0x80][..], &[1; 128]].concat()), Some(vec![1; 128]));
        assert_eq!(take(&[&[4, 0x82, 1, 0][..], &[1; 256]].concat()), Some(vec![1; 256]));
        for wrong in [
            &[][..],
            &[4],
            &[4, 1],
            &[3, 0],
            &[4, 0x80],
            &[4, 0x81, 1, 7],
            &[4, 0x82, 0, 1, 7],
            &[4, 0x83, 0, 0, 1, 7],
            &[4, 0xff],
        ] {
            assert_eq!(take(wrong), None, "{wrong:?}");
        }
        assert_eq!(take(&[&[4, 0x82, 0, 0x80][..], &[1; 128]].concat()), None);
        let positive =
            |bytes: &[u8]| Der(&[&[2, u8::try_from(bytes.len()).unwrap()], bytes].concat()).positive().map(<[u8]>::len);
        assert_eq!((positive(&[1]), positive(&[0, 0x80]), positive(&[0x7f, 0])), (Some(1), Some(1), Some(2)));
        for wrong in [&[][..], &[0], &[0x80], &[0, 0x7f], &[0, 0, 0x80]] {
            assert_eq!(positive(wrong), None, "{wrong:?}");
        }
    }

    #[test]
    fn private_keys_have_a_kind() {
        let kind = |label: &str, base64: &str| {
            let pem = format!("-----BEGIN {label}-----\n{base64}\n-----END {label}-----");
            private_key_kind(&sections(pem.as_bytes())[0])
        };
        let of_file = |pem: &'static [u8]| private_key_kind(&sections(pem)[0]);
        assert_eq!(of_file(include_bytes!("../tests/it/keys/rsa-private.pem")), Some(KeyKind::Rsa(2048)));
        assert_eq!(of_file(include_bytes!("../tests/it/keys/ec-private.pem")), Some(KeyKind::Ec("P-256")));
        let secp256k1 = "MHQCAQEEIDmCD/094BCdQW0jmUSHvNfDW1EfFRSe88JjRfHtUm1MoAcGBSuBBAAKoUQDQgAEUSH/IFkDshV/Le+lHRUgOCjQ\
                         xO5OSBVEr6SPlR+XR1mcYjspGAzELzNWrduVV2oCefb92+7AcFPmjyipcPMjsA==";
        assert_eq!(kind("EC PRIVATE KEY", secp256k1), Some(KeyKind::Ec("secp256k1")));
        let ed448 =
            "MEcCAQAwBQYDK2VxBDsEOS+jnJhJvz4aS2bcX5KcE+W4vL3qwzUWuptzk5/hFb/3KAUqcmRuX8TkrDJOwCyLQd5WCfbkbRPJ3g==";
        assert_eq!(kind("PRIVATE KEY", ed448), Some(KeyKind::Other("Ed448")));
        assert_eq!((kind("PRIVATE KEY", "AAAA"), kind("DSA PRIVATE KEY", ed448)), (None, None));
    }
}
