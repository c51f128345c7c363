//! As much of HTTP/1.1 as the bench needs: where the head of a response ends, its status, the length of its body; and a
//! whole request for those who may wait.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

/// The head of a response.
pub(crate) struct Head {
    /// Status code.
    pub(crate) status: u16,
    /// Length of the head with the empty line that ends it, in bytes.
    pub(crate) bytes: usize,
    /// `Content-Length`, in bytes, if the response states it.
    pub(crate) body_bytes: Option<usize>,
}

/// The head at the start of `response`; `None` as long as its end has not arrived.
pub(crate) fn head(response: &[u8]) -> io::Result<Option<Head>> {
    let Some(end) = response.windows(4).position(|window| window == b"\r\n\r\n") else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&response[..end]).map_err(io::Error::other)?;
    let mut lines = text.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let status = status_line
        .strip_prefix("HTTP/1.1 ")
        .and_then(|rest| rest.get(..3)?.parse().ok())
        .ok_or_else(|| io::Error::other(format!("no HTTP/1.1 response: {status_line:?}")))?;
    let body_bytes = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .map(|(_, value)| value.trim().parse())
        .transpose()
        .map_err(io::Error::other)?;
    Ok(Some(Head { status, bytes: end + 4, body_bytes }))
}

/// The body of the answer to one `GET`.
pub(crate) fn get(server: SocketAddr, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(server)?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n\r\n")?;
    let mut response = Vec::new();
    stream.read_to_end(&mut response)?;
    match head(&response)? {
        Some(Head { status: 200, bytes, .. }) => String::from_utf8(response.split_off(bytes)).map_err(io::Error::other),
        _ => Err(io::Error::other(format!("{path} was answered with {:?}", String::from_utf8_lossy(&response)))),
    }
}
