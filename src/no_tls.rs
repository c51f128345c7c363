//! In place of `tls` in a build without it: there is no certificate.

/// Nothing.
#[derive(Debug)]
pub enum Tls {}
