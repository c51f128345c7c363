//! Opening the listeners: addresses, socket options, and sockets that systemd passes.
//!
//! Each client's socket inherits its options from the listener, so no system call per connection
//! sets them. A client of a Unix socket is a `TcpStream` in the code as well: every operation on it
//! works on any stream socket.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::{env, fmt, fs, process};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::engine::READ_BYTES;
use crate::settings::{Config, FIRST_PASSED_FD, ListenAddress, ListenerConfig};

/// Connections that the kernel completes and queues for the front.
pub const LISTEN_BACKLOG: i32 = 4096;

/// A listener that is open.
#[derive(Debug)]
pub struct BoundListener {
    /// The socket; of any family.
    pub listener: TcpListener,
    /// Its address.
    pub address: BoundAddress,
    /// The configuration: what the listener serves.
    pub config: ListenerConfig,
}

/// The address of an open listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BoundAddress {
    /// An address and a port.
    Ip(SocketAddr),
    /// A path, or a name of the system's.
    Unix(String),
}

impl BoundAddress {
    /// The address and port, if it has them.
    #[must_use]
    pub fn ip(&self) -> Option<SocketAddr> {
        match self {
            Self::Ip(address) => Some(*address),
            Self::Unix(_) => None,
        }
    }
}

impl fmt::Display for BoundAddress {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(address) => address.fmt(formatter),
            Self::Unix(path) => write!(formatter, "unix:{path}"),
        }
    }
}

/// Opens the listeners of one configured address: one, or as many as a name has addresses.
///
/// # Errors
/// When the address is in use, not available, or unknown.
pub fn bind(config: &Config, address: &ListenAddress, served: ListenerConfig) -> io::Result<Vec<BoundListener>> {
    let open = |address: SocketAddr| of(listen_ip(config, address)?, served);
    match address {
        ListenAddress::Ip(address) => Ok(vec![open(*address)?]),
        ListenAddress::Name { host, port } => {
            let addresses = (host.as_str(), *port).to_socket_addrs()?;
            let mut bound = Vec::new();
            for mut address in addresses {
                // Every address of a name has the same port, also one that the kernel has chosen.
                if let Some(port) = bound.first().and_then(|first: &BoundListener| first.address.ip()) {
                    address.set_port(port.port());
                }
                match open(address) {
                    Ok(listener) if bound.iter().all(|other: &BoundListener| other.address != listener.address) => {
                        bound.push(listener);
                    }
                    Ok(_) => {}
                    // `localhost` may be an IPv6 address on a machine without IPv6.
                    Err(error) if error.raw_os_error() == Some(libc::EADDRNOTAVAIL) => {}
                    Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
                    Err(error) => return Err(error),
                }
            }
            if bound.is_empty() {
                return Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "the name has no address here"));
            }
            Ok(bound)
        }
        // One socket for both families, or of IPv4 where there is no IPv6.
        ListenAddress::Any { port } => match open(SocketAddr::from((Ipv6Addr::UNSPECIFIED, *port))) {
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {
                Ok(vec![open(SocketAddr::from((Ipv4Addr::UNSPECIFIED, *port)))?])
            }
            bound => Ok(vec![bound?]),
        },
        ListenAddress::Unix(path) => Ok(vec![of(listen_unix(config, path)?, served)?]),
        ListenAddress::Systemd => {
            let passed = passed_fds()?;
            passed.map(|fd| of(take_passed(config, fd)?, served)).collect()
        }
        ListenAddress::Fd(fd) => {
            let passed = passed_fds()?;
            if !passed.clone().any(|passed| passed == *fd) {
                let sentence = format!("systemd passed {} to {}", passed.start, passed.end - 1);
                return Err(io::Error::new(io::ErrorKind::NotFound, sentence));
            }
            Ok(vec![of(take_passed(config, *fd)?, served)?])
        }
    }
}

/// The address that a socket is bound to decides which clients can reach it.
fn of(socket: Socket, mut config: ListenerConfig) -> io::Result<BoundListener> {
    let local = socket.local_addr()?;
    let address = match local.as_socket() {
        Some(address) => BoundAddress::Ip(address),
        None => {
            let path = local.as_pathname().map(|path| path.display().to_string());
            BoundAddress::Unix(path.unwrap_or_else(|| "(unnamed)".to_owned()))
        }
    };
    config.is_local = address.ip().is_none_or(|address| address.ip().to_canonical().is_loopback());
    Ok(BoundListener { listener: socket.into(), address, config })
}

fn listen_ip(config: &Config, address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // After a restart, connections of the last process may still be in TIME_WAIT. The kernel still
    // rejects a second server.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() && address.ip().is_unspecified() {
        socket.set_only_v6(false)?;
    }
    set_options(config, &socket, true)?;
    socket.bind(&address.into())?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket)
}

fn listen_unix(config: &Config, path: &Path) -> io::Result<Socket> {
    let address = SockAddr::unix(path)?;
    remove_dead_socket(path, &address)?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    set_options(config, &socket, false)?;
    socket.bind(&address)?;
    socket.listen(LISTEN_BACKLOG)?;
    Ok(socket)
}

/// Removes a socket that a dead server has left behind: only such a socket refuses a connection.
/// Anything else at the path stays, and is an error.
fn remove_dead_socket(path: &Path, address: &SockAddr) -> io::Result<()> {
    let in_the_way = |what: &str| {
        let sentence = format!("{what} is at this path: remove it, or name another path");
        Err(io::Error::new(io::ErrorKind::AlreadyExists, sentence))
    };
    let kind = match fs::symlink_metadata(path) {
        Ok(file) => file.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if kind.is_symlink() {
        return in_the_way("a symbolic link");
    } else if kind.is_dir() {
        return in_the_way("a directory");
    } else if !kind.is_socket() {
        return in_the_way("a file that is no socket");
    }
    let probe = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    // A blocking connect would wait for a server whose queue is full.
    probe.set_nonblocking(true)?;
    let Err(error) = probe.connect(address) else { return Err(io::ErrorKind::AddrInUse.into()) };
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED) => fs::remove_file(path),
        Some(libc::ENOENT) => Ok(()),
        Some(libc::EAGAIN) => Err(io::ErrorKind::AddrInUse.into()),
        Some(libc::EPROTOTYPE) => in_the_way("another program's socket, which takes no stream connections,"),
        _ => Err(error),
    }
}

/// The sockets that systemd has passed to this process.
fn passed_fds() -> io::Result<std::ops::Range<RawFd>> {
    let number = |name| env::var(name).ok().and_then(|value: String| value.parse::<RawFd>().ok());
    match (number("LISTEN_PID"), number("LISTEN_FDS")) {
        (Some(pid), Some(count)) if pid == process::id() as RawFd && count > 0 => {
            Ok(FIRST_PASSED_FD..FIRST_PASSED_FD + count)
        }
        _ => Err(io::Error::new(io::ErrorKind::NotFound, "systemd has passed no socket (LISTEN_FDS, LISTEN_PID)")),
    }
}

fn take_passed(config: &Config, fd: RawFd) -> io::Result<Socket> {
    // A copy: the descriptor stays the process' own.
    // SAFETY: the call takes any number; one that is no descriptor is an error to it.
    let copy = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, FIRST_PASSED_FD) };
    if copy < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it, for this owner alone.
    let socket = Socket::from(unsafe { OwnedFd::from_raw_fd(copy) });
    if !socket.is_listener()? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("fd:{fd} is not a listening socket")));
    }
    let is_tcp = socket.local_addr()?.as_socket().is_some();
    set_options(config, &socket, is_tcp)?;
    Ok(socket)
}

/// Options that each client's socket inherits.
fn set_options(config: &Config, socket: &Socket, is_tcp: bool) -> io::Result<()> {
    // The kernel doubles the value for its bookkeeping.
    socket.set_send_buffer_size(config.kernel_bytes_max)?;
    // If a client sends faster than the server reads, its bytes wait at the client; otherwise the
    // kernel would take megabytes of them.
    socket.set_recv_buffer_size(config.kernel_bytes_max.max(READ_BYTES))?;
    if is_tcp {
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_notsent_lowat(config.kernel_bytes_max as u32)?;
        socket.set_tcp_user_timeout(Some(config.write_timeout))?;
        defer_accept(socket)?;
    }
    socket.set_nonblocking(true)
}

/// Has the kernel hand over a socket with the first bytes of its request, not before: most
/// handshakes are then answered at once. A client that says nothing is handed over when the kernel
/// has asked it again, after about a second.
fn defer_accept(listener: &Socket) -> io::Result<()> {
    let seconds: libc::c_int = 1;
    // SAFETY: the value is a readable `c_int` of the length given, and the descriptor is open.
    let result = unsafe {
        libc::setsockopt(
            listener.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_DEFER_ACCEPT,
            (&raw const seconds).cast(),
            size_of_val(&seconds) as libc::socklen_t,
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use std::net::TcpStream;

    use socket2::SockRef;

    use super::*;

    fn served() -> ListenerConfig {
        Config::default().listeners()[0].1
    }

    #[test]
    fn sockets_inherit_what_they_need_from_the_listener() {
        let config = Config { kernel_bytes_max: 64 * 1024, ..Config::default() };
        let mut bound = bind(&config, &"127.0.0.1:0".parse().unwrap(), served()).unwrap();
        let BoundListener { listener, address, .. } = bound.pop().unwrap();
        listener.set_nonblocking(false).unwrap();
        let _client = TcpStream::connect(address.ip().unwrap()).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        let socket = SockRef::from(&accepted);
        assert!(socket.tcp_nodelay().unwrap());
        assert_eq!(socket.send_buffer_size().unwrap(), 2 * 64 * 1024);
        assert_eq!(socket.recv_buffer_size().unwrap(), 2 * READ_BYTES);
        assert_eq!(socket.tcp_notsent_lowat().unwrap(), 64 * 1024);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(config.write_timeout));
    }

    #[test]
    fn a_name_is_all_its_addresses_at_one_port() {
        let bound = bind(&Config::default(), &"localhost:0".parse().unwrap(), served()).unwrap();
        let ports: Vec<_> = bound.iter().map(|bound| bound.address.ip().unwrap().port()).collect();
        assert!(!ports.is_empty() && ports.iter().all(|&port| port == ports[0] && port != 0), "{ports:?}");
        assert!(bound.iter().all(|bound| bound.config.is_local));
    }

    #[test]
    fn a_unix_socket_of_a_dead_server_is_replaced_and_of_a_living_one_is_not() {
        let path = env::temp_dir().join(format!("hydrant-net-{}.sock", process::id()));
        let address = ListenAddress::Unix(path.clone());
        let first = bind(&Config::default(), &address, served()).unwrap();
        assert_eq!(first[0].address, BoundAddress::Unix(path.display().to_string()));
        let second = bind(&Config::default(), &address, served()).unwrap_err();
        assert_eq!(second.kind(), io::ErrorKind::AddrInUse);
        drop(first);
        drop(bind(&Config::default(), &address, served()).unwrap());
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_unix_socket_whose_queue_is_full_is_that_of_a_living_server() {
        let path = env::temp_dir().join(format!("hydrant-net-full-{}.sock", process::id()));
        let address = SockAddr::unix(&path).unwrap();
        let living = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        living.bind(&address).unwrap();
        living.listen(0).unwrap();
        let clients = std::iter::from_fn(|| {
            let client = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
            client.set_nonblocking(true).unwrap();
            client.connect(&address).ok().map(|()| client)
        });
        let _clients: Vec<_> = clients.collect();
        let error = bind(&Config::default(), &ListenAddress::Unix(path.clone()), served()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(path.exists());
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn nothing_but_a_dead_socket_is_removed() {
        let folder = env::temp_dir().join(format!("hydrant-net-{}", process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = |name: &str| folder.join(name);
        let _others: Vec<_> = [("datagram", Type::DGRAM), ("packets", Type::SEQPACKET)]
            .map(|(name, kind)| {
                let socket = Socket::new(Domain::UNIX, kind, None).unwrap();
                socket.bind(&SockAddr::unix(path(name)).unwrap()).unwrap();
                socket
            })
            .into();
        fs::write(path("file"), "").unwrap();
        fs::create_dir(path("directory")).unwrap();
        std::os::unix::fs::symlink(path("nothing"), path("link")).unwrap();
        for (name, said) in [
            ("datagram", "another program's socket"),
            ("packets", "another program's socket"),
            ("file", "a file that is no socket"),
            ("directory", "a directory"),
            ("link", "a symbolic link"),
        ] {
            let error = bind(&Config::default(), &ListenAddress::Unix(path(name)), served()).unwrap_err();
            let sentence = error.to_string();
            assert!(sentence.starts_with(said) && sentence.ends_with("or name another path"), "{name}: {sentence}");
            assert_ne!(error.kind(), io::ErrorKind::AddrInUse, "{name}");
            assert!(fs::symlink_metadata(path(name)).is_ok(), "{name} is still there");
        }
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn without_systemd_there_is_nothing_to_take() {
        let error = bind(&Config::default(), &ListenAddress::Systemd, served()).unwrap_err();
        assert!(error.to_string().contains("LISTEN_FDS"), "{error}");
    }
}
