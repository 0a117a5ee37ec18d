//! Listening sockets: made for a name and a port, or taken over from whoever made them (a supervisor, systemd).

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::sync::Arc;
use tokio_rustls::rustls::ServerConfig;

/// Connections that the kernel completes before we accept them.
const BACKLOG: i32 = 4096;

/// Where a server listens.
#[derive(Debug)]
pub struct Listen {
    /// For http and ws.
    pub place: Place,
    /// For https and wss, if anywhere, with the certificate.
    pub tls: Option<(Place, Arc<ServerConfig>)>,
}

/// A port, or sockets.
#[derive(Debug)]
pub enum Place {
    /// To be made.
    Port {
        /// Name or address.
        host: String,
        /// 0 lets the system choose one.
        port: u16,
        /// Other sockets may listen there too, and the kernel shares the connections out among them.
        reuse_port: bool,
    },
    /// Made by others, who may be using them at the same time.
    Sockets(Vec<socket2::Socket>),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Port { host, port, .. } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Port { host, port, .. } => write!(f, "{host}:{port}"),
            Self::Sockets(_) => f.write_str("the sockets given"),
        }
    }
}

/// A place that cannot be listened on.
#[derive(Debug)]
pub struct ListenError {
    /// Which.
    pub place: String,
    /// Why.
    pub error: io::Error,
}

/// Listeners and their addresses; all of them or none.
pub(super) fn open(place: &Place) -> Result<(Vec<TcpListener>, Vec<SocketAddr>), ListenError> {
    let opened = match place {
        Place::Port { host, port, reuse_port } => bind(host, *port, *reuse_port),
        Place::Sockets(sockets) => sockets.iter().map(adopt).collect(),
    };
    let addressed = opened.and_then(|listeners| {
        let addresses = listeners.iter().map(TcpListener::local_addr).collect::<io::Result<_>>()?;
        Ok((listeners, addresses))
    });
    addressed.map_err(|error| ListenError { place: place.to_string(), error })
}

fn bind(host: &str, port: u16, reuse_port: bool) -> io::Result<Vec<TcpListener>> {
    let mut listeners: Vec<TcpListener> = Vec::new();
    for mut address in resolve(host, port)? {
        if port == 0
            && let Some(first) = listeners.first()
        {
            // One port for all addresses of a name.
            address.set_port(first.local_addr()?.port());
        }
        listeners.push(listen(address, reuse_port)?);
    }
    Ok(listeners)
}

fn resolve(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let mut found: Vec<SocketAddr> = Vec::new();
    for address in (host, port).to_socket_addrs()? {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    if found.is_empty() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the name has no address"));
    }
    Ok(found)
}

fn listen(address: SocketAddr, reuse_port: bool) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(
        socket2::Domain::for_address(address),
        socket2::Type::STREAM,
        Some(socket2::Protocol::TCP),
    )?;
    // On Unix: a restarted server may bind while old connections are in TIME_WAIT. On Windows the same option would
    // let two servers share the port.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    if reuse_port {
        share(&socket)?;
    }
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

#[cfg(all(unix, not(any(target_os = "solaris", target_os = "illumos", target_os = "cygwin"))))]
fn share(socket: &socket2::Socket) -> io::Result<()> {
    socket.set_reuse_port(true)
}

#[cfg(not(all(unix, not(any(target_os = "solaris", target_os = "illumos", target_os = "cygwin")))))]
fn share(_socket: &socket2::Socket) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "reuse_port=True: this system has no SO_REUSEPORT"))
}

/// A listener of our own on a socket that stays with whoever gave it.
fn adopt(socket: &socket2::Socket) -> io::Result<TcpListener> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidInput, what.to_owned());
    if socket.r#type()? != socket2::Type::STREAM || socket.local_addr()?.as_socket().is_none() {
        return Err(wrong("not a TCP socket"));
    }
    if socket.peer_addr().is_ok() {
        return Err(wrong("a connection, not a listening socket"));
    }
    if socket.local_addr()?.as_socket().is_some_and(|address| address.port() == 0) {
        return Err(wrong("a socket that is not bound"));
    }
    // systemd's listen already; for these it sets the backlog anew, which does no harm.
    socket.listen(BACKLOG)?;
    // A flag of the socket, not of the descriptor: everybody who shares it has to expect that.
    socket.set_nonblocking(true)?;
    Ok(socket.try_clone()?.into())
}
