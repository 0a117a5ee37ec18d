//! One connection for as long as it speaks HTTP.

use super::Shared;
use super::activity::{Activity, SEND_TIMEOUT, Watched};
use super::counted::Counted;
use super::http::{Client, answer};
use crate::endpoint::{Endpoint, Phase, Seat};
use crate::runtime::IoThread;
use crate::transport::Transport;
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use parking_lot::Mutex;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
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
pub(super) async fn serve(stream: TcpStream, remote: SocketAddr, io: Arc<IoThread>, shared: Shared, seat: Seat) {
    let mut phase = shared.endpoint.phase();
    let settings = &shared.endpoint.settings;
    let secured = tokio::time::timeout(settings.handshake_timeout, secured(stream, remote, &io, &shared));
    let transport = tokio::select! {
        secured = secured => match secured {
            Ok(Some(transport)) => transport,
            Ok(None) | Err(_) => return,
        },
        // Nothing was asked yet (a browser's spare connection): nothing is lost.
        _ = phase.wait_for(|p| *p >= Phase::Stopping) => return,
    };
    let http2 = transport.speaks_http2();
    let activity = Arc::new(Activity::default());
    let client = Arc::new(Client { remote, io: Arc::clone(&io), shared: shared.clone(), seat: Mutex::new(Some(seat)) });
    let service = service_fn(|request| {
        let in_flight = activity.begin();
        let client = Arc::clone(&client);
        async move { Ok::<_, Infallible>(answer(request, &client, in_flight).await) }
    });
    let transport = Counted::new(transport, &shared.endpoint, io.index);
    let watched = Watched::new(transport, Arc::clone(&activity), settings.send_timeout);
    let ended = if http2 {
        let mut builder = hyper::server::conn::http2::Builder::new(OnThisThread);
        builder
            .timer(TokioTimer::new())
            .max_header_list_size(limit(settings.max_header_size))
            .max_concurrent_streams(settings.max_concurrent_streams);
        let connection = builder.serve_connection(watched, service);
        drive(connection, phase, &activity, Some(settings.header_timeout), |c| c.graceful_shutdown()).await
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
        let connection = builder.serve_connection(watched, service).with_upgrades();
        drive(connection, phase, &activity, None, |c| c.graceful_shutdown()).await
    };
    if let Some(Err(error)) = ended {
        blame(&error, remote, &io, &shared.endpoint);
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
    } else if std::error::Error::source(error).is_some_and(|cause| cause.to_string() == SEND_TIMEOUT) {
        endpoint.complain(io, "send_timeout", || {
            let limit = settings.send_timeout.as_secs_f64();
            format!("connection of {remote} dropped: it took nothing of an answer within send_timeout={limit} s")
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

/// How long a stopping HTTP/2 connection with nothing under way may write nothing before it is dropped: hyper waits for
/// the client's answer to a PING, and what HTTP/2 has buffered may still be on its way.
const FAREWELL: Duration = Duration::from_secs(1);

/// Serves one connection until it ends or the server stops. `idle`: how long it may be without a request, where hyper
/// does not see to that itself.
async fn drive<C: Future>(
    connection: C,
    mut phase: watch::Receiver<Phase>,
    activity: &Activity,
    idle: Option<Duration>,
    shut_down: impl Fn(Pin<&mut C>),
) -> Option<C::Output> {
    let mut connection = std::pin::pin!(connection);
    let http2 = idle.is_some();
    let mut heard = Phase::Running;
    let mut watch = idle.map(|idle| Watch::new(activity, idle));
    loop {
        tokio::select! {
            // A client's fault ends its connection and is nobody else's business; hyper has answered 400 or 431.
            ended = connection.as_mut() => return Some(ended),
            changed = phase.wait_for(|p| *p > heard && (http2 || *p >= Phase::Stopping)) => {
                let changed = changed.map(|p| *p);
                heard = changed.as_ref().copied().unwrap_or(Phase::Aborting);
                match changed {
                    Ok(Phase::Running) => {}
                    // GOAWAY; what has begun goes on, streams too.
                    Ok(Phase::Leaving | Phase::Deaf) => shut_down(connection.as_mut()),
                    // Nothing was asked on it: hyper would wait for the first request. Or all is said, and it lingers.
                    Ok(Phase::Stopping) if activity.begun() == 0 || activity.lingers() => return None,
                    Ok(Phase::Stopping) => {
                        shut_down(connection.as_mut());
                        if let Some(watch) = &mut watch {
                            watch.stop();
                        }
                    }
                    _ => return None,
                }
            }
            over = Watch::over(&mut watch) => match over {
                Over::Idle => {
                    shut_down(connection.as_mut());
                }
                Over::Farewell => return None,
            },
        }
    }
}

/// What a [`Watch`] has seen.
enum Over {
    /// Nothing was asked for too long: the connection is to be closed.
    Idle,
    /// It was to be closed, and nothing moves any more.
    Farewell,
}

/// Looks at an HTTP/2 connection from time to time.
struct Watch<'a> {
    activity: &'a Activity,
    idle: Duration,
    stopping: bool,
    /// Requests and bytes seen at the last look, and since when there have been no others.
    seen: (usize, u64),
    since: tokio::time::Instant,
    next: Pin<Box<tokio::time::Sleep>>,
}

impl<'a> Watch<'a> {
    fn new(activity: &'a Activity, idle: Duration) -> Self {
        let now = tokio::time::Instant::now();
        let next = Box::pin(tokio::time::sleep(idle / 4));
        Self { activity, idle, stopping: false, seen: (0, 0), since: now, next }
    }

    fn stop(&mut self) {
        self.stopping = true;
        self.since = tokio::time::Instant::now();
        self.next.as_mut().reset(self.since + FAREWELL / 4);
    }

    /// Until there is something to do. Cancelled and called again it goes on.
    async fn over(watch: &mut Option<Self>) -> Over {
        let Some(watch) = watch else { return std::future::pending().await };
        loop {
            watch.next.as_mut().await;
            let now = tokio::time::Instant::now();
            // An idle connection's pings are answered, and do not keep it: bytes count while it is stopping alone.
            let seen = (watch.activity.begun(), if watch.stopping { watch.activity.written() } else { 0 });
            if !watch.activity.is_idle() || seen != watch.seen {
                watch.seen = seen;
                watch.since = now;
            }
            let limit = if watch.stopping { FAREWELL } else { watch.idle };
            watch.next.as_mut().reset(now + limit / 4);
            if now.duration_since(watch.since) >= limit {
                if watch.stopping {
                    return Over::Farewell;
                }
                watch.stop();
                return Over::Idle;
            }
        }
    }
}
