//! The I/O of pyHV: listeners, HTTP, WebSocket connections, clients, and the two queues that join them to the
//! program's thread. Knows nothing of Python.
//!
//! ```text
//! program's thread                          |  I/O thread (tokio, current-thread)
//! Inbox::take()      <-- events (batch) ----|--- connection <- wire::Decoder <- TCP
//! DownQueue::…()     --- bytes, commands -->|--> pump -> out-buffer per connection -> one vectored write
//! ```
//!
//! * [`runtime`]: the process-wide I/O threads, and [`driver`], who drives their sockets; [`down`]: the queue going down and
//!   the pump that empties it; `broadcast`: what goes to everybody;
//! * [`topics`]: who gets what is published to a name; [`backplane`]: the same over several processes;
//! * [`inbox`]: the queue going up; [`backlog`]: what ticks with a budget leave of it; [`wake`]: the descriptor that is
//!   readable while it holds something;
//! * [`endpoint`]: what a server or a client shares with its connections; [`connection`]: one WebSocket connection;
//! * [`server`], [`request`], [`router`]: listening, HTTP, upgrades; [`upload`]: forms; [`body`], [`stream`]: what is
//!   answered;
//! * [`client`]: connecting, and [`reconnect`]: again; [`http_client`]: the HTTP client, and streams of server-sent events;
//! * [`files`]: files as answers, and trees of them;
//! * [`stats`]: what all of them count, and how it is shown;
//! * `transport`: TCP, or TLS over it; [`tls`]: certificates and who is trusted;
//! * [`proxy`]: who asks when a reverse proxy stands in between; [`settings`]: every limit and timeout with its default.

pub mod backlog;
pub mod backplane;
pub mod body;
mod broadcast;
pub mod client;
pub mod connection;
mod courtesy;
pub mod down;
pub mod driver;
pub mod endpoint;
pub mod farewell;
pub mod files;
pub mod http_client;
pub mod inbox;
mod outbuf;
pub mod proxy;
pub mod reconnect;
pub mod request;
pub mod router;
pub mod runtime;
pub mod server;
pub mod settings;
pub mod stats;
pub mod stream;
mod task;
pub mod tls;
pub mod topics;
mod transport;
pub mod upload;
pub mod wake;

pub use pyhv_wire as wire;
