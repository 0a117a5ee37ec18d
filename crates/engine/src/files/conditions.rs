//! What a request's headers ask of a file: conditions (RFC 9110 section 13), ranges (section 14), encodings (12.5.3).

use http::Method;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use std::time::{Duration, SystemTime};

/// The headers that matter here, but Accept-Encoding, which is for trees with precompressed files.
const CONDITIONS: [HeaderName; 6] = [
    header::IF_MATCH,
    header::IF_UNMODIFIED_SINCE,
    header::IF_NONE_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_RANGE,
    header::RANGE,
];

/// A file that changed so recently may change again within the resolution of its time stamp, two seconds on FAT: until
/// then its entity tag is weak (RFC 9110 section 8.8.1).
const SETTLED: Duration = Duration::from_secs(2);

/// What a request asks, as far as files go.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(super) get: bool,
    pub(super) head: bool,
    pub(super) headers: HeaderMap,
}

impl Asked {
    /// Copies no more than the headers that matter; most requests have none.
    pub(crate) fn of(method: &Method, headers: &HeaderMap) -> Self {
        let mut copied = HeaderMap::new();
        for name in CONDITIONS {
            for value in headers.get_all(&name) {
                copied.append(name.clone(), value.clone());
            }
        }
        Self::with(method, copied)
    }

    pub(super) fn with(method: &Method, headers: HeaderMap) -> Self {
        Self { get: *method == Method::GET, head: *method == Method::HEAD, headers }
    }

    fn date(&self, name: HeaderName) -> Option<SystemTime> {
        httpdate::parse_http_date(self.headers.get(name)?.to_str().ok()?).ok()
    }
}

/// What identifies the state of a file.
#[derive(Clone, Debug)]
pub(super) struct Validators {
    /// The opaque part of the entity tag.
    pub(super) tag: String,
    pub(super) weak: bool,
    /// In whole seconds, as HTTP has it; absent when HTTP cannot say it.
    pub(super) modified: Option<SystemTime>,
}

impl Validators {
    pub(super) fn new(tag: String, modified: Option<SystemTime>, now: SystemTime) -> Self {
        let weak = modified.is_none_or(|m| now.duration_since(m).is_ok_and(|age| age < SETTLED) || m > now);
        // RFC 9110 section 8.8.2.1: not later than the answer's Date. Years beyond 9999 are later than any.
        let modified = modified.and_then(|m| {
            let since = m.min(now).duration_since(SystemTime::UNIX_EPOCH).ok()?;
            Some(SystemTime::UNIX_EPOCH + Duration::from_secs(since.as_secs()))
        });
        Self { tag, weak, modified }
    }

    pub(super) fn etag(&self) -> Option<HeaderValue> {
        let weak = if self.weak { "W/" } else { "" };
        HeaderValue::from_str(&format!("{weak}\"{}\"", self.tag)).ok()
    }

    pub(super) fn last_modified(&self) -> Option<HeaderValue> {
        HeaderValue::from_str(&httpdate::fmt_http_date(self.modified?)).ok()
    }

    /// Section 8.8.3.2. `value`: one field's list of entity tags, or `*`.
    fn matched_by(&self, value: &HeaderValue, strong: bool) -> bool {
        value.as_bytes() == b"*"
            || tags(value.as_bytes()).any(|(weak, tag)| tag == self.tag.as_bytes() && !(strong && (weak || self.weak)))
    }
}

/// The entity tags of a list, each with whether it is weak. What is none is passed over.
fn tags(mut rest: &[u8]) -> impl Iterator<Item = (bool, &[u8])> {
    std::iter::from_fn(move || {
        let quote = rest.iter().position(|b| *b == b'"')?;
        let weak = rest[..quote].ends_with(b"W/");
        let tag = &rest[quote + 1..];
        let end = tag.iter().position(|b| *b == b'"')?;
        rest = &tag[end + 1..];
        Some((weak, &tag[..end]))
    })
}

/// What is to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Whole,
    /// 206: the first and the last byte.
    Part(u64, u64),
    /// 304.
    NotModified,
    /// 412.
    Failed,
    /// 416.
    Unsatisfiable,
}

/// In the order of section 13.2.2.
pub(super) fn judge(asked: &Asked, validators: &Validators, length: u64) -> Verdict {
    // Another method has been carried out by the program before it answered with a file.
    if !asked.get && !asked.head {
        return Verdict::Whole;
    }
    let all = |name| asked.headers.get_all(name).iter();
    let modified = validators.modified;
    if asked.headers.contains_key(header::IF_MATCH) {
        if !all(header::IF_MATCH).any(|value| validators.matched_by(value, true)) {
            return Verdict::Failed;
        }
    } else if let (Some(date), Some(modified)) = (asked.date(header::IF_UNMODIFIED_SINCE), modified)
        && modified > date
    {
        return Verdict::Failed;
    }
    if asked.headers.contains_key(header::IF_NONE_MATCH) {
        if all(header::IF_NONE_MATCH).any(|value| validators.matched_by(value, false)) {
            return Verdict::NotModified;
        }
    } else if let (Some(date), Some(modified)) = (asked.date(header::IF_MODIFIED_SINCE), modified)
        && modified <= date
    {
        return Verdict::NotModified;
    }
    // Section 14.2: a range is for GET alone.
    let Some(range) = asked.headers.get(header::RANGE).filter(|_| asked.get) else { return Verdict::Whole };
    if let Some(value) = asked.headers.get(header::IF_RANGE) {
        // Section 13.1.5: an entity tag by the strong comparison, a date exactly and only if it is as good as one.
        let same = if value.as_bytes().contains(&b'"') {
            validators.matched_by(value, true)
        } else {
            !validators.weak && modified.is_some() && asked.date(header::IF_RANGE) == modified
        };
        if !same {
            return Verdict::Whole;
        }
    }
    part(range, length)
}

/// One range is answered with 206. Several, which hardly a client asks for, are answered with the whole, as section
/// 14.2 allows: so no list of them costs more than the file does. What is malformed is ignored, as there.
fn part(range: &HeaderValue, length: u64) -> Verdict {
    let parsed = range.to_str().ok().and_then(|text| {
        let (unit, spec) = text.split_once('=')?;
        let (first, last) = spec.trim().split_once('-')?;
        let number = |text: &str| -> Option<Option<u64>> {
            if text.is_empty() {
                return Some(None);
            }
            if !text.bytes().all(|b| b.is_ascii_digit()) {
                return None;
            }
            // Beyond all files is as good as beyond this one.
            Some(Some(text.parse().unwrap_or(u64::MAX)))
        };
        unit.trim().eq_ignore_ascii_case("bytes").then_some(())?;
        Some((number(first)?, number(last)?))
    });
    match parsed {
        Some((Some(first), last)) if last.is_none_or(|last| first <= last) => {
            if first >= length {
                return Verdict::Unsatisfiable;
            }
            Verdict::Part(first, last.unwrap_or(u64::MAX).min(length - 1))
        }
        Some((None, Some(suffix))) => {
            if suffix == 0 || length == 0 {
                return Verdict::Unsatisfiable;
            }
            Verdict::Part(length.saturating_sub(suffix), length - 1)
        }
        _ => Verdict::Whole,
    }
}

/// The encodings of precompressed files by their name and their files' ending, the best first.
const ENCODINGS: [(&str, &str); 3] = [("br", ".br"), ("zstd", ".zst"), ("gzip", ".gz")];

/// Which of `ENCODINGS` the client takes, what it prefers first; among equals ours (section 12.5.3).
pub(super) fn accepted(headers: &HeaderMap) -> Vec<(&'static str, &'static str)> {
    let mut named = [None; ENCODINGS.len()];
    let (mut any, mut identity) = (0.0, None);
    for value in headers.get_all(header::ACCEPT_ENCODING) {
        for item in value.to_str().unwrap_or_default().split(',') {
            let (name, parameters) = item.split_once(';').unwrap_or((item, ""));
            let name = name.trim();
            let quality = quality(parameters);
            if name == "*" {
                any = quality;
            } else if name.eq_ignore_ascii_case("identity") {
                identity = Some(quality);
            }
            for (at, (known, _)) in ENCODINGS.iter().enumerate() {
                let alias = *known == "gzip" && name.eq_ignore_ascii_case("x-gzip");
                if alias || name.eq_ignore_ascii_case(known) {
                    named[at] = Some(quality);
                }
            }
        }
    }
    let mut found: Vec<(f32, usize)> = Vec::new();
    for (at, quality) in named.into_iter().enumerate() {
        let quality: f32 = quality.unwrap_or(any);
        // What is liked less than the file as it is, is not sent.
        if quality > 0.0 && quality >= identity.unwrap_or(0.0) {
            found.push((quality, at));
        }
    }
    found.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    found.into_iter().map(|(_, at)| ENCODINGS[at]).collect()
}

fn quality(parameters: &str) -> f32 {
    let value = parameters.split(';').find_map(|p| {
        let (name, value) = p.split_once('=')?;
        name.trim().eq_ignore_ascii_case("q").then(|| value.trim().parse::<f32>().unwrap_or(0.0))
    });
    // NaN becomes 0.
    value.map_or(1.0, |q| if q > 0.0 { q.min(1.0) } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "Mon, 01 Jan 2024 00:00:00 GMT";
    const SAME: &str = "Tue, 02 Jan 2024 00:00:00 GMT";
    const NEW: &str = "Wed, 03 Jan 2024 00:00:00 GMT";

    fn validators(weak: bool) -> Validators {
        let modified = httpdate::parse_http_date(SAME).unwrap() + Duration::from_millis(700);
        let now = if weak { modified + Duration::from_secs(1) } else { SystemTime::now() };
        Validators::new("t".into(), Some(modified), now)
    }

    fn judged(method: Method, weak: bool, headers: &[(&str, &str)]) -> Verdict {
        let headers = headers
            .iter()
            .map(|(n, v)| (HeaderName::from_bytes(n.as_bytes()).unwrap(), HeaderValue::from_str(v).unwrap()));
        let mut map = HeaderMap::new();
        headers.for_each(|(name, value)| {
            map.append(name, value);
        });
        judge(&Asked::of(&method, &map), &validators(weak), 100)
    }

    #[test]
    fn conditions_in_their_order() {
        use Verdict::{Failed, NotModified, Part, Whole};
        let table: &[(&[(&str, &str)], Verdict)] = &[
            (&[], Whole),
            (&[("if-match", "\"t\"")], Whole),
            (&[("if-match", "\"x\", \"t\"")], Whole),
            (&[("if-match", "\"x\""), ("if-match", "\"t\"")], Whole),
            (&[("if-match", "*")], Whole),
            (&[("if-match", "W/\"t\"")], Failed),
            (&[("if-match", "\"x\"")], Failed),
            (&[("if-match", "nonsense")], Failed),
            // If-Match goes before If-Unmodified-Since.
            (&[("if-match", "\"t\""), ("if-unmodified-since", OLD)], Whole),
            (&[("if-match", "\"x\""), ("if-none-match", "\"t\"")], Failed),
            (&[("if-unmodified-since", OLD)], Failed),
            (&[("if-unmodified-since", SAME)], Whole),
            (&[("if-unmodified-since", "yesterday")], Whole),
            (&[("if-unmodified-since", OLD), ("if-none-match", "\"t\"")], Failed),
            (&[("if-none-match", "\"t\"")], NotModified),
            (&[("if-none-match", "W/\"t\"")], NotModified),
            (&[("if-none-match", "\"a,b\",\"x\" , W/\"t\"")], NotModified),
            (&[("if-none-match", "*")], NotModified),
            (&[("if-none-match", "\"x\"")], Whole),
            // If-None-Match goes before If-Modified-Since.
            (&[("if-none-match", "\"x\""), ("if-modified-since", NEW)], Whole),
            (&[("if-none-match", "\"t\""), ("if-modified-since", OLD)], NotModified),
            (&[("if-modified-since", OLD)], Whole),
            (&[("if-modified-since", SAME)], NotModified),
            (&[("if-modified-since", NEW)], NotModified),
            (&[("if-modified-since", "yesterday")], Whole),
            (&[("if-modified-since", NEW), ("range", "bytes=0-1")], NotModified),
            (&[("range", "bytes=0-1"), ("if-range", "\"t\"")], Part(0, 1)),
            (&[("range", "bytes=0-1"), ("if-range", "W/\"t\"")], Whole),
            (&[("range", "bytes=0-1"), ("if-range", "\"x\"")], Whole),
            (&[("range", "bytes=0-1"), ("if-range", SAME)], Part(0, 1)),
            (&[("range", "bytes=0-1"), ("if-range", NEW)], Whole),
            (&[("range", "bytes=0-1"), ("if-range", "yesterday")], Whole),
            (&[("range", "bytes=200-"), ("if-range", "\"x\"")], Whole),
        ];
        for (headers, verdict) in table {
            assert_eq!(judged(Method::GET, false, headers), *verdict, "{headers:?}");
            let bare = if matches!(verdict, Part(..)) { Whole } else { *verdict };
            assert_eq!(judged(Method::HEAD, false, headers), bare, "HEAD {headers:?}");
            assert_eq!(judged(Method::POST, false, headers), Whole, "POST {headers:?}");
        }
    }

    #[test]
    fn a_file_that_has_just_changed_has_a_weak_tag() {
        use Verdict::{Failed, NotModified, Whole};
        assert_eq!(validators(true).etag().unwrap(), "W/\"t\"");
        assert_eq!(validators(false).etag().unwrap(), "\"t\"");
        assert_eq!(judged(Method::GET, true, &[("if-none-match", "\"t\"")]), NotModified);
        assert_eq!(judged(Method::GET, true, &[("if-match", "\"t\"")]), Failed);
        assert_eq!(judged(Method::GET, true, &[("range", "bytes=0-1"), ("if-range", "\"t\"")]), Whole);
        assert_eq!(judged(Method::GET, true, &[("range", "bytes=0-1"), ("if-range", SAME)]), Whole);
    }

    #[test]
    fn times_that_http_cannot_say() {
        let now = SystemTime::now();
        let day = Duration::from_secs(86_400);
        let future = Validators::new("t".into(), Some(now + day), now);
        assert!(future.weak && future.modified.unwrap() <= now);
        let before = Validators::new("t".into(), Some(SystemTime::UNIX_EPOCH - day), now);
        assert!(before.last_modified().is_none() && !before.weak);
        assert!(Validators::new("t".into(), None, now).weak);
    }

    #[test]
    fn ranges() {
        use Verdict::{Part, Unsatisfiable, Whole};
        for (range, verdict) in [
            ("bytes=0-0", Part(0, 0)),
            ("bytes=10-", Part(10, 99)),
            ("bytes=99-99999999999999999999999", Part(99, 99)),
            ("Bytes = 1-2", Part(1, 2)),
            ("bytes=-1", Part(99, 99)),
            ("bytes=-1000", Part(0, 99)),
            ("bytes=100-", Unsatisfiable),
            ("bytes=100-200", Unsatisfiable),
            ("bytes=99999999999999999999999-", Unsatisfiable),
            ("bytes=-0", Unsatisfiable),
            ("bytes=5-4", Whole),
            ("bytes=-", Whole),
            ("bytes=", Whole),
            ("bytes", Whole),
            ("bytes=a-b", Whole),
            ("bytes=+1-2", Whole),
            ("bytes=1--2", Whole),
            ("bytes=0-1,5-6", Whole),
            ("lines=0-1", Whole),
        ] {
            assert_eq!(judged(Method::GET, false, &[("range", range)]), verdict, "{range}");
        }
        assert_eq!(part(&HeaderValue::from_static("bytes=0-"), 0), Unsatisfiable);
        assert_eq!(part(&HeaderValue::from_static("bytes=-5"), 0), Unsatisfiable);
    }

    #[test]
    fn encodings_by_their_quality() {
        for (value, expected) in [
            ("gzip, deflate, br, zstd", vec!["br", "zstd", "gzip"]),
            ("gzip", vec!["gzip"]),
            ("x-gzip", vec!["gzip"]),
            ("gzip;q=1.0, br;q=0.5", vec!["gzip", "br"]),
            ("br;q=0, gzip", vec!["gzip"]),
            ("*", vec!["br", "zstd", "gzip"]),
            ("*;q=0.1, gzip", vec!["gzip", "br", "zstd"]),
            ("*, br;q=0", vec!["zstd", "gzip"]),
            ("*;q=0", vec![]),
            ("identity", vec![]),
            ("identity;q=1, gzip;q=0.5", vec![]),
            ("identity;q=0.5, gzip", vec!["gzip"]),
            ("identity;q=0, gzip;q=0.1", vec!["gzip"]),
            ("BR;Q=0.3", vec!["br"]),
            ("br;q=nan, gzip;q=x", vec![]),
            ("", vec![]),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static(value));
            let names: Vec<_> = accepted(&headers).into_iter().map(|(name, _)| name).collect();
            assert_eq!(names, expected, "{value}");
        }
    }
}
