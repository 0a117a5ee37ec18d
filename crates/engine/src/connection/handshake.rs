//! What the opening handshake told, packed: it lives as long as the channel, and there may be very many.

use crate::proxy::Sender;
use crate::wire::deflate::DeflateParams;
use std::net::SocketAddr;

/// What the opening handshake told; lives as long as the channel.
#[derive(Debug)]
pub struct Handshake {
    /// The URL, the subprotocol and the headers, one behind the other: one allocation instead of three.
    text: Box<[u8]>,
    /// Where the URL and the subprotocol end. The http crate takes no URL of 64 KiB, and a subprotocol is one of ours.
    url_end: u32,
    protocol_end: u32,
    /// The peer.
    pub remote: Option<SocketAddr>,
    /// Server: who asked, the peer or the client of a trusted proxy.
    pub sender: Option<Sender>,
    /// What was agreed on permessage-deflate, if anything.
    pub deflate: Option<DeflateParams>,
}

impl Handshake {
    /// Without the fields that are public: those are for the caller to set.
    pub(crate) fn new(url: &str, subprotocol: Option<&str>, headers: &[(&str, &[u8])]) -> Self {
        let subprotocol = subprotocol.unwrap_or_default();
        let lines: usize = headers.iter().map(|(name, value)| name.len() + 2 + value.len() + 1).sum();
        // Exactly: turning it into a box must not move it, which would leave a hole of the first size behind.
        let mut text = Vec::with_capacity(url.len() + subprotocol.len() + lines);
        let end = |text: &Vec<u8>| u32::try_from(text.len()).unwrap_or(u32::MAX);
        text.extend_from_slice(url.as_bytes());
        let url_end = end(&text);
        text.extend_from_slice(subprotocol.as_bytes());
        let protocol_end = end(&text);
        for (name, value) in headers {
            text.extend_from_slice(name.as_bytes());
            text.extend_from_slice(b": ");
            text.extend_from_slice(value);
            text.push(b'\n');
        }
        Self { text: text.into(), url_end, protocol_end, remote: None, sender: None, deflate: None }
    }

    fn text(&self, from: u32, to: u32) -> &str {
        // Both parts were strings.
        std::str::from_utf8(&self.text[from as usize..to as usize]).unwrap_or_default()
    }

    /// Server: the request target as sent, path and query. Client: the URL.
    #[must_use]
    pub fn url(&self) -> &str {
        self.text(0, self.url_end)
    }

    /// The subprotocol agreed on.
    #[must_use]
    pub fn subprotocol(&self) -> Option<&str> {
        Some(self.text(self.url_end, self.protocol_end)).filter(|name| !name.is_empty())
    }

    /// Server: the request's headers; client: the response's. `name: value` lines, each ended by LF.
    #[must_use]
    pub fn headers(&self) -> &[u8] {
        &self.text[self.protocol_end as usize..]
    }

    /// Bytes that the peer has sent of it.
    pub(crate) fn size(&self) -> usize {
        self.text.len()
    }
}
