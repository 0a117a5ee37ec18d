//! One connection for as long as it speaks HTTP.

use super::Shared;
use super::http::{Client, answer};
use crate::endpoint::{Endpoint, Phase, Seat};
use crate::runtime::IoThread;
use crate::transport::Transport;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// The first byte of a TLS connection: a handshake record (RFC 8446 section 5.1). No HTTP method begins with it.
const TLS_HANDSHAKE: u8 = 0x16;

/// Looks which protocol the client speaks, and does the TLS handshake. `None`: it is not ours to go on with.
async fn secured(stream: TcpStream, remote: SocketAddr, io: &Arc<IoThread>, shared: &Shared) -> Option<Transport> {
    let mut first = [0];
    if stream.peek(&mut first).await.ok()? == 0 {
        return None;
    }
    let speaks_tls = first[0] == TLS_HANDSHAKE;
    let endpoint = &shared.endpoint;
    match (&shared.tls, speaks_tls) {
        (None, false) => Some(Transport::Tcp(stream)),
        (Some(acceptor), true) => match acceptor.accept(stream).await {
            Ok(stream) => Some(Transport::Tls(Box::new(stream.into()))),
            Err(error) => {
                endpoint.complain(io, "tls handshake", || format!("TLS handshake of {remote} failed: {error}"));
                None
            }
        },
        (None, true) => {
            endpoint.complain(io, "tls on the plain port", || {
                format!("{remote} spoke TLS to a port for http and ws: https and wss need tls_port")
            });
            // Its TLS library reports this as a "wrong version number" or "packet length too long".
            refuse(stream, "This port speaks http and ws, not TLS.\n").await;
            None
        }
        (Some(_), false) => {
            endpoint.complain(io, "http on the tls port", || {
                format!("{remote} spoke plain HTTP to tls_port: use https or wss")
            });
            refuse(stream, "This port speaks TLS: use https or wss.\n").await;
            None
        }
    }
}

/// Answers 400 in plain HTTP and reads what the client sent, so that closing does not reset the connection before
/// the answer was read.
async fn refuse(mut stream: TcpStream, text: &str) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let length = text.len();
    let head = "HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n";
    let answer = format!("{head}Content-Length: {length}\r\n\r\n{text}");
    if stream.write_all(answer.as_bytes()).await.is_err() || stream.shutdown().await.is_err() {
        return;
    }
    // Some kilobytes, not whatever a client cares to send.
    let mut rest = [0; 1024];
    for _ in 0..64 {
        match stream.read(&mut rest).await {
            Ok(n) if n > 0 => {}
            _ => return,
        }
    }
}

/// One connection for as long as it speaks HTTP.
pub(super) async fn serve(stream: TcpStream, remote: SocketAddr, io: Arc<IoThread>, shared: Shared, seat: Arc<Seat>) {
    let mut phase = shared.endpoint.phase();
    let settings = &shared.endpoint.settings;
    let secured = tokio::time::timeout(settings.handshake_timeout, secured(stream, remote, &io, &shared));
    let transport = tokio::select! {
        secured = secured => match secured {
            Ok(Some(transport)) => transport,
            Ok(None) | Err(_) => return,
        },
        // Nothing was asked yet (a browser's spare connection): nothing is lost.
        _ = phase.wait_for(|p| *p != Phase::Running) => return,
    };
    let http2 = transport.speaks_http2();
    let begun = AtomicBool::new(false);
    let service = service_fn(|request| {
        begun.store(true, Ordering::Relaxed);
        let client = Client { remote, io: Arc::clone(&io), shared: shared.clone(), seat: Arc::clone(&seat) };
        async move { Ok::<_, Infallible>(answer(request, &client).await) }
    });
    if http2 {
        let mut builder = hyper::server::conn::http2::Builder::new(OnThisThread);
        builder.timer(TokioTimer::new()).max_header_list_size(limit(settings.max_header_size));
        let connection = builder.serve_connection(TokioIo::new(transport), service);
        drive(connection, phase, &begun, |connection| connection.graceful_shutdown()).await;
    } else {
        let mut builder = hyper::server::conn::http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            // A client may close its sending side behind its last request (RFC 9112 section 9.6).
            .half_close(true)
            .header_read_timeout(settings.header_timeout)
            .max_buf_size(settings.max_header_size)
            // Twice the limit, which `answer` keeps: hyper does not tell too many headers from too large a head.
            .max_headers(settings.max_headers.saturating_mul(2));
        let connection = builder.serve_connection(TokioIo::new(transport), service).with_upgrades();
        let ended = drive(connection, phase, &begun, |connection| connection.graceful_shutdown()).await;
        if let Some(Err(error)) = ended {
            blame(&error, remote, &io, &shared.endpoint);
        }
    }
}

/// Counts what hyper has refused on its own.
fn blame(error: &hyper::Error, remote: SocketAddr, io: &Arc<IoThread>, endpoint: &Arc<Endpoint>) {
    let settings = &endpoint.settings;
    if error.is_parse_too_large() {
        endpoint.complain(io, "max_header_size", || {
            format!(
                "request head of {remote} refused with 431: the limits are max_header_size={} and max_headers={}",
                settings.max_header_size, settings.max_headers
            )
        });
    } else if error.is_timeout() {
        endpoint.complain(io, "header_timeout", || {
            let limit = settings.header_timeout.as_secs_f64();
            format!("connection of {remote} closed: no request head within header_timeout={limit} s")
        });
    } else if error.is_parse() {
        endpoint.complain(io, "bad request", || format!("request of {remote} refused with 400: {error}"));
    }
}

fn limit(size: usize) -> u32 {
    u32::try_from(size).unwrap_or(u32::MAX)
}

/// HTTP/2 runs each request as a task, on the I/O thread that owns the connection.
#[derive(Clone, Copy)]
struct OnThisThread;

impl<F> hyper::rt::Executor<F> for OnThisThread
where
    F: Future<Output: Send> + Send + 'static,
{
    fn execute(&self, task: F) {
        tokio::spawn(task);
    }
}

/// Serves one connection until it ends or the server stops.
async fn drive<C: Future>(
    connection: C,
    mut phase: watch::Receiver<Phase>,
    begun: &AtomicBool,
    shut_down: impl Fn(Pin<&mut C>),
) -> Option<C::Output> {
    let mut connection = std::pin::pin!(connection);
    let mut stopping = false;
    loop {
        tokio::select! {
            // A client's fault ends its connection and is nobody else's business; hyper has answered 400 or 431.
            ended = connection.as_mut() => return Some(ended),
            changed = phase.wait_for(|p| *p == Phase::Aborting || (!stopping && *p == Phase::Stopping)) => {
                match changed.map(|p| *p) {
                    // Nothing was asked on it: hyper would wait for the first request.
                    Ok(Phase::Stopping) if !begun.load(Ordering::Relaxed) => return None,
                    Ok(Phase::Stopping) => {
                        stopping = true;
                        shut_down(connection.as_mut());
                    }
                    _ => return None,
                }
            }
        }
    }
}
