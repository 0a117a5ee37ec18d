//! Content codings of requests (RFC 9110 section 8.4): what a client has compressed is decoded as it arrives.

use super::content::Unread;
use async_compression::tokio::bufread::{BrotliDecoder, GzipDecoder, ZlibDecoder, ZstdDecoder};
use async_compression::zstd::DParameter;
use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{BoxStream, TryStreamExt};
use http::header::{self, HeaderMap, HeaderValue};
use std::io;
use tokio::io::AsyncRead;
use tokio_util::io::{ReaderStream, StreamReader};

/// The pieces of a content.
pub(super) type Pieces = BoxStream<'static, Result<Bytes, Unread>>;

/// What the Accept-Encoding of a 415 says.
pub(super) const KNOWN: HeaderValue = HeaderValue::from_static("gzip, deflate, br, zstd");

/// Largest window of a zstd frame as a power of two: RFC 9659 asks for no more than 8 MiB.
const ZSTD_WINDOW: u32 = 23;

/// Bytes decoded at a time: however small the piece that they come from, no more is in memory.
const PIECE: usize = 16 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Coding {
    Gzip,
    /// With the zlib header, as the RFC has it.
    Deflate,
    Brotli,
    Zstd,
}

/// How a content is coded, if at all.
///
/// # Errors
/// An unknown coding, or more than one.
pub(super) fn coding(headers: &HeaderMap) -> Result<Option<Coding>, Unread> {
    let mut found = None;
    for value in headers.get_all(header::CONTENT_ENCODING) {
        let value = value.to_str().map_err(|_| Unread::UnknownCoding)?;
        for name in value.split(',').map(str::trim).filter(|name| !name.is_empty()) {
            let coding = match name.to_ascii_lowercase().as_str() {
                "identity" => continue,
                // RFC 9110 section 8.4.1.3: the old name means the same.
                "gzip" | "x-gzip" => Coding::Gzip,
                "deflate" => Coding::Deflate,
                "br" => Coding::Brotli,
                "zstd" => Coding::Zstd,
                _ => return Err(Unread::UnknownCoding),
            };
            if found.replace(coding).is_some() {
                return Err(Unread::UnknownCoding);
            }
        }
    }
    Ok(found)
}

/// The content that `coded` stands for. What follows its end is an error, like everything else that is not well-formed.
pub(super) fn decoded(coded: Pieces, coding: Coding) -> Pieces {
    let coded = StreamReader::new(coded.map_err(io::Error::other));
    macro_rules! pieces {
        ($decoder:expr) => {{
            let mut decoder = $decoder;
            // gzip and zstd may be several in a row (RFC 1952 section 2.2, RFC 8878 section 3.1).
            decoder.multiple_members(true);
            pieces(decoder)
        }};
    }
    match coding {
        Coding::Gzip => pieces!(GzipDecoder::new(coded)),
        Coding::Deflate => pieces!(ZlibDecoder::new(coded)),
        Coding::Brotli => pieces!(BrotliDecoder::new(coded)),
        Coding::Zstd => {
            pieces!(ZstdDecoder::with_params(coded, &[DParameter::window_log_max(ZSTD_WINDOW)]))
        }
    }
}

fn pieces(decoder: impl AsyncRead + Send + 'static) -> Pieces {
    let pieces = ReaderStream::with_capacity(decoder, PIECE).then(|piece| async {
        // A few bytes may decode to very many, all of them ready: others have a turn in between.
        tokio::task::yield_now().await;
        piece
    });
    pieces.map_err(Unread::of_io).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(values: &[&'static str]) -> Result<Option<Coding>, Unread> {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(header::CONTENT_ENCODING, HeaderValue::from_static(value));
        }
        coding(&headers)
    }

    #[test]
    fn names_compare_without_case_and_one_coding_is_the_limit() {
        assert_eq!(of(&[]).unwrap(), None);
        assert_eq!(of(&["identity"]).unwrap(), None);
        assert_eq!(of(&[" X-GZip "]).unwrap(), Some(Coding::Gzip));
        assert_eq!(of(&["identity, zstd"]).unwrap(), Some(Coding::Zstd));
        for unknown in [&["gzip, br"][..], &["gzip", "gzip"], &["compress"], &["gzip;q=1"]] {
            assert!(matches!(of(unknown), Err(Unread::UnknownCoding)), "{unknown:?}");
        }
    }
}
