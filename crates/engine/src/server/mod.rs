//! The server's side of the network: listening and accepting.
//!
//! | module | holds |
//! |---|---|
//! | this one | accepting, limits on connections |
//! | `listen` | listening sockets, made or taken over |
//! | `serve` | one connection for as long as it speaks HTTP, by hyper, over TCP or TLS |
//! | `activity` | what a connection is doing meanwhile |
//! | `http` | one request: routes, the program's answer |
//! | `clear` | which requests are refused because they are ambiguous |
//! | `around` | what is done around every answer, where the program has asked for it, by `cors`, `compress`, `access` |
//! | `health` | the answers to a load balancer's questions |
//! | `inside` | what the server shows of itself |
//! | `counted` | the bytes of a connection that speaks HTTP |
//! | `content` | a request's body |
//! | `coding`, `form` | what it may be: compressed, a form |
//! | `upgrade` | the WebSocket handshake, after which the connection leaves hyper for [`crate::connection`] |

pub mod access;
pub(crate) mod activity;
pub mod around;
mod clear;
mod coding;
pub mod compress;
mod content;
pub mod cors;
mod counted;
pub(crate) mod form;
pub mod health;
pub(crate) mod http;
pub mod inside;
mod listen;
mod serve;
mod upgrade;

use crate::endpoint::{Endpoint, Phase};
use crate::files::Files;
use crate::router::Router;
use crate::runtime::IoThread;
use crate::task::guarded;
use around::{Around, Current};
use health::Probe;
use inside::Inside;
pub use listen::{Listen, ListenError, Place};
use parking_lot::RwLock;
use serve::serve;
pub use socket2::Socket;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// After an accept failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Who answers the requests of a route.
#[derive(Clone, Debug)]
pub enum Target {
    /// A handler of the program, by its number.
    Program(usize),
    /// The state of the server, natively.
    Health(Probe),
    /// What the server shows of itself, natively.
    Inside(Arc<Inside>),
    /// The files of a tree, without a tick; mounted at a prefix of so many segments.
    Files(Arc<Files>, usize),
}

/// The routes of a server.
pub type Routes = Router<Target>;

/// A server's sockets and routes.
#[derive(Debug)]
pub struct Server {
    /// What it shares with its connections.
    pub endpoint: Arc<Endpoint>,
    /// Guards the routes while they are replaced by a longer list; read for one lookup.
    routes: Arc<RwLock<Arc<Routes>>>,
    around: Arc<Current>,
    /// The addresses it listens on for http and ws.
    pub addresses: Vec<SocketAddr>,
    /// The addresses it listens on for https and wss.
    pub tls_addresses: Vec<SocketAddr>,
}

impl Server {
    /// Listens on every address of the host and begins to accept, on all ports or on none.
    ///
    /// # Errors
    /// When the name does not resolve or an address cannot be bound.
    pub fn start(endpoint: Arc<Endpoint>, router: Routes, around: Around, listen: Listen) -> Result<Self, ListenError> {
        let routes = Arc::new(RwLock::new(Arc::new(router)));
        let around = Arc::new(Current::new(around));
        let (listeners, addresses) = listen::open(&listen.place)?;
        let mut all: Vec<_> = listeners.into_iter().map(|listener| (listener, None)).collect();
        let mut tls_addresses = Vec::new();
        if let Some((place, config)) = listen.tls {
            let (listeners, bound) = listen::open(&place)?;
            tls_addresses = bound;
            let acceptor = TlsAcceptor::from(config);
            all.extend(listeners.into_iter().map(|listener| (listener, Some(acceptor.clone()))));
        }
        let first = &endpoint.runtime.threads[0];
        for (listener, tls) in all {
            let listener = {
                let _context = first.handle.enter();
                TcpListener::from_std(listener)
                    .map_err(|error| ListenError { place: listen.place.to_string(), error })?
            };
            let (routes, around) = (Arc::clone(&routes), Arc::clone(&around));
            let shared = Shared { endpoint: Arc::clone(&endpoint), routes, around, tls };
            guarded(first, &endpoint, accept(listener, shared));
        }
        Ok(Self { endpoint, routes, around, addresses, tls_addresses })
    }

    /// Replaces the routes; requests from now on see them.
    pub fn set_routes(&self, router: Routes) {
        *self.routes.write() = Arc::new(router);
    }

    /// Replaces what is done around answers; requests from now on see it.
    pub fn set_around(&self, around: Around) {
        self.around.set(around);
    }
}

/// What the connections of one listener share.
#[derive(Clone)]
struct Shared {
    endpoint: Arc<Endpoint>,
    routes: Arc<RwLock<Arc<Routes>>>,
    around: Arc<Current>,
    tls: Option<TlsAcceptor>,
}

async fn accept(listener: TcpListener, shared: Shared) {
    let endpoint = Arc::clone(&shared.endpoint);
    let first = Arc::clone(&endpoint.runtime.threads[0]);
    let mut phase = endpoint.phase();
    loop {
        let accepted = tokio::select! {
            // A program that does not tick has its queue bounded: further clients wait in the kernel's backlog.
            accepted = async {
                endpoint.inbox.has_room().await;
                listener.accept().await
            } => accepted,
            _ = phase.wait_for(|p| *p >= Phase::Deaf) => return,
        };
        let (stream, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // The client gone before we accepted it is no reason to pause; everything else is a want of ours.
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    endpoint.complain(&first, "accept", || format!("cannot accept connections: {error}"));
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        let seat = match endpoint.seat(remote.ip()) {
            Ok(seat) => seat,
            Err(limit) => {
                endpoint.complain(&first, limit, || {
                    let value = match endpoint.settings.max_connections_per_address {
                        Some(value) if limit == "max_connections_per_address" => value,
                        _ => endpoint.settings.max_connections,
                    };
                    format!("connection of {remote} refused: the limit is {limit}={value}")
                });
                continue;
            }
        };
        // A tick's output leaves in one write: there is nothing for Nagle's algorithm to gather.
        let _ = stream.set_nodelay(true);
        let io = Arc::clone(endpoint.runtime.next_thread());
        let Some(stream) = moved(stream, &io, &first) else { continue };
        let task = serve(stream, remote, Arc::clone(&io), shared.clone(), seat);
        guarded(&io, &endpoint, task);
    }
}

/// Hands a socket to the I/O thread that will own it.
fn moved(stream: TcpStream, to: &Arc<IoThread>, from: &Arc<IoThread>) -> Option<TcpStream> {
    if Arc::ptr_eq(to, from) {
        return Some(stream);
    }
    let stream = stream.into_std().ok()?;
    let _context = to.handle.enter();
    TcpStream::from_std(stream).ok()
}
