use pyhv_wire::deflate::DeflateConfig;
use pyhv_wire::handshake::{check_request, check_response, check_response_with, is_upgrade};
use tungstenite::handshake::derive_accept_key;

const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";

/// Invariant: no header makes the checks panic, and they accept a handshake exactly if RFC 6455 section 4 allows it, by a
/// second reading of the rules that is written below in another way. `Sec-WebSocket-Accept` is what tungstenite
/// answers.
///
/// An input is lines: the first is the method and version, or the status, and the subprotocols that were offered; the
/// others are headers. In a header's value ~ stands for the `Sec-WebSocket-Accept` that is right, which no fuzzer guesses.
pub fn handshake(data: &[u8]) {
    let mut lines = data.split(|&byte| byte == b'\n');
    let Some(first) = lines.next().and_then(|line| std::str::from_utf8(line).ok()) else { return };
    let right = derive_accept_key(KEY.as_bytes());
    let headers: Vec<(String, Vec<u8>)> = lines
        .filter_map(|line| {
            let colon = line.iter().position(|&byte| byte == b':')?;
            let name = std::str::from_utf8(&line[..colon]).ok()?.to_owned();
            let value = if line[colon + 1..] == *b"~" { right.as_bytes() } else { &line[colon + 1..] };
            // What no HTTP parser lets through: RFC 9110 section 5.5.
            let is_value = value.iter().all(|&byte| byte >= b' ' && byte != 0x7f || byte == b'\t');
            is_value.then(|| (name, value.to_vec()))
        })
        .collect();
    let pairs = || headers.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
    let rules = Rules(&headers);

    let mut words = first.split(' ');
    let (method, version) = (words.next().unwrap_or(""), words.next().unwrap_or(""));
    if let Ok(status) = method.parse::<u16>() {
        let offered: Vec<String> = first.split(' ').skip(1).map(str::to_owned).collect();
        let checked = check_response(status, pairs(), KEY, &offered);
        assert_eq!(checked.as_ref().ok(), rules.response(status, &right, &offered).as_ref(), "{checked:?} {headers:?}");
        // Offering an extension makes a difference only if the server names one.
        let with = check_response_with(status, pairs(), KEY, &offered, Some(&DeflateConfig::default()));
        match with {
            Ok(accepted) if accepted.deflate.is_none() => assert_eq!(Ok(accepted.protocol), checked),
            Ok(accepted) => {
                assert!(rules.lines("sec-websocket-extensions").count() > 0);
                assert!(checked.is_err() && (accepted.protocol.is_none() || !offered.is_empty()));
            }
            Err(_) => assert!(checked.is_err()),
        }
        return;
    }

    let checked = check_request(method, version == "1.1", pairs());
    let allowed = rules.request(method, version == "1.1");
    assert_eq!(checked.as_ref().ok().map(|request| &request.protocols), allowed.as_ref(), "{checked:?} {headers:?}");
    match checked {
        Ok(request) => {
            assert!(is_upgrade(pairs()));
            let key = rules.lines("sec-websocket-key").next().unwrap_or_default();
            assert_eq!(request.accept, derive_accept_key(key));
        }
        Err(refusal) => {
            assert!(matches!(refusal.status(), 400 | 405 | 426));
            assert!(!refusal.to_string().is_empty());
        }
    }
}

/// The rules of section 4, read again.
struct Rules<'a>(&'a [(String, Vec<u8>)]);

impl<'a> Rules<'a> {
    /// Values without the optional whitespace around them: RFC 9110 section 5.6.3, space and tab.
    fn lines(&self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter(move |(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| trim(value))
    }

    /// The elements of a list in lower case, empty ones left out.
    fn words(&self, name: &str) -> Vec<Vec<u8>> {
        let joined = self.lines(name).collect::<Vec<_>>().join(&b',');
        let elements = joined.split(|&byte| byte == b',').map(|element| trim(element).to_vec());
        elements.filter(|element| !element.is_empty()).collect()
    }

    fn names(&self, name: &str, word: &[u8]) -> bool {
        self.words(name).iter().any(|element| element.to_ascii_lowercase() == word)
    }

    fn one(&self, name: &str) -> Option<&'a [u8]> {
        let all: Vec<_> = self.lines(name).collect();
        if let [value] = all[..] { Some(value) } else { None }
    }

    /// Section 4.2.1: the subprotocols offered, if the request is right.
    fn request(&self, method: &str, http11: bool) -> Option<Vec<String>> {
        let right = method == "GET"
            && http11
            && self.one("host").is_some()
            && self.names("upgrade", b"websocket")
            && self.names("connection", b"upgrade")
            && self.one("sec-websocket-version") == Some(b"13")
            && self.one("sec-websocket-key").is_some_and(is_key);
        let protocols: Option<Vec<String>> =
            self.words("sec-websocket-protocol").iter().map(|word| token(word)).collect();
        let protocols = protocols?;
        let mut distinct = protocols.clone();
        distinct.sort();
        distinct.dedup();
        let offers = self.lines("sec-websocket-protocol").next().is_some();
        (right && distinct.len() == protocols.len() && offers != protocols.is_empty()).then_some(protocols)
    }

    /// Section 4.1: the subprotocol chosen, if the response is right to a request that offered no extension.
    fn response(&self, status: u16, accept: &str, offered: &[String]) -> Option<Option<String>> {
        let upgrades = self.words("upgrade");
        let right = status == 101
            && !upgrades.is_empty()
            && upgrades.iter().all(|word| word.eq_ignore_ascii_case(b"websocket"))
            && self.names("connection", b"upgrade")
            && self.one("sec-websocket-accept") == Some(accept.as_bytes())
            && self.lines("sec-websocket-extensions").next().is_none();
        if !right {
            return None;
        }
        match self.lines("sec-websocket-protocol").collect::<Vec<_>>()[..] {
            [] => Some(None),
            [one] => offered.iter().find(|name| name.as_bytes() == one).map(|name| Some(name.clone())),
            _ => None,
        }
    }
}

fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// RFC 9110 section 5.6.2: visible characters less the delimiters.
fn token(word: &[u8]) -> Option<String> {
    let fits = word.iter().all(|&byte| byte > b' ' && byte < 0x7f && !b"\"(),/:;<=>?@[\\]{}".contains(&byte));
    (fits && !word.is_empty()).then(|| String::from_utf8_lossy(word).into_owned())
}

/// 16 bytes in base64 (RFC 4648 section 4) are 22 characters and two of padding. The four bits of the last character that
/// encode nothing may be anything: section 4.2.2 has nobody decode it.
fn is_key(value: &[u8]) -> bool {
    let [characters @ .., b'=', b'='] = value else { return false };
    characters.len() == 22
        && characters.iter().all(|&byte| byte.is_ascii_alphanumeric() || byte == b'+' || byte == b'/')
}
