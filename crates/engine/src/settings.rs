//! Every limit and timeout of an endpoint, with its default and its precedent.

use crate::wire::Limits;
use crate::wire::deflate::DeflateConfig;
use ipnet::IpNet;
use std::path::PathBuf;
use std::time::Duration;

/// What to do when more than `max_buffered` bytes wait to be written to a channel. Control frames are never dropped. A
/// fragment that does not fit closes the channel under every policy: a message cannot lack a part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowPolicy {
    /// Close it with 1008.
    Close,
    /// Drop what the program sends.
    DropNewest,
    /// Drop what has waited longest.
    DropOldest,
}

/// Which web pages may open a WebSocket (RFC 6455 section 10.2). A client that is no browser sends no Origin and is not
/// meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origins {
    /// Pages of the host that the request was made to.
    SameHost,
    /// Pages of these origins: `https://example.com`, in lower case.
    Listed(Vec<String>),
    /// All pages.
    Any,
}

/// The settings of a server or a client. The names are those of the Python arguments, so that a log line can name
/// the setting that the user would change.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Largest message accepted, in bytes, after reassembly. A larger one fails the connection with 1009.
    /// 16 MiB as in libwebsockets' and Jetty's examples; websockets has 1 MiB, browsers have none.
    pub max_message_size: usize,
    /// Largest frame accepted, in bytes on the wire; `None`: as large as a message.
    pub max_frame_size: Option<usize>,
    /// Most fragments of one message. Autobahn sends 65,536; websockets takes 4,096.
    pub max_fragments: u32,
    /// Bytes that may wait to be written to one channel before it is closed with 1008.
    pub max_buffered: usize,
    /// Bytes of undelivered events of all channels together at which reading pauses until the next tick.
    pub max_pending_bytes: usize,
    /// The same for one channel, so that a flood pauses its sender alone.
    pub max_channel_pending_bytes: usize,
    /// Largest request head (request line and headers) in bytes; above it 431. 16 KiB as in Node.js.
    pub max_header_size: usize,
    /// Largest request body in bytes, after decoding, but for a multipart form; above it 413. Of such a form, what is kept
    /// in memory.
    pub max_body_size: usize,
    /// Parts of a form; above it 413. Django and Werkzeug have 1,000 too.
    pub max_form_parts: usize,
    /// Largest text field of a multipart form in bytes; above it 413.
    pub max_form_field_size: usize,
    /// Largest multipart form in bytes, files and all; above it 413.
    pub max_upload_size: usize,
    /// Bytes of a file of a multipart form that are kept in memory; a larger one goes to a temporary file.
    pub upload_threshold: usize,
    /// Where the temporary files are; `None`: where the system has them.
    pub upload_dir: Option<PathBuf>,
    /// How long a connection may take to send a whole request head, and stay idle between two requests.
    pub header_timeout: Duration,
    /// How long a request body may take to arrive, and one second more for every 500 bytes of it that have arrived: as
    /// Apache's mod_reqtimeout has it, so that a large upload over a slow line ends and a trickle does too.
    pub body_timeout: Duration,
    /// How long the program may take to answer a request; then 503. 30 s as in Heroku's router; nginx has 60 s.
    pub handler_timeout: Duration,
    /// How long a client may take nothing of an answer before its connection is dropped. 60 s as in nginx.
    pub send_timeout: Duration,
    /// How long a closing handshake may take before the connection is dropped. RFC 6455 section 7.1.1 leaves the
    /// time to the implementation; websockets has 10 s, Chromium 2 s.
    pub close_timeout: Duration,
    /// How long TLS and the first byte of a request may take after connecting.
    pub handshake_timeout: Duration,
    /// How often a WebSocket peer is pinged; `None`: never. 20 s as in websockets: shorter than the shortest common
    /// idle timeout of proxies (30 s to 60 s).
    pub ping_interval: Option<Duration>,
    /// How long a ping may stay unanswered, with nothing else heard from the peer, before the channel is closed.
    pub ping_timeout: Option<Duration>,
    /// How long a channel may be without a message in either direction before it is closed with 1001.
    pub idle_timeout: Option<Duration>,
    /// How long the program may go without a tick before all its channels are closed with 1013.
    pub app_stall_timeout: Option<Duration>,
    /// What to do with a channel whose peer reads too slowly.
    pub slow_policy: SlowPolicy,
    /// Whether the program wants to hear that a full channel is empty again.
    pub tell_drain: bool,
    /// TCP connections at a time; further ones are closed as they come.
    pub max_connections: usize,
    /// The same for one address.
    pub max_connections_per_address: Option<usize>,
    /// Requests at a time on one HTTP/2 connection. RFC 9113 section 6.5.2 recommends no less than 100.
    pub max_concurrent_streams: u32,
    /// Header fields of a request; above it 431. 100 as in httparse's and Go's examples.
    pub max_headers: usize,
    /// WebSocket handshakes per second; further ones get 503.
    pub max_upgrades_per_second: Option<f64>,
    /// Whose word on who asks is taken; see [`crate::proxy`].
    pub trusted_proxies: Vec<IpNet>,
    /// Which pages may open a WebSocket.
    pub allowed_origins: Origins,
    /// Subprotocols that the server speaks, the preferred first.
    pub subprotocols: Vec<String>,
    /// Longest name of a topic in bytes of UTF-8. MQTT has 65,535, NATS in practice 256.
    pub max_topic_length: usize,
    /// Topics and patterns that one channel or stream may subscribe to.
    pub max_subscriptions_per_channel: usize,
    /// Topics whose messages are kept; of more the one that was published to longest ago is forgotten.
    pub max_topics: usize,
    /// Bytes of messages that are kept for all topics together; the same beyond.
    pub max_history_bytes: usize,
    /// permessage-deflate (RFC 7692), if it is spoken at all, and how.
    pub compression: Option<DeflateConfig>,
    /// Whether the program decides on each WebSocket handshake.
    pub ask_upgrade: bool,
    /// How long the program may take to decide.
    pub upgrade_timeout: Duration,
    /// Client: how long resolving, connecting and the opening handshake may take together.
    pub open_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            max_message_size: 16 << 20,
            max_frame_size: None,
            max_fragments: 1 << 17,
            max_buffered: 16 << 20,
            max_pending_bytes: 64 << 20,
            max_channel_pending_bytes: 1 << 20,
            max_header_size: 16 << 10,
            max_body_size: 16 << 20,
            max_form_parts: 1_000,
            max_form_field_size: 1 << 20,
            max_upload_size: 256 << 20,
            upload_threshold: 256 << 10,
            upload_dir: None,
            header_timeout: Duration::from_secs(30),
            body_timeout: Duration::from_secs(30),
            handler_timeout: Duration::from_secs(30),
            send_timeout: Duration::from_secs(60),
            close_timeout: Duration::from_secs(5),
            open_timeout: Duration::from_secs(10),
            handshake_timeout: Duration::from_secs(10),
            ping_interval: Some(Duration::from_secs(20)),
            ping_timeout: Some(Duration::from_secs(20)),
            idle_timeout: None,
            app_stall_timeout: None,
            slow_policy: SlowPolicy::Close,
            tell_drain: false,
            max_connections: 65_536,
            max_connections_per_address: None,
            max_concurrent_streams: 100,
            max_headers: 100,
            max_upgrades_per_second: None,
            trusted_proxies: Vec::new(),
            allowed_origins: Origins::SameHost,
            subprotocols: Vec::new(),
            max_topic_length: 256,
            max_subscriptions_per_channel: 1_000,
            max_topics: 10_000,
            max_history_bytes: 64 << 20,
            compression: Some(DeflateConfig::default()),
            ask_upgrade: false,
            upgrade_timeout: Duration::from_secs(10),
        }
    }
}

impl Settings {
    /// What the codec takes.
    #[must_use]
    pub fn wire(&self) -> Limits {
        Limits {
            max_message_size: self.max_message_size,
            max_frame_size: self.max_frame_size.unwrap_or(usize::MAX),
            max_fragments: self.max_fragments,
        }
    }
}
