//! Replaces `tls` in a build without TLS: no certificate exists.

/// Has no values in this build.
#[derive(Debug)]
pub enum Tls {}
