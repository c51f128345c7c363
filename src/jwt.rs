//! Signed tokens that say which channels a client may subscribe to (JSON Web Token, RFC 7519, in
//! the form of RFC 7515, section 7.1).
//!
//! A [`TokenKey`] verifies a token; the result is a [`Grant`]: the client's channels, its name, and
//! the expiry. Promises one reason for each rejected token, and that a claim counts only after the
//! signature. Never logs a token or a secret, nor prints one in `Debug`.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
use ring::{agreement, hmac};
use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};

use crate::keys::{self, KeyKind, P256, PublicKey};

/// Longest token in bytes: as long as the longest head of a request.
const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// Fewest bytes of a secret for HS256 (RFC 7518, section 3.2).
pub const SECRET_BYTES_MIN: usize = 32;
/// Lengths of an RSA modulus in bits: at least as RFC 7518, section 3.3, has it, at most as `ring`
/// verifies.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;
/// The last second of the year 9999, since 1970. A later date is one in milliseconds: seconds reach
/// it in no lifetime, and milliseconds passed it in 1978.
const DATE_MAX: f64 = 253_402_300_799.0;
/// How far the clocks of issuer and server may differ, if nothing else is set.
pub const LEEWAY_DEFAULT: Duration = Duration::from_secs(5);

/// The key that tokens are verified with: a shared secret (HS256) or a public key (RS256, ES256).
#[derive(Clone)]
pub struct TokenKey {
    key: Arc<Key>,
    leeway: Duration,
}

enum Key {
    Hs256 {
        key: hmac::Key,
        secret_bytes: usize,
    },
    /// An `RSAPublicKey`.
    Rs256(Vec<u8>),
    /// A point of P-256, not compressed.
    Es256(Vec<u8>),
}

impl Key {
    /// The value of `alg` (RFC 7518, section 3.1).
    const fn algorithm(&self) -> &'static str {
        match self {
            Self::Hs256 { .. } => "HS256",
            Self::Rs256(_) => "RS256",
            Self::Es256(_) => "ES256",
        }
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let verified = match self {
            Self::Hs256 { key, .. } => hmac::verify(key, message, signature),
            Self::Rs256(key) => UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key).verify(message, signature),
            Self::Es256(key) => UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, key).verify(message, signature),
        };
        verified.is_ok()
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("TokenKey").field(&self.key.algorithm()).finish()
    }
}

/// A file that has no key to verify tokens with: the cause, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// The file has no PEM section.
    #[error("it is not PEM: a public key in PEM begins with -----BEGIN PUBLIC KEY-----")]
    NotPem,
    /// The file has a private key that is encrypted.
    #[error("it is an encrypted private key: name the public key (openssl pkey -in FILE -pubout)")]
    EncryptedPrivateKey,
    /// The file has a private key.
    #[error("it is a private key: name the public key (openssl pkey -in FILE -pubout), which is no secret")]
    PrivateKey,
    /// The file has a certificate.
    #[error("it is a certificate: name its public key (openssl x509 -in FILE -pubkey -noout)")]
    Certificate,
    /// The file has a section of another kind.
    #[error("its PEM has no public key: it has to have a section -----BEGIN PUBLIC KEY-----")]
    OtherSection,
    /// The file has more than one public key.
    #[error("it has several public keys: name a file with one")]
    Several,
    /// Base64 or DER cannot be read.
    #[error("its public key is damaged: export it again (openssl pkey -in FILE -pubout)")]
    Damaged,
    /// An RSA key of another length.
    #[error("its RSA key has {0} bits: RS256 takes one of 2048 to 8192 bits")]
    RsaLength(usize),
    /// A key on another curve.
    #[error("its key is on an unsupported curve ({0}): ES256 takes one on P-256")]
    Curve(&'static str),
    /// A key of another algorithm.
    #[error("its key is of an unsupported kind ({0}): use RSA for RS256 or P-256 for ES256")]
    Kind(&'static str),
    /// A point in the short form.
    #[error("its point is compressed: export the key again (openssl ec -pubin -in FILE -conv_form uncompressed)")]
    Compressed,
}

/// The rights that a token gives its client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The first second, since 1970, in which it is over; the leeway is added already.
    pub expires: u64,
    /// The name of the client in `CHAT_MSG` (`sub`); without one it chooses its name. Never empty.
    pub user: Option<Box<str>>,
    /// Names of channels, or beginnings of names with a `*` behind them; without the claim, every
    /// channel.
    channels: Option<Box<[String]>>,
}

impl Grant {
    /// Whether the client may subscribe to this channel.
    #[must_use]
    pub fn allows(&self, channel: &str) -> bool {
        let matches = |pattern: &String| match pattern.strip_suffix('*') {
            Some(beginning) => channel.starts_with(beginning),
            None => channel == pattern,
        };
        self.channels.as_ref().is_none_or(|patterns| patterns.iter().any(matches))
    }

    /// Whether the client may subscribe to all of these channels.
    ///
    /// # Errors
    /// The first one that it may not.
    pub fn check<'a>(&self, channels: impl IntoIterator<Item = &'a str>) -> Result<(), TokenError> {
        match channels.into_iter().find(|channel| !self.allows(channel)) {
            Some(channel) => Err(TokenError::Channel(channel.to_owned())),
            None => Ok(()),
        }
    }
}

/// A token that does not let its client subscribe: 401, and 403 for [`TokenError::Channel`]. The
/// sentence is for the client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// There is no token.
    #[error(
        "this server asks for a token: send Authorization: Bearer TOKEN, ?token=TOKEN, or the subprotocols bearer, TOKEN"
    )]
    Missing,
    /// It is no token, or not one that is signed.
    #[error("the token is malformed: it has to be a signed JSON Web Token, three parts in base64url")]
    Malformed,
    /// It names another algorithm than that of the server's key.
    #[error("the token has the wrong algorithm: this server takes {0}")]
    Algorithm(&'static str),
    /// It has `crit`, and no such extension is known.
    #[error("the token has critical extensions (crit), and this server knows none")]
    Critical,
    /// The signature is not of the server's key.
    #[error("the token's signature is wrong: it was signed with another key, or changed")]
    Signature,
    /// A claim has another type.
    #[error(
        "the token's claims are malformed: exp, nbf and iat are numbers, sub is a string, channels a list of strings"
    )]
    Claims,
    /// The date of this claim is beyond the year 9999.
    #[error("the token's {0} is in seconds since 1970, this looks like milliseconds")]
    Milliseconds(&'static str),
    /// It has no `exp`.
    #[error("the token has no exp: it has to say when it expires")]
    NoExpiry,
    /// It is over.
    #[error("the token has expired")]
    Expired,
    /// It has not begun.
    #[error("the token is not valid yet (nbf)")]
    NotYetValid,
    /// The token is good, and not for this channel.
    #[error("the token is not for the channel {0}: see its claim channels")]
    Channel(String),
}

/// The header of a token; what is not here has no meaning for the server.
#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default, deserialize_with = "present")]
    crit: Option<IgnoredAny>,
}

/// The claims of a token. The audience is not among them: an issuer that makes tokens for other
/// servers too has a key for each.
#[derive(Deserialize)]
struct Claims {
    #[serde(default, deserialize_with = "present")]
    exp: Option<f64>,
    #[serde(default, deserialize_with = "present")]
    nbf: Option<f64>,
    /// Not compared with the clock: a token is valid from `nbf` on (RFC 7519, section 4.1.6).
    #[serde(default, rename = "iat", deserialize_with = "present")]
    _iat: Option<f64>,
    sub: Option<Subject>,
    #[serde(default, deserialize_with = "present")]
    channels: Option<Box<[String]>>,
}

/// RFC 7519 has a string; some issuers write a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Subject {
    Text(String),
    Number(serde_json::Number),
}

/// A value that is there: `null` is none, and an error.
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<Option<T>, D::Error> {
    T::deserialize(deserializer).map(Some)
}

/// Decodes one part of a token: base64url in its only form, and a JSON object.
fn object<T: DeserializeOwned>(part: &str) -> Option<T> {
    let json = URL_SAFE_NO_PAD.decode(part).ok()?;
    // A list would be read as the fields in their order.
    if json.trim_ascii_start().starts_with(b"{") { serde_json::from_slice(&json).ok() } else { None }
}

impl TokenKey {
    fn new(key: Key) -> Self {
        Self { key: Arc::new(key), leeway: LEEWAY_DEFAULT }
    }

    /// A shared secret, for HS256.
    #[must_use]
    pub fn from_secret(secret: &str) -> Self {
        Self::hs256(secret.as_bytes())
    }

    fn hs256(secret: &[u8]) -> Self {
        Self::new(Key::Hs256 { key: hmac::Key::new(hmac::HMAC_SHA256, secret), secret_bytes: secret.len() })
    }

    /// A public key in PEM: of RSA for RS256, or of the curve P-256 for ES256.
    ///
    /// # Errors
    /// Why there is none.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let sections = keys::sections(pem);
        let mut public = sections.iter().filter(|section| section.label.ends_with("PUBLIC KEY"));
        let section = match (public.next(), public.next()) {
            (Some(section), None) => section,
            (Some(_), Some(_)) => return Err(KeyError::Several),
            (None, _) => {
                return Err(if sections.is_empty() {
                    KeyError::NotPem
                } else if sections.iter().any(keys::Section::is_encrypted) {
                    KeyError::EncryptedPrivateKey
                } else if sections.iter().any(keys::Section::is_private_key) {
                    KeyError::PrivateKey
                } else if sections.iter().any(|section| section.label.ends_with("CERTIFICATE")) {
                    KeyError::Certificate
                } else {
                    KeyError::OtherSection
                });
            }
        };
        let der = section.der().ok_or(KeyError::Damaged)?;
        let key = match section.label {
            "PUBLIC KEY" => PublicKey::from_spki(&der),
            "RSA PUBLIC KEY" => PublicKey::from_pkcs1(&der),
            _ => return Err(KeyError::OtherSection),
        };
        let PublicKey { kind, bytes } = key.ok_or(KeyError::Damaged)?;
        match kind {
            KeyKind::Rsa(bits) if RSA_BITS.contains(&bits) => Ok(Self::new(Key::Rs256(bytes))),
            KeyKind::Rsa(bits) => Err(KeyError::RsaLength(bits)),
            KeyKind::Ec(P256) if matches!(*bytes, [2 | 3, ..]) && bytes.len() == 33 => Err(KeyError::Compressed),
            KeyKind::Ec(P256) if is_p256_point(&bytes) => Ok(Self::new(Key::Es256(bytes))),
            KeyKind::Ec(P256) => Err(KeyError::Damaged),
            KeyKind::Ec(curve) => Err(KeyError::Curve(curve)),
            KeyKind::Other(kind) => Err(KeyError::Kind(kind)),
        }
    }

    /// The same key with another leeway: how far the clocks of issuer and server may differ.
    #[must_use]
    pub fn with_leeway(self, leeway: Duration) -> Self {
        Self { leeway, ..self }
    }

    /// Whether the key is a secret that is shorter than [`SECRET_BYTES_MIN`]: it can be guessed
    /// from a token.
    #[must_use]
    pub fn is_short(&self) -> bool {
        matches!(*self.key, Key::Hs256 { secret_bytes, .. } if secret_bytes < SECRET_BYTES_MIN)
    }

    /// The grant of a token at this moment.
    ///
    /// # Errors
    /// Why it grants nothing.
    pub fn verify(&self, token: &str) -> Result<Grant, TokenError> {
        self.verify_at(token, UNIX_EPOCH.elapsed().unwrap_or_default())
    }

    /// The grant of a token at a moment, in time since 1970.
    ///
    /// # Errors
    /// Why it grants nothing.
    pub fn verify_at(&self, token: &str, now: Duration) -> Result<Grant, TokenError> {
        if token.is_empty() {
            return Err(TokenError::Missing);
        }
        if token.len() > TOKEN_BYTES_MAX {
            return Err(TokenError::Malformed);
        }
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, claims) = message.split_once('.').ok_or(TokenError::Malformed)?;
        let header: Header = object(header).ok_or(TokenError::Malformed)?;
        if header.alg != self.key.algorithm() {
            return Err(TokenError::Algorithm(self.key.algorithm()));
        }
        if header.crit.is_some() {
            return Err(TokenError::Critical);
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| TokenError::Malformed)?;
        if !self.key.verifies(message.as_bytes(), &signature) {
            return Err(TokenError::Signature);
        }
        let Claims { exp, nbf, sub, channels, .. } = object(claims).ok_or(TokenError::Claims)?;
        let (now, leeway) = (now.as_secs_f64(), self.leeway.as_secs_f64());
        for (claim, date) in [("exp", exp), ("nbf", nbf)] {
            if date.is_some_and(|date| date > DATE_MAX) {
                return Err(TokenError::Milliseconds(claim));
            }
        }
        let end = exp.ok_or(TokenError::NoExpiry)? + leeway;
        if now >= end {
            return Err(TokenError::Expired);
        }
        if nbf.is_some_and(|nbf| now + leeway < nbf) {
            return Err(TokenError::NotYetValid);
        }
        let user = sub.map(|sub| match sub {
            Subject::Text(text) => text,
            Subject::Number(number) => number.to_string(),
        });
        let user = user.filter(|user| !user.is_empty()).map(String::into_boxed_str);
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "it is later than now, and not far beyond DATE_MAX"
        )]
        let expires = end.ceil() as u64;
        Ok(Grant { expires, user, channels })
    }
}

/// Whether these are a point of P-256 in the long form. An agreement checks that the point is on
/// the curve; a signature would only never verify.
fn is_p256_point(bytes: &[u8]) -> bool {
    let agrees = || {
        let ours = agreement::EphemeralPrivateKey::generate(&agreement::ECDH_P256, &SystemRandom::new()).ok()?;
        let theirs = agreement::UnparsedPublicKey::new(&agreement::ECDH_P256, bytes);
        agreement::agree_ephemeral(ours, &theirs, |_| ()).ok()
    };
    bytes.len() == 65 && agrees().is_some()
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;
    use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
    use serde_json::{Value, json};

    use super::*;

    const FAR: u64 = 4_000_000_000;
    const SECRET: &str = "0123456789abcdef0123456789abcdef";
    const RSA_PUBLIC: &[u8] = include_bytes!("../tests/it/keys/rsa-public.pem");
    const EC_PUBLIC: &[u8] = include_bytes!("../tests/it/keys/ec-public.pem");
    const RSA_PRIVATE: &[u8] = include_bytes!("../tests/it/keys/rsa-private.pem");
    const EC_PRIVATE: &[u8] = include_bytes!("../tests/it/keys/ec-private.pem");

    fn encoded(bytes: impl AsRef<[u8]>) -> String {
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn hs256(message: &str, secret: &[u8]) -> String {
        encoded(hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message.as_bytes()))
    }

    /// Signs any header and any claims, well formed or not.
    fn signed(header: &str, claims: &str) -> String {
        let message = format!("{}.{}", encoded(header), encoded(claims));
        let signature = hs256(&message, SECRET.as_bytes());
        format!("{message}.{signature}")
    }

    fn token(claims: &Value) -> String {
        signed(r#"{"alg":"HS256","typ":"JWT"}"#, &claims.to_string())
    }

    fn key() -> TokenKey {
        TokenKey::from_secret(SECRET).with_leeway(Duration::ZERO)
    }

    fn private(pem: &[u8]) -> Vec<u8> {
        keys::sections(pem)[0].der().unwrap()
    }

    fn rs256(message: &str) -> String {
        let pair = RsaKeyPair::from_pkcs8(&private(RSA_PRIVATE)).unwrap();
        let mut signature = vec![0; pair.public().modulus_len()];
        pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message.as_bytes(), &mut signature).unwrap();
        encoded(signature)
    }

    fn es256(message: &str) -> String {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &private(EC_PRIVATE), &random).unwrap();
        encoded(pair.sign(&random, message.as_bytes()).unwrap())
    }

    fn pem(label: &str, base64: &str) -> Vec<u8> {
        format!("-----BEGIN {label}-----\n{base64}\n-----END {label}-----\n").into_bytes()
    }

    fn verified(claims: &Value, now: f64, leeway: u64) -> Result<Grant, TokenError> {
        let key = TokenKey::from_secret(SECRET).with_leeway(Duration::from_secs(leeway));
        key.verify_at(&token(claims), Duration::from_secs_f64(now))
    }

    #[test]
    fn a_grant_is_what_the_token_says() {
        let everything = key().verify(&token(&json!({"exp": FAR}))).unwrap();
        assert!(everything.expires == FAR && everything.allows("any") && everything.user.is_none());
        let some = key().verify(&token(&json!({"exp": FAR, "channels": ["a", "room-*"], "sub": "Ada"}))).unwrap();
        assert_eq!(
            ["a", "ab", "room-1", "room", "all"].map(|name| some.allows(name)),
            [true, false, true, false, false]
        );
        assert_eq!(some.user.as_deref(), Some("Ada"));
        assert_eq!(some.check(["a", "room-9"]), Ok(()));
        assert_eq!(some.check(["a", "b", "c"]), Err(TokenError::Channel("b".to_owned())));
        assert!(!key().verify(&token(&json!({"exp": FAR, "channels": []}))).unwrap().allows("a"));
    }

    #[test]
    fn times_are_numbers_with_a_leeway() {
        let grant = |claims: Value, now, leeway| verified(&claims, now, leeway).map(|grant| grant.expires);
        assert_eq!(grant(json!({"exp": 100}), 99.9, 0), Ok(100));
        assert_eq!(grant(json!({"exp": 100}), 100.0, 0), Err(TokenError::Expired));
        assert_eq!(grant(json!({"exp": 100.5}), 100.4, 0), Ok(101));
        assert_eq!(grant(json!({"exp": 100.5}), 100.5, 0), Err(TokenError::Expired));
        assert_eq!(grant(json!({"exp": 100}), 104.9, 5), Ok(105));
        assert_eq!(grant(json!({"exp": 100}), 105.0, 5), Err(TokenError::Expired));
        assert_eq!(grant(json!({"exp": 1e2}), 99.0, 0), Ok(100));
        assert_eq!(grant(json!({"exp": 253_402_300_799_u64}), 99.0, 5), Ok(253_402_300_804));
        for far in [json!(253_402_300_800_u64), json!(1_795_909_310_000_u64), json!(1e300)] {
            let error = grant(json!({"exp": far}), 99.0, 0).unwrap_err();
            assert_eq!(error.to_string(), "the token's exp is in seconds since 1970, this looks like milliseconds");
            assert_eq!(grant(json!({"exp": 200, "nbf": far}), 99.0, 0), Err(TokenError::Milliseconds("nbf")));
        }
        assert_eq!(grant(json!({"exp": -1.5}), 0.0, 0), Err(TokenError::Expired));
        assert_eq!(grant(json!({"exp": 200, "nbf": 100.5}), 100.0, 0), Err(TokenError::NotYetValid));
        assert_eq!(grant(json!({"exp": 200, "nbf": 100.5}), 100.5, 0), Ok(200));
        assert_eq!(grant(json!({"exp": 200, "nbf": 100.5}), 95.5, 5), Ok(205));
        assert_eq!(grant(json!({"exp": 200, "nbf": 100.5}), 95.4, 5), Err(TokenError::NotYetValid));
        assert_eq!(grant(json!({"exp": 200, "iat": 99.25}), 99.0, 0), Ok(200));
        assert_eq!(TokenKey::from_secret("s").leeway, Duration::from_secs(5));
    }

    #[test]
    fn each_reason_has_its_own_sentence() {
        let at = |token: &str| key().verify_at(token, Duration::from_secs(1000)).unwrap_err();
        let header = r#"{"alg":"HS256"}"#;
        let good = token(&json!({"exp": 2000}));
        // In the middle of the signature.
        let (before, after) = good.split_at(good.len() - 20);
        let tampered = format!("{before}{}{}", if after.starts_with('A') { 'B' } else { 'A' }, &after[1..]);
        let other = format!("{}.{}", encoded(header), encoded(r#"{"exp":2000}"#));
        let other = format!("{other}.{}", hs256(&other, b"other"));
        let cases = [
            (String::new(), TokenError::Missing),
            ("x".to_owned(), TokenError::Malformed),
            (tampered, TokenError::Signature),
            (other, TokenError::Signature),
            (signed(r#"{"alg":"HS512"}"#, "{}"), TokenError::Algorithm("HS256")),
            (signed(r#"{"alg":"HS256","crit":["exp"]}"#, r#"{"exp":2000}"#), TokenError::Critical),
            (token(&json!({})), TokenError::NoExpiry),
            (token(&json!({"exp": 999})), TokenError::Expired),
            (token(&json!({"exp": 2000, "nbf": 1001})), TokenError::NotYetValid),
            (token(&json!({"exp": "2000"})), TokenError::Claims),
        ];
        let mut sentences: Vec<_> = cases
            .map(|(token, right)| {
                assert_eq!(at(&token), right, "{token}");
                right.to_string()
            })
            .to_vec();
        sentences.push(TokenError::Channel("a".to_owned()).to_string());
        sentences.sort_unstable();
        sentences.dedup();
        assert_eq!(sentences.len(), 10, "two cases are of the signature: {sentences:?}");
    }

    #[test]
    fn hostile_forms_are_rejected() {
        let now = Duration::from_secs(1000);
        let good = token(&json!({"exp": 2000}));
        assert!(key().verify_at(&good, now).is_ok());
        let header = r#"{"alg":"HS256"}"#;
        let unsigned = |header: &str| format!("{}.{}.", encoded(header), encoded(r#"{"exp":2000}"#));
        for algorithm in ["none", "None", "", "hs256", "HS256 ", "RS256", "ES256"] {
            let header = format!(r#"{{"alg":"{algorithm}"}}"#);
            for token in [unsigned(&header), signed(&header, r#"{"exp":2000}"#)] {
                assert_eq!(key().verify_at(&token, now), Err(TokenError::Algorithm("HS256")), "{algorithm}");
            }
        }
        assert_eq!(key().verify_at(&unsigned(header), now), Err(TokenError::Signature));
        let (message, signature) = good.rsplit_once('.').unwrap();
        let parts: Vec<_> = good.split('.').collect();
        for malformed in [
            format!("{good}."),
            format!(".{good}"),
            format!("{good}="),
            format!("{good}\n"),
            format!(" {good}"),
            format!("{message}.{signature}.{signature}"),
            format!("{message}..{signature}"),
            message.to_owned(),
            ".".to_owned(),
            "..".to_owned(),
            "...".to_owned(),
            format!("{}=.{}.{}", parts[0], parts[1], parts[2]),
            // The standard alphabet.
            format!("{message}.++++"),
            // The last character of 32 bytes has two bits that count for nothing.
            format!("{message}.{}B", &signature[..signature.len() - 1]),
            "x".repeat(1 << 20),
            format!("{message}.{}", "A".repeat(1 << 20)),
        ] {
            let error = key().verify_at(&malformed, now).unwrap_err();
            assert!(matches!(error, TokenError::Malformed | TokenError::Signature), "{error:?} {malformed:.60}");
        }
        for header in [
            "",
            "null",
            "[]",
            r#"["HS256"]"#,
            r#"{"alg":null}"#,
            r#"{"alg":["HS256"]}"#,
            r#"{"typ":"JWT"}"#,
            r#"{"alg":"HS256","alg":"HS256"}"#,
            r#"{"alg":"HS256"} {"#,
            r#"{"alg":"HS256""#,
        ] {
            assert_eq!(
                key().verify_at(&signed(header, r#"{"exp":2000}"#), now),
                Err(TokenError::Malformed),
                "{header}"
            );
        }
        for critical in ["[]", "null", "{}", r#"["b64"]"#] {
            let header = format!(r#"{{"alg":"HS256","crit":{critical}}}"#);
            assert_eq!(key().verify_at(&signed(&header, r#"{"exp":2000}"#), now), Err(TokenError::Critical));
        }
        for claims in [
            "",
            "null",
            "2000",
            "[2000]",
            r#"{"exp":null}"#,
            r#"{"exp":true}"#,
            r#"{"exp":1e999}"#,
            r#"{"exp":NaN}"#,
            r#"{"exp":2000,"exp":1}"#,
            r#"{"exp":2000,"nbf":"1"}"#,
            r#"{"exp":2000,"nbf":null}"#,
            r#"{"exp":2000,"iat":"now"}"#,
            r#"{"exp":2000,"sub":["Ada"]}"#,
            r#"{"exp":2000,"channels":"a"}"#,
            r#"{"exp":2000,"channels":null}"#,
            r#"{"exp":2000,"channels":["a",1]}"#,
            r#"{"exp":2000}}"#,
        ] {
            assert_eq!(key().verify_at(&signed(header, claims), now), Err(TokenError::Claims), "{claims}");
        }
        let deep = format!(r#"{{"exp":2000,"x":{}{}}}"#, "[".repeat(5000), "]".repeat(5000));
        assert!(key().verify_at(&signed(header, &deep), now).is_ok(), "depth takes no stack");
    }

    #[test]
    fn the_subject_is_the_user() {
        let subjects = [json!("Ada"), json!(42), json!(""), json!(null)];
        let users = subjects.map(|sub| key().verify(&token(&json!({"exp": FAR, "sub": sub}))).unwrap().user);
        assert_eq!(users, [Some("Ada".into()), Some("42".into()), None, None]);
    }

    #[test]
    fn public_keys_verify_their_algorithm_only() {
        let now = Duration::from_secs(1000);
        let claims = encoded(r#"{"exp":2000}"#);
        let message = |algorithm: &str| format!("{}.{claims}", encoded(format!(r#"{{"alg":"{algorithm}"}}"#)));
        let (rs, es, hs) = (message("RS256"), message("ES256"), message("HS256"));
        let rsa_signature = rs256(&rs);
        let ec_signature = es256(&es);
        let (rsa, ec) = (TokenKey::from_pem(RSA_PUBLIC).unwrap(), TokenKey::from_pem(EC_PUBLIC).unwrap());
        assert!(rsa.verify_at(&format!("{rs}.{rsa_signature}"), now).is_ok());
        assert!(ec.verify_at(&format!("{es}.{ec_signature}"), now).is_ok());
        // A public key as a shared secret, and signatures under another name.
        for (key, algorithm, pem) in [(&rsa, "RS256", RSA_PUBLIC), (&ec, "ES256", EC_PUBLIC)] {
            let wrong = Err(TokenError::Algorithm(algorithm));
            assert_eq!(key.verify_at(&format!("{hs}.{}", hs256(&hs, pem)), now), wrong);
            let forged = format!("{}.{}", message(algorithm), hs256(&message(algorithm), pem));
            assert_eq!(key.verify_at(&forged, now), Err(TokenError::Signature));
            for empty in [String::new(), encoded([0; 64]), encoded([0; 256]), encoded([255; 64])] {
                let token = format!("{}.{empty}", message(algorithm));
                assert_eq!(key.verify_at(&token, now), Err(TokenError::Signature));
            }
        }
        assert_eq!(rsa.verify_at(&format!("{es}.{ec_signature}"), now), Err(TokenError::Algorithm("RS256")));
        assert_eq!(ec.verify_at(&format!("{rs}.{rsa_signature}"), now), Err(TokenError::Algorithm("ES256")));
    }

    #[test]
    fn the_examples_of_the_standard_verify() {
        // RFC 7515, appendix A.1 to A.3: the claims expire at 1300819380 and have no channels.
        const CLAIMS: &str =
            "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ";
        const HS256: &str = "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow";
        const MODULUS: &str = "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0\
                               Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXnd\
                               S5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5Ihl\
                               JH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ";
        const X_Y: [&str; 2] =
            ["f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU", "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"];
        const SIGNATURES: [(&str, &str); 3] = [
            ("eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9", "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk"),
            (
                "eyJhbGciOiJSUzI1NiJ9",
                "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdb\
                 F9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383\
                 LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWy\
                 wlVmtVrBp0igcN_IoypGlUPQGe77Rw",
            ),
            (
                "eyJhbGciOiJFUzI1NiJ9",
                "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
            ),
        ];
        let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
        let rsa = [&[0x30, 0x82, 1, 0x0a, 2, 0x82, 1, 1, 0][..], &decode(MODULUS), &[2, 3, 1, 0, 1]].concat();
        let ec = &private(EC_PUBLIC)[..26];
        let ec = [ec, &[4], &decode(X_Y[0]), &decode(X_Y[1])].concat();
        let keys = [
            TokenKey::hs256(&decode(HS256)),
            TokenKey::from_pem(&pem("RSA PUBLIC KEY", &STANDARD.encode(rsa))).unwrap(),
            TokenKey::from_pem(&pem("PUBLIC KEY", &STANDARD.encode(ec))).unwrap(),
        ];
        for (key, (header, signature)) in keys.into_iter().zip(SIGNATURES) {
            let token = format!("{header}.{CLAIMS}.{signature}");
            let key = key.with_leeway(Duration::ZERO);
            let grant = key.verify_at(&token, Duration::from_secs(1_300_819_379)).unwrap();
            assert!(grant.expires == 1_300_819_380 && grant.allows("any"), "{key:?}");
            assert_eq!(key.verify_at(&token, Duration::from_secs(1_300_819_380)), Err(TokenError::Expired));
        }
    }

    #[test]
    fn a_key_that_does_not_fit_says_why() {
        // Keys made for this test, and for nothing else.
        let error = |pem: &[u8]| TokenKey::from_pem(pem).unwrap_err();
        let public = |base64| error(&pem("PUBLIC KEY", base64));
        let p384 = "MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAECIVobM0q87sy7M4g8R5SGzrv2uA3R2EL4qghZ7lfJSEa8Sum6CuFVBoFlj+x5QPwBPVkvEPg\
                    Pws4iDM/t289as2Ee4jvDcIv4oT5AhZ+qg4izoHIbmwbxCnHPqoXpE0r";
        let p521 = "MIGbMBAGByqGSM49AgEGBSuBBAAjA4GGAAQBVvwdSfly3YbVcQj4erisX9XKz2BJtDplbA28B93Ik0WbfmV+ZaS9v684WR9jlsho4L2m\
                    O35EdxD7VogUuJhSc6wB+50Ry22FrcIRFClO8rKHvi1SOa7VZwjZnk5tX1Tv+AiJ7FxIKSKzBO49/x493lEtXRCNuYk8xLxFxNxOcQ79\
                    1Js=";
        let secp256k1 = "MFYwEAYHKoZIzj0CAQYFK4EEAAoDQgAEUSH/IFkDshV/Le+lHRUgOCjQxO5OSBVEr6SPlR+XR1mcYjspGAzELzNWrduVV2oC\
                         efb92+7AcFPmjyipcPMjsA==";
        let ed25519 = "MCowBQYDK2VwAyEAuCKr729FZcCKTq4myh2WZ9QefWdwACKTVGUDKpBvVCI=";
        let rsa_1024 = "MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDJikkwo4ObQh4mShfwIeT7Q64uaMjWYxGc8Xl4/JGT2u4LoilFA+I93SS3rO4G\
                        BVX9Ed2gbOAaCuuHAgrpBIMXRVi0yfYxceRUMyndwR9iiqFG142vQcspUT/GE8ZMTi6bjxSt4qnErLpy2grwTGx3RVygLiLYNY8c\
                        d0CELGLABQIDAQAB";
        let pss = "MIGdMAsGCSqGSIb3DQEBCgOBjQAwgYkCgYEA7YakQEJqoazWCN4N7fq+ldYsc8D/zupxS4baps5sp6G8iSj3L1o3owkLEEDSTYZsa1Nn\
                   HdpkecdrVjJ2HnE8jgKEE+bxDD3Zw+ll5wLfrx4t1SYspdWN/7Gf8UEVEOZ7HyuC72J82Q7Zbl22ILkg9Iw9d3dl66OTABepUyUFD5UC\
                   AwEAAQ==";
        let compressed = "MDkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDIgADp8T5h3CZlEKrhQgi58NMUeBuUhPPXAxj5jXw9IYgmF8=";
        assert_eq!(public(p384), KeyError::Curve("P-384"));
        assert_eq!(public(p521), KeyError::Curve("P-521"));
        assert_eq!(public(secp256k1), KeyError::Curve("secp256k1"));
        assert_eq!(public(ed25519), KeyError::Kind("Ed25519"));
        assert_eq!(public(pss), KeyError::Kind("RSA-PSS"));
        assert_eq!(public(rsa_1024), KeyError::RsaLength(1024));
        assert_eq!(public(compressed), KeyError::Compressed);
        assert_eq!(public("AAAA"), KeyError::Damaged);
        assert_eq!(public("A"), KeyError::Damaged);
        let mut off_curve = private(EC_PUBLIC);
        *off_curve.last_mut().unwrap() ^= 1;
        assert_eq!(public(&STANDARD.encode(off_curve)), KeyError::Damaged);
        assert_eq!(error(b"no key"), KeyError::NotPem);
        assert_eq!(error(b""), KeyError::NotPem);
        assert_eq!(error(&private(RSA_PUBLIC)), KeyError::NotPem);
        assert_eq!(error(RSA_PRIVATE), KeyError::PrivateKey);
        assert_eq!(error(&pem("EC PRIVATE KEY", "AAAA")), KeyError::PrivateKey);
        assert_eq!(error(&pem("ENCRYPTED PRIVATE KEY", "AAAA")), KeyError::EncryptedPrivateKey);
        assert_eq!(error(include_bytes!("../tests/it/keys/tls-cert.pem")), KeyError::Certificate);
        assert_eq!(error(&pem("X509 CRL", "AAAA")), KeyError::OtherSection);
        assert_eq!(error(&pem("DSA PUBLIC KEY", "AAAA")), KeyError::OtherSection);
        assert_eq!(error(&[RSA_PUBLIC, EC_PUBLIC].concat()), KeyError::Several);
        assert!(TokenKey::from_pem(&[EC_PRIVATE, EC_PUBLIC].concat()).is_ok());
    }

    #[test]
    fn a_secret_may_be_too_short_and_is_never_shown() {
        assert!(
            TokenKey::from_secret(&"x".repeat(31)).is_short() && !TokenKey::from_secret(&"x".repeat(32)).is_short()
        );
        assert!(!TokenKey::from_pem(EC_PUBLIC).unwrap().is_short());
        assert_eq!(format!("{:?}", TokenKey::from_secret("very secret")), "TokenKey(\"HS256\")");
    }
}
