//! The content of a request: read whole, within its limits of size and time.

use crate::settings::Settings;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use std::time::Duration;
use tokio::time::Instant;

/// Bytes for which a body gets one second more; see `Settings::body_timeout`.
const BYTES_PER_SECOND: u64 = 500;

/// Why a content was not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unread {
    /// Beyond the limit: 413.
    TooLarge,
    /// Not what HTTP allows, or broken off: 400.
    Malformed,
    /// Too slow: 408.
    TimedOut,
}

/// A content that was read.
pub(super) struct Content {
    pub(super) body: Bytes,
    /// There were trailers behind it. hyper takes LF for their end where RFC 9112 section 7.1 has CRLF, and may have
    /// swallowed what another reader sees as the next request: over HTTP/1 nothing more is to be read.
    pub(super) trailed: bool,
}

/// When a content that arrives has to be there.
pub(super) struct Pace {
    pub(super) trailed: bool,
    start: Instant,
    allowed: Duration,
    received: u64,
}

impl Pace {
    pub(super) fn new(settings: &Settings) -> Self {
        Self { trailed: false, start: Instant::now(), allowed: settings.body_timeout, received: 0 }
    }

    /// The next piece, if it is there in time. `None`: the end.
    pub(super) async fn next(&mut self, body: &mut Incoming) -> Result<Option<Bytes>, Unread> {
        loop {
            let deadline = self.start + self.allowed + Duration::from_secs(self.received / BYTES_PER_SECOND);
            match tokio::time::timeout_at(deadline, body.frame()).await {
                Err(_) => return Err(Unread::TimedOut),
                Ok(None) => return Ok(None),
                Ok(Some(Err(_))) => return Err(Unread::Malformed),
                Ok(Some(Ok(frame))) => {
                    let Ok(data) = frame.into_data() else {
                        self.trailed = true;
                        continue;
                    };
                    self.received += data.len() as u64;
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// Reads a whole body of at most `limit` bytes.
pub(super) async fn read(mut body: Incoming, limit: usize, settings: &Settings) -> Result<Content, Unread> {
    let content = |body, trailed| Ok(Content { body, trailed });
    if body.is_end_stream() {
        return content(Bytes::new(), false);
    }
    // Announced too large: refused before a byte of it, and before "100 Continue", which hyper sends on the first read.
    if body.size_hint().lower() > u64::try_from(limit).unwrap_or(u64::MAX) {
        return Err(Unread::TooLarge);
    }
    let mut pace = Pace::new(settings);
    let Some(first) = pace.next(&mut body).await? else { return content(Bytes::new(), pace.trailed) };
    if first.len() > limit {
        return Err(Unread::TooLarge);
    }
    // Most bodies come in one piece.
    if body.is_end_stream() {
        return content(first, false);
    }
    let mut whole = BytesMut::from(&first[..]);
    while let Some(piece) = pace.next(&mut body).await? {
        if whole.len() + piece.len() > limit {
            return Err(Unread::TooLarge);
        }
        whole.extend_from_slice(&piece);
    }
    content(whole.freeze(), pace.trailed)
}
