//! The content of a request: read within its limits of size and time, and decoded.

use super::coding::{Pieces, coding, decoded};
use super::form;
use crate::endpoint::Endpoint;
use crate::settings::Settings;
use crate::upload::Form;
use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use http::HeaderMap;
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::time::Instant;

/// Bytes for which a body gets one second more; see `Settings::body_timeout`.
const BYTES_PER_SECOND: u64 = 500;

/// Why a content was not read.
#[derive(Debug)]
pub(super) enum Unread {
    /// Beyond a limit, by the name of its setting and with its value: 413.
    TooLarge(&'static str, usize),
    /// Not what HTTP allows, or broken off: 400.
    Malformed,
    /// Not what its Content-Type or Content-Encoding says, and what is wrong: 400.
    Bad(String),
    /// A Content-Encoding that is not known: 415.
    UnknownCoding,
    /// Too slow: 408.
    TimedOut,
    /// A temporary file could not be written: 500.
    NotStored(io::Error),
}

impl fmt::Display for Unread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Unread {}

impl Unread {
    /// What came out of a decoder: an error of ours that went through it, or its own.
    pub(super) fn of_io(error: io::Error) -> Self {
        match error.downcast::<Self>() {
            Ok(ours) => ours,
            Err(error) => Self::Bad(format!("the content cannot be decoded: {error}")),
        }
    }
}

/// When a content that arrives has to be there.
pub(super) struct Pace {
    /// Whether there were trailers, for who has given the pace away.
    trailed: Arc<AtomicBool>,
    start: Instant,
    allowed: Duration,
    received: u64,
}

impl Pace {
    pub(super) fn new(settings: &Settings, trailed: &Arc<AtomicBool>) -> Self {
        Self { trailed: Arc::clone(trailed), start: Instant::now(), allowed: settings.body_timeout, received: 0 }
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
                        self.trailed.store(true, Ordering::Relaxed);
                        continue;
                    };
                    self.received += data.len() as u64;
                    return Ok(Some(data));
                }
            }
        }
    }
}

/// A request's content.
#[derive(Debug, Default)]
pub(super) struct Content {
    pub(super) body: Bytes,
    /// Instead of a body.
    pub(super) form: Option<Form>,
    /// There were trailers behind it. hyper takes LF for their end where RFC 9112 section 7.1 has CRLF, and may have
    /// swallowed what another reader sees as the next request: over HTTP/1 nothing more is to be read.
    pub(super) trailed: bool,
}

/// Reads a content, whatever it is.
pub(super) async fn read(body: Incoming, headers: &HeaderMap, endpoint: &Arc<Endpoint>) -> Result<Content, Unread> {
    let settings = &endpoint.settings;
    // Refused before a byte of it, and before "100 Continue", which hyper sends on the first read: what cannot be decoded,
    // and what is announced too large.
    let coding = coding(headers)?;
    let boundary = form::boundary(headers)?;
    let (name, limit) = match boundary {
        Some(_) => ("max_upload_size", settings.max_upload_size),
        None => ("max_body_size", settings.max_body_size),
    };
    if body.size_hint().lower() > u64::try_from(limit).unwrap_or(u64::MAX) {
        return Err(Unread::TooLarge(name, limit));
    }
    if body.is_end_stream() && boundary.is_none() {
        return Ok(Content::default());
    }
    let trailed = Arc::new(AtomicBool::new(false));
    let pace = Pace::new(settings, &trailed);
    if coding.is_none() && boundary.is_none() {
        let body = whole(body, pace, limit).await?;
        return Ok(Content { body, form: None, trailed: trailed.load(Ordering::Relaxed) });
    }
    let mut pieces = pieces(body, pace);
    if let Some(coding) = coding {
        // Also as it comes: an endless content may decode to nothing.
        pieces = decoded(limited(pieces, name, limit), coding);
    }
    let mut pieces = limited(pieces, name, limit);
    if let Some(boundary) = boundary {
        let form = Some(form::read(pieces, boundary, endpoint).await?);
        return Ok(Content { body: Bytes::new(), form, trailed: trailed.load(Ordering::Relaxed) });
    }
    let mut body = BytesMut::new();
    while let Some(piece) = pieces.next().await {
        body.extend_from_slice(&piece?);
    }
    let body = body.freeze();
    Ok(Content { body, form: None, trailed: trailed.load(Ordering::Relaxed) })
}

/// A content as it arrives.
fn pieces(body: Incoming, pace: Pace) -> Pieces {
    stream::try_unfold((body, pace), |(mut body, mut pace)| async {
        Ok(pace.next(&mut body).await?.map(|piece| (piece, (body, pace))))
    })
    .boxed()
}

/// Ends with an error behind `limit` bytes.
fn limited(pieces: Pieces, name: &'static str, limit: usize) -> Pieces {
    let mut left = limit;
    let limited = pieces.map(move |piece| {
        let piece = piece?;
        left = left.checked_sub(piece.len()).ok_or(Unread::TooLarge(name, limit))?;
        Ok(piece)
    });
    limited.boxed()
}

/// Reads a whole body of at most `limit` bytes.
async fn whole(mut body: Incoming, mut pace: Pace, limit: usize) -> Result<Bytes, Unread> {
    let too_large = Unread::TooLarge("max_body_size", limit);
    let Some(first) = pace.next(&mut body).await? else { return Ok(Bytes::new()) };
    if first.len() > limit {
        return Err(too_large);
    }
    // Most bodies come in one piece.
    if body.is_end_stream() {
        return Ok(first);
    }
    let mut whole = BytesMut::from(&first[..]);
    while let Some(piece) = pace.next(&mut body).await? {
        if whole.len() + piece.len() > limit {
            return Err(too_large);
        }
        whole.extend_from_slice(&piece);
    }
    Ok(whole.freeze())
}
