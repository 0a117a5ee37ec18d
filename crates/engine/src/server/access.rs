//! The access log: what is known of a request when its answer has been sent, for `pyhv.access`.
//!
//! The record goes through the inbox, since Python's logging runs on the ticking thread alone. A program that does not
//! tick takes no records: they may fill a part of the inbox, then they are dropped and counted, so that requests that
//! are answered natively cannot stop what the program is there for.

use crate::down::DownQueue;
use crate::endpoint::Endpoint;
use crate::inbox::Event;
use crate::proxy::Sender;
use crate::runtime::IoThread;
use http::header::{self, HeaderMap, HeaderName};
use http::{Method, StatusCode, Version};
use hyper::Request;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// The status of a request whose client left before it was answered: nginx's 499.
const CLIENT_CLOSED_REQUEST: u16 = 499;

/// One finished request. Texts are escaped: they have no control characters, quotes, or anything outside ASCII.
#[derive(Debug)]
pub struct AccessRecord {
    /// The client, behind trusted proxies.
    pub address: IpAddr,
    /// The method.
    pub method: Method,
    /// The target: path and query.
    pub url: String,
    /// The version.
    pub version: Version,
    /// The status; 499 when the client left before there was one.
    pub status: u16,
    /// Bytes of content handed to the socket.
    pub sent: u64,
    /// When the head had arrived.
    pub started: SystemTime,
    /// From then until the last of the answer was handed over.
    pub duration: Duration,
    /// The Referer header.
    pub referer: Option<String>,
    /// The User-Agent header.
    pub user_agent: Option<String>,
}

impl AccessRecord {
    /// Bytes of its texts.
    pub(crate) fn size(&self) -> usize {
        let len = |text: &Option<String>| text.as_ref().map_or(0, String::len);
        size_of::<Self>() + self.url.len() + len(&self.referer) + len(&self.user_agent)
    }
}

/// A request on its way; dropped, it is put on record.
#[derive(Debug)]
pub(crate) struct Access(Box<Inner>);

#[derive(Debug)]
struct Inner {
    record: Option<Box<AccessRecord>>,
    began: Instant,
    io: Arc<IoThread>,
    endpoint: Arc<Endpoint>,
}

impl Access {
    pub(super) fn begin<B>(request: &Request<B>, sender: Sender, io: &Arc<IoThread>, endpoint: &Arc<Endpoint>) -> Self {
        let field = |headers: &HeaderMap, name: HeaderName| headers.get(name).map(|value| escaped(value.as_bytes()));
        let record = AccessRecord {
            address: sender.address,
            method: request.method().clone(),
            url: escaped(super::http::target(request.uri()).as_bytes()),
            version: request.version(),
            status: CLIENT_CLOSED_REQUEST,
            sent: 0,
            started: SystemTime::now(),
            duration: Duration::ZERO,
            referer: field(request.headers(), header::REFERER),
            user_agent: field(request.headers(), header::USER_AGENT),
        };
        let (io, endpoint) = (Arc::clone(io), Arc::clone(endpoint));
        Self(Box::new(Inner { record: Some(Box::new(record)), began: Instant::now(), io, endpoint }))
    }

    pub(super) fn answered(&mut self, status: StatusCode) {
        if let Some(record) = &mut self.0.record {
            record.status = status.as_u16();
        }
    }

    /// So much content was handed over.
    pub(crate) fn sent(&mut self, bytes: usize) {
        if let Some(record) = &mut self.0.record {
            record.sent += bytes as u64;
        }
    }
}

impl Drop for Access {
    fn drop(&mut self) {
        let Inner { record, began, io, endpoint } = &mut *self.0;
        let Some(mut record) = record.take() else { return };
        record.duration = began.elapsed();
        match endpoint.inbox.push_if_room(Event::Access(record)) {
            Some(true) => DownQueue::wake_later(io, endpoint),
            Some(false) => {}
            None => endpoint.complain(io, "access_log", || {
                "lines of the access log were dropped: the program does not tick, and half of max_pending_bytes waits"
                    .to_owned()
            }),
        }
    }
}

/// As Apache writes what comes from clients: nothing of it ends a line, a field, or reaches a terminal.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'"' | b'\\' => {
                text.push('\\');
                text.push(char::from(byte));
            }
            0x20..=0x7e => text.push(char::from(byte)),
            _ => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::escaped;

    #[test]
    fn nothing_ends_a_line_or_a_field() {
        assert_eq!(escaped(b"/plain?a=b%0a"), "/plain?a=b%0a");
        assert_eq!(escaped(b"a\"b\\c\r\n\x1b[31m\x00\x7f\xe9"), r#"a\"b\\c\x0d\x0a\x1b[31m\x00\x7f\xe9"#);
    }
}
