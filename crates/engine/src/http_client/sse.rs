//! The parser of server-sent events (HTML Living Standard, section 9.2.6), sans-I/O: bytes in, events out.
//!
//! Our own, because the crates for it keep lines and events of any size, and fail on invalid UTF-8, which the standard
//! replaces. A stream that ends within an event loses that event, as the standard has it.

use std::sync::Arc;
use std::time::Duration;

/// One event of the stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SseEvent {
    /// The type: "message" unless the stream said otherwise.
    pub event: String,
    /// The lines of data, joined by line feeds.
    pub data: String,
    /// The last event ID that the stream has set, perhaps with an earlier event. Shared: a long ID must not be copied
    /// for each of many short events.
    pub id: Arc<str>,
}

/// A line or an event is larger than the limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooLarge;

/// The parser of one stream.
#[derive(Debug)]
pub struct Parser {
    /// Most bytes of a line and the event that it belongs to, together.
    limit: usize,
    /// Begun in an earlier input and not ended yet.
    line: Vec<u8>,
    /// The next LF belongs to a CR that has ended a line already.
    after_cr: bool,
    /// The first line may begin with a byte order mark.
    at_start: bool,
    event: String,
    data: String,
    /// The "last event ID buffer": set by a line, and the stream's with the next empty line.
    id: Arc<str>,
    last_id: Arc<str>,
    retry: Option<Duration>,
}

impl Parser {
    /// For a new stream. `id`: the last event ID of the stream before it, which goes on: a server that numbers only some
    /// events must not lose its place because of a reconnection (browsers do the same).
    #[must_use]
    pub fn new(limit: usize, id: Arc<str>) -> Self {
        Self {
            limit,
            line: Vec::new(),
            after_cr: false,
            at_start: true,
            event: String::new(),
            data: String::new(),
            last_id: Arc::clone(&id),
            id,
            retry: None,
        }
    }

    /// The last event ID of the stream; that of an event which is not complete does not count.
    #[must_use]
    pub fn last_event_id(&self) -> &Arc<str> {
        &self.last_id
    }

    /// The reconnection time, if the stream set one since the last call.
    pub fn take_retry(&mut self) -> Option<Duration> {
        self.retry.take()
    }

    /// Takes bytes off `input` up to the end of the next event. `None`: all were taken, and no event ended.
    ///
    /// # Errors
    /// When the line or event is larger than the limit. The parser is of no use after that.
    pub fn next(&mut self, input: &mut &[u8]) -> Result<Option<SseEvent>, TooLarge> {
        while let Some(first) = input.first() {
            if std::mem::take(&mut self.after_cr) && *first == b'\n' {
                *input = &input[1..];
                continue;
            }
            let Some(end) = input.iter().position(|b| matches!(b, b'\r' | b'\n')) else {
                self.keep(input)?;
                *input = &[];
                return Ok(None);
            };
            let (part, rest) = input.split_at(end);
            self.after_cr = rest[0] == b'\r';
            *input = &rest[1..];
            self.keep(part)?;
            let line = std::mem::take(&mut self.line);
            let event = self.end_line(&line);
            self.line = line;
            self.line.clear();
            if event.is_some() {
                return Ok(event);
            }
        }
        Ok(None)
    }

    fn keep(&mut self, part: &[u8]) -> Result<(), TooLarge> {
        if self.line.len() + part.len() + self.data.len() + self.event.len() > self.limit {
            return Err(TooLarge);
        }
        self.line.extend_from_slice(part);
        Ok(())
    }

    fn end_line(&mut self, mut line: &[u8]) -> Option<SseEvent> {
        if std::mem::take(&mut self.at_start) {
            line = line.strip_prefix("\u{feff}".as_bytes()).unwrap_or(line);
        }
        if line.is_empty() {
            return self.dispatch();
        }
        let (field, value) = match line.iter().position(|b| *b == b':') {
            None => (line, &[][..]),
            Some(colon) => (&line[..colon], &line[colon + 1..]),
        };
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match field {
            b"event" => self.event = text(value),
            b"data" => {
                self.data.push_str(&text(value));
                self.data.push('\n');
            }
            b"id" if !value.contains(&0) => self.id = text(value).into(),
            b"retry" if !value.is_empty() && value.iter().all(u8::is_ascii_digit) => {
                // Digits alone: what does not fit is very long.
                let millis = text(value).parse().unwrap_or(u64::MAX);
                self.retry = Some(Duration::from_millis(millis));
            }
            // A comment, or a field that is not known.
            _ => {}
        }
        None
    }

    fn dispatch(&mut self) -> Option<SseEvent> {
        self.last_id = Arc::clone(&self.id);
        let event = std::mem::take(&mut self.event);
        let mut data = std::mem::take(&mut self.data);
        // Each line of data put a line feed behind it; none at all, no event.
        data.pop()?;
        let event = if event.is_empty() { "message".to_owned() } else { event };
        Some(SseEvent { event, data, id: Arc::clone(&self.id) })
    }
}

/// UTF-8 with U+FFFD for what is not. Line by line gives the same as the whole stream: no character has a CR or LF in it.
fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_cut(stream: &[u8], size: usize) -> Vec<SseEvent> {
        let mut parser = Parser::new(1 << 10, "".into());
        let mut events = Vec::new();
        for mut piece in stream.chunks(size) {
            while let Some(event) = parser.next(&mut piece).unwrap() {
                events.push(event);
            }
        }
        events
    }

    /// Whole and cut at every size: type, data and ID of each event.
    fn parse(stream: impl AsRef<[u8]>) -> Vec<(String, String, String)> {
        let stream = stream.as_ref();
        let whole = parse_cut(stream, stream.len().max(1));
        for size in 1..stream.len() {
            assert_eq!(parse_cut(stream, size), whole, "cut into pieces of {size}");
        }
        whole.into_iter().map(|e| (e.event, e.data, e.id.to_string())).collect()
    }

    fn message(data: &str) -> (String, String, String) {
        ("message".to_owned(), data.to_owned(), String::new())
    }

    // The examples of section 9.2.6.

    #[test]
    fn lines_of_data_are_joined() {
        assert_eq!(parse("data: YHOO\ndata: +2\ndata: 10\n\n"), [message("YHOO\n+2\n10")]);
    }

    #[test]
    fn the_second_example_of_the_standard() {
        let stream = ": test stream\n\ndata: first event\nid: 1\n\ndata:second event\nid\n\ndata:  third event\n\n";
        let expected = [
            ("message".to_owned(), "first event".to_owned(), "1".to_owned()),
            message("second event"),
            message(" third event"),
        ];
        assert_eq!(parse(stream), expected);
    }

    #[test]
    fn a_field_without_colon_is_empty_and_an_event_without_end_is_lost() {
        assert_eq!(parse("data\n\ndata\ndata\n\ndata:"), [message(""), message("\n")]);
    }

    #[test]
    fn one_space_behind_the_colon_is_dropped() {
        assert_eq!(parse("data:test\n\ndata: test\n\n"), [message("test"), message("test")]);
    }

    // The rules one by one.

    #[test]
    fn lines_end_with_cr_lf_or_both() {
        let expected = [message("a\nb"), message("c")];
        for end in ["\n", "\r", "\r\n"] {
            assert_eq!(parse(format!("data:a{end}data:b{end}{end}data:c{end}{end}")), expected, "{end:?}");
        }
        assert_eq!(parse("data:a\r\ndata:b\n\rdata:c\r\r\n"), expected);
    }

    #[test]
    fn one_byte_order_mark_is_dropped_at_the_start_alone() {
        assert_eq!(parse("\u{feff}data:a\n\n"), [message("a")]);
        assert_eq!(parse("\u{feff}\u{feff}data:a\n\ndata:b\n\n"), [message("b")]);
        assert_eq!(parse("data:a\n\n\u{feff}data:b\n\n"), [message("a")]);
    }

    #[test]
    fn the_type_holds_for_one_event() {
        let named = ("add".to_owned(), "1".to_owned(), String::new());
        assert_eq!(parse("event: add\ndata: 1\n\ndata: 2\n\n"), [named, message("2")]);
        assert_eq!(parse("event: add\n\ndata: 2\n\n"), [message("2")]);
    }

    #[test]
    fn the_id_stays_and_one_with_nul_is_ignored() {
        let with = |data: &str, id: &str| ("message".to_owned(), data.to_owned(), id.to_owned());
        assert_eq!(
            parse("id: 7\ndata:a\n\ndata:b\n\nid:8\0\ndata:c\n\n"),
            [with("a", "7"), with("b", "7"), with("c", "7")]
        );
        assert_eq!(parse("id: 7\n\ndata:b\n\nid:\ndata:c\n\n"), [with("b", "7"), with("c", "")]);
    }

    #[test]
    fn unknown_fields_and_other_cases_are_ignored() {
        assert_eq!(parse("Data: x\n data: x\nfoo: x\ndata : x\n:data\ndata: y\n\n"), [message("y")]);
    }

    #[test]
    fn invalid_utf8_is_replaced() {
        assert_eq!(parse(b"data: a\xff\xe2\x82b\n\n"), [message("a\u{fffd}\u{fffd}b")]);
        assert_eq!(parse("data: \u{1f980}\n\n"), [message("\u{1f980}")]);
    }

    #[test]
    fn retry_is_digits_alone() {
        for (value, expected) in [
            ("1500", Some(1500)),
            ("0", Some(0)),
            ("99999999999999999999999", Some(u64::MAX)),
            ("", None),
            ("+5", None),
            ("1.5", None),
            ("-1", None),
            ("5 ", None),
        ] {
            let mut parser = Parser::new(100, "".into());
            assert_eq!(parser.next(&mut format!("retry:{value}\n").as_bytes()).unwrap(), None);
            assert_eq!(parser.take_retry(), expected.map(Duration::from_millis), "{value:?}");
            assert_eq!(parser.take_retry(), None);
        }
    }

    #[test]
    fn a_line_and_an_event_have_a_limit() {
        let mut parser = Parser::new(10, "".into());
        assert_eq!(parser.next(&mut &b":2345678901"[..]), Err(TooLarge));
        let mut parser = Parser::new(10, "".into());
        assert_eq!(parser.next(&mut &b":234567890\n:234567890\n"[..]), Ok(None));
        let mut parser = Parser::new(10, "".into());
        assert_eq!(parser.next(&mut &b"data:12\ndata:34\n"[..]), Ok(None));
        assert_eq!(parser.next(&mut &b"data:\n"[..]), Err(TooLarge));
    }

    #[test]
    fn the_id_goes_on_from_the_stream_before() {
        let mut parser = Parser::new(100, "41".into());
        let event = parser.next(&mut &b"data:x\n\n"[..]).unwrap().unwrap();
        assert_eq!(&*event.id, "41");
        assert_eq!(parser.next(&mut &b"id:42\ndata:y\n"[..]).unwrap(), None);
        assert_eq!(&**parser.last_event_id(), "41", "the event is not complete");
        assert_eq!(parser.next(&mut &b"\n"[..]).unwrap().map(|e| e.id), Some("42".into()));
        assert_eq!(&**parser.last_event_id(), "42");
        assert_eq!(parser.next(&mut &b"id:43\n\n"[..]).unwrap(), None);
        assert_eq!(&**parser.last_event_id(), "43", "an event without data sets it too");
    }
}
