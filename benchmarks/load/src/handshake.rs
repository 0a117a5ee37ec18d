//! The opening handshake, always with the sample key of RFC 6455 section 1.3: the tools need no SHA-1 that way,
//! and the generator still sees whether a server computes the accept value.

/// The sample key.
pub const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
/// What every server has to make of [`KEY`].
pub const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
/// A request or response head longer than this is refused; hyper and h11 draw the line at similar sizes.
pub const MAX_HEAD: usize = 16 * 1024;

/// The client's request for a WebSocket at `path`.
#[must_use]
pub fn request(host: &str, port: u16, path: &str) -> String {
    format!(
        "GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Key: {KEY}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
}

/// The server's answer to a request that carries [`KEY`].
#[must_use]
pub fn response() -> String {
    format!(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
         Sec-WebSocket-Accept: {ACCEPT}\r\n\r\n"
    )
}

/// Length of the head, its empty line included, once all of it is there.
#[must_use]
pub fn head_length(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// The value of a header field; names are compared without regard to case (RFC 9110 section 5.1).
#[must_use]
pub fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut fields = head.split("\r\n").skip(1).filter_map(|line| line.split_once(':'));
    fields.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn request_and_response_carry_the_sample_pair() {
        assert_eq!(field(&request("h", 1, "/"), "sec-websocket-key"), Some(KEY));
        assert_eq!(field(&response(), "SEC-WEBSOCKET-ACCEPT"), Some(ACCEPT));
        assert_eq!(field(&response(), "absent"), None);
    }

    #[test]
    fn head_ends_at_the_empty_line() {
        let text = response();
        for end in 0..text.len() {
            assert_eq!(head_length(&text.as_bytes()[..end]), None);
        }
        assert_eq!(head_length(&[text.as_bytes(), b"\x81\x00"].concat()).unwrap(), text.len());
    }
}
