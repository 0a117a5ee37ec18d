//! Every limit and timeout of an endpoint, with its default and its precedent.

use std::time::Duration;

/// The settings of a server or a client. The names are those of the Python arguments, so that a log line can name
/// the setting that the user would change.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Largest message accepted, in bytes, after reassembly. A larger one fails the connection with 1009.
    /// 16 MiB as in libwebsockets' and Jetty's examples; websockets has 1 MiB, browsers have none.
    pub max_message_size: usize,
    /// Bytes that may wait to be written to one channel before it is closed with 1008.
    pub max_buffered: usize,
    /// Bytes of undelivered events of all channels together at which reading pauses until the next tick.
    pub max_pending_bytes: usize,
    /// The same for one channel, so that a flood pauses its sender alone.
    pub max_channel_pending_bytes: usize,
    /// Largest request head (request line and headers) in bytes; above it 431. 16 KiB as in Node.js.
    pub max_header_size: usize,
    /// Largest request body in bytes; above it 413.
    pub max_body_size: usize,
    /// How long a connection may take to send a whole request head, and stay idle between two requests.
    pub header_timeout: Duration,
    /// How long a request body may take to arrive.
    pub body_timeout: Duration,
    /// How long a closing handshake may take before the connection is dropped. RFC 6455 section 7.1.1 leaves the
    /// time to the implementation; websockets has 10 s, Chromium 2 s.
    pub close_timeout: Duration,
    /// Client: how long resolving, connecting and the opening handshake may take together.
    pub open_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_message_size: 16 << 20,
            max_buffered: 16 << 20,
            max_pending_bytes: 64 << 20,
            max_channel_pending_bytes: 1 << 20,
            max_header_size: 16 << 10,
            max_body_size: 16 << 20,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            close_timeout: Duration::from_secs(5),
            open_timeout: Duration::from_secs(10),
        }
    }
}
