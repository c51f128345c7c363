//! Who may subscribe to what: signed tokens of subscribers (JSON Web Token, RFC 7519).
//!
//! A [`TokenKey`] verifies a token; what comes out is a [`Grant`]: the channels that its bearer may subscribe to, and until
//! when. Tokens and secrets are in no log and in no `Debug` output.

use std::fmt;
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use jsonwebtoken::{Algorithm, DecodingKey, TokenData, Validation, decode};
use serde::Deserialize;

/// How the PEM form of a public key ends its first line; a private key, or a certificate, would only seem to do.
const PUBLIC_LABEL: &[u8] = b"PUBLIC KEY-----";
/// Length of a point of P-256, not compressed.
const P256_POINT_BYTES: usize = 65;

/// What tokens are verified with: a shared secret (HS256), or a public key (RS256, ES256).
#[derive(Clone)]
pub struct TokenKey(Arc<(DecodingKey, Validation)>);

impl fmt::Debug for TokenKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("TokenKey").field(&self.0.1.algorithms).finish()
    }
}

#[derive(Deserialize)]
struct Claims {
    exp: u64,
    channels: Option<Vec<String>>,
    sub: Option<Subject>,
}

/// RFC 7519 wants a string; some issuers write a number.
#[derive(Deserialize)]
#[serde(untagged)]
enum Subject {
    Text(String),
    Number(serde_json::Number),
}

/// What the bearer of a token may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// When it ends, in seconds since 1970.
    pub expires: u64,
    /// Names of channels, or beginnings of names with a `*` behind them; without any claim, every channel.
    channels: Option<Box<[String]>>,
    /// The claim `sub`, if it is not empty: the name of the client in `CHAT_MSG`.
    pub user: Option<Box<str>>,
}

impl Grant {
    /// Whether it reaches as far as this channel.
    #[must_use]
    pub fn allows(&self, channel: &str) -> bool {
        let matches = |pattern: &String| match pattern.strip_suffix('*') {
            Some(beginning) => channel.starts_with(beginning),
            None => channel == pattern,
        };
        self.channels.as_ref().is_none_or(|patterns| patterns.iter().any(matches))
    }
}

impl TokenKey {
    fn new(key: DecodingKey, algorithm: Algorithm) -> Self {
        let mut validation = Validation::new(algorithm);
        validation.leeway = 0;
        // Who issues tokens for others, too, has a key for each.
        validation.validate_aud = false;
        validation.validate_nbf = true;
        Self(Arc::new((key, validation)))
    }

    /// A shared secret, for HS256.
    #[must_use]
    pub fn from_secret(secret: &str) -> Self {
        Self::new(DecodingKey::from_secret(secret.as_bytes()), Algorithm::HS256)
    }

    /// A public key in PEM: of RSA for RS256, or of the curve P-256 for ES256.
    ///
    /// # Errors
    /// When it is neither.
    pub fn from_pem(pem: &[u8]) -> Result<Self, String> {
        if !pem.windows(PUBLIC_LABEL.len()).any(|window| window == PUBLIC_LABEL) {
            return Err("it has no public key".to_owned());
        }
        if let Ok(key) = DecodingKey::from_ec_pem(pem) {
            // A point of another curve is longer, and would verify nothing.
            return match key.try_get_as_bytes() {
                Ok(point) if point.len() == P256_POINT_BYTES => Ok(Self::new(key, Algorithm::ES256)),
                _ => Err("it is of another curve than P-256".to_owned()),
            };
        }
        let key = DecodingKey::from_rsa_pem(pem);
        key.map(|key| Self::new(key, Algorithm::RS256)).map_err(|error| error.to_string())
    }

    /// What a token grants at this moment.
    ///
    /// # Errors
    /// When it is not signed by this key, not valid yet or any more, or no token.
    pub fn verify(&self, token: &str) -> Result<Grant, Invalid> {
        let (key, validation) = &*self.0;
        let TokenData { header, claims, .. } = decode::<Claims>(token, key, validation).map_err(|_| Invalid)?;
        // Of the extensions that a token may declare critical, none is known here. And `exp` is the first second in which it is over.
        if header.crit.is_some() || claims.exp <= UNIX_EPOCH.elapsed().unwrap_or_default().as_secs() {
            return Err(Invalid);
        }
        let user = claims.sub.map(|sub| match sub {
            Subject::Text(text) => text,
            Subject::Number(number) => number.to_string(),
        });
        let user = user.filter(|user| !user.is_empty()).map(String::into_boxed_str);
        Ok(Grant { expires: claims.exp, channels: claims.channels.map(Vec::into_boxed_slice), user })
    }
}

/// A token that grants nothing. Why, is nobody's business who cannot make one.
#[derive(Debug, PartialEq, Eq)]
pub struct Invalid;

#[cfg(test)]
mod tests {
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::{Value, json};

    use super::*;

    const FAR: u64 = 4_000_000_000;
    /// A public key of another curve, made for this test.
    const P384: &[u8] = b"\
-----BEGIN PUBLIC KEY-----
MHYwEAYHKoZIzj0CAQYFK4EEACIDYgAECIVobM0q87sy7M4g8R5SGzrv2uA3R2EL
4qghZ7lfJSEa8Sum6CuFVBoFlj+x5QPwBPVkvEPgPws4iDM/t289as2Ee4jvDcIv
4oT5AhZ+qg4izoHIbmwbxCnHPqoXpE0r
-----END PUBLIC KEY-----";

    fn token(claims: Value, secret: &str) -> String {
        encode(&Header::new(Algorithm::HS256), &claims, &EncodingKey::from_secret(secret.as_bytes())).unwrap()
    }

    #[test]
    fn a_grant_is_what_the_token_says() {
        let key = TokenKey::from_secret("s");
        let everything = key.verify(&token(json!({"exp": FAR}), "s")).unwrap();
        assert!(everything.expires == FAR && everything.allows("any"));
        let some = key.verify(&token(json!({"exp": FAR, "channels": ["a", "room-*"]}), "s")).unwrap();
        assert_eq!(
            ["a", "ab", "room-1", "room", "all"].map(|name| some.allows(name)),
            [true, false, true, false, false]
        );
        assert!(!key.verify(&token(json!({"exp": FAR, "channels": []}), "s")).unwrap().allows("a"));
    }

    #[test]
    fn the_subject_is_the_user() {
        let key = TokenKey::from_secret("s");
        let subjects = [json!("ann"), json!(42), json!(""), json!(null)];
        let users = subjects.map(|sub| key.verify(&token(json!({"exp": FAR, "sub": sub}), "s")).unwrap().user);
        assert_eq!(users, [Some("ann".into()), Some("42".into()), None, None]);
        assert_eq!(key.verify(&token(json!({"exp": FAR}), "s")).unwrap().user, None);
        assert_eq!(key.verify(&token(json!({"exp": FAR, "sub": ["ann"]}), "s")), Err(Invalid));
    }

    #[test]
    fn anything_else_grants_nothing() {
        let key = TokenKey::from_secret("s");
        let good = token(json!({"exp": FAR}), "s");
        let unsigned = "eyJhbGciOiJub25lIn0.eyJleHAiOjQwMDAwMDAwMDB9.";
        // In the middle of the signature.
        let (before, after) = good.split_at(good.len() - 20);
        let tampered = format!("{before}{}{}", if after.starts_with('A') { 'B' } else { 'A' }, &after[1..]);
        let critical = Header { crit: Some(vec!["exp".to_owned()]), ..Header::new(Algorithm::HS256) };
        let texts = [
            encode(&critical, &json!({"exp": FAR}), &EncodingKey::from_secret(b"s")).unwrap(),
            token(json!({"exp": UNIX_EPOCH.elapsed().unwrap().as_secs()}), "s"),
            token(json!({"exp": FAR}), "t"),
            token(json!({"exp": 1}), "s"),
            token(json!({}), "s"),
            token(json!({"exp": FAR, "nbf": FAR}), "s"),
            token(json!({"exp": FAR, "channels": "a"}), "s"),
        ];
        for bad in ["", "x", "a.b.c", unsigned, &tampered].into_iter().chain(texts.iter().map(String::as_str)) {
            assert_eq!(key.verify(bad), Err(Invalid), "{bad}");
        }
    }

    #[test]
    fn a_key_is_one_of_two_kinds_and_stays_secret() {
        assert!(TokenKey::from_pem(b"no key").is_err());
        let error = TokenKey::from_pem(P384).unwrap_err();
        assert!(error.contains("P-256"), "{error}");
        let debug = format!("{:?}", TokenKey::from_secret("very secret"));
        assert!(debug.contains("HS256") && !debug.contains("secret"), "{debug}");
    }
}
