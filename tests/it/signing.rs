//! Signed tokens, as an issuer makes them: HS256 with a secret, RS256 and ES256 with the keys of
//! these tests.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::hmac;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, RSA_PKCS1_SHA256, RsaKeyPair};
use serde_json::{Value, json};

/// A token that is signed with a secret.
pub(crate) fn token(claims: &Value, secret: &[u8]) -> String {
    signed("HS256", claims, |message| hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec())
}

/// A token that is signed with an RSA key in PEM.
pub(crate) fn token_rs256(claims: &Value, private: &str) -> String {
    let pair = RsaKeyPair::from_pkcs8(&der(private)).unwrap();
    signed("RS256", claims, |message| {
        let mut signature = vec![0; pair.public().modulus_len()];
        pair.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), message, &mut signature).unwrap();
        signature
    })
}

/// A token that is signed with a P-256 key in PEM.
pub(crate) fn token_es256(claims: &Value, private: &str) -> String {
    let random = SystemRandom::new();
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &der(private), &random).unwrap();
    signed("ES256", claims, |message| pair.sign(&random, message).unwrap().as_ref().to_vec())
}

fn signed(algorithm: &str, claims: &Value, sign: impl FnOnce(&[u8]) -> Vec<u8>) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let message = format!("{}.{}", part(&json!({"alg": algorithm, "typ": "JWT"})), part(claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(message.as_bytes()));
    format!("{message}.{signature}")
}

fn der(pem: &str) -> Vec<u8> {
    STANDARD.decode(pem.lines().filter(|line| !line.starts_with("-----")).collect::<String>()).unwrap()
}
