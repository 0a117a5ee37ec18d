//! The opening handshake, both sides, rule by rule.

use proptest::prelude::*;
use pyhv_wire::handshake::{
    Refusal, Rejected, accept_key, check_request, check_response, encode_key, is_token, is_upgrade,
};

/// The key of the RFC's example (section 1.3) and what answers it.
const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

type Headers = Vec<(&'static str, &'static str)>;

fn bytes<'a>(headers: &'a [(&str, &str)]) -> impl Iterator<Item = (&'a str, &'a [u8])> + Clone {
    headers.iter().map(|(name, value)| (*name, value.as_bytes()))
}

/// The request of section 1.2, less the subprotocols.
fn request() -> Headers {
    vec![
        ("Host", "server.example.com"),
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Key", KEY),
        ("Origin", "http://example.com"),
        ("Sec-WebSocket-Version", "13"),
    ]
}

fn response() -> Headers {
    vec![("Upgrade", "websocket"), ("Connection", "Upgrade"), ("Sec-WebSocket-Accept", ACCEPT)]
}

/// `headers` with the lines called `name` replaced by these.
fn with(headers: Headers, name: &'static str, values: &[&'static str]) -> Headers {
    let rest = headers.into_iter().filter(|header| header.0 != name);
    rest.chain(values.iter().map(|value| (name, *value))).collect()
}

fn refusal(headers: &[(&str, &str)]) -> Option<Refusal> {
    check_request("GET", true, bytes(headers)).err()
}

fn rejected(headers: &[(&str, &str)], offered: &[&str]) -> Result<Option<String>, Rejected> {
    let offered: Vec<String> = offered.iter().map(|&name| name.to_owned()).collect();
    check_response(101, bytes(headers), KEY, &offered)
}

#[test]
fn the_example_of_the_rfc() {
    assert_eq!(accept_key(KEY), ACCEPT);
    assert_eq!(encode_key(*b"the sample nonce"), KEY);
    let headers = with(request(), "Sec-WebSocket-Protocol", &["chat, superchat"]);
    let request = check_request("GET", true, bytes(&headers)).unwrap();
    assert_eq!(request.accept, ACCEPT);
    assert_eq!(request.protocols, ["chat", "superchat"]);
    let headers = with(response(), "Sec-WebSocket-Protocol", &["chat"]);
    let chosen = rejected(&headers, &["chat", "superchat"]);
    assert_eq!(chosen, Ok(Some("chat".to_owned())));
}

#[test]
fn is_upgrade_tells_websocket_from_http() {
    for (headers, expected) in [
        (request(), true),
        (vec![], false),
        (vec![("Upgrade", "h2c")], false),
        (vec![("Upgrade", "websockets")], false),
        (vec![("Connection", "websocket")], false),
        (vec![("upgrade", "WebSocket")], true),
        (vec![("UPGRADE", "h2c,\t websocket ")], true),
        (vec![("Upgrade", "h2c"), ("Upgrade", "websocket")], true),
        // Of any version, and however broken the rest is.
        (with(request(), "Sec-WebSocket-Version", &["8"]), true),
    ] {
        assert_eq!(is_upgrade(bytes(&headers)), expected, "{headers:?}");
    }
}

#[test]
fn requests_that_are_right() {
    for (name, values) in [
        ("Upgrade", &["WebSocket"][..]),
        ("Upgrade", &["h2c, websocket"]),
        ("Upgrade", &["h2c", "websocket"]),
        ("Connection", &["keep-alive, Upgrade"]),
        ("Connection", &["keep-alive", "upgrade"]),
        ("Connection", &[" ,, UPGRADE ,"]),
        ("Sec-WebSocket-Version", &[" 13 "]),
        ("Sec-WebSocket-Key", &["  dGhlIHNhbXBsZSBub25jZQ==\t"]),
        // An extension that isn't known is declined, not refused.
        ("Sec-WebSocket-Extensions", &["permessage-deflate; client_max_window_bits"]),
    ] {
        let headers = with(request(), name, values);
        let request = check_request("GET", true, bytes(&headers));
        let request = request.unwrap_or_else(|refusal| panic!("{name} {values:?}: {refusal}"));
        assert_eq!(request.accept, ACCEPT);
        assert!(request.protocols.is_empty());
    }
    // The last character's four spare bits may be set; the answer is for the key as sent.
    let headers = with(request(), "Sec-WebSocket-Key", &["dGhlIHNhbXBsZSBub25jZR=="]);
    let request = check_request("GET", true, bytes(&headers)).unwrap();
    assert_eq!(request.accept, accept_key("dGhlIHNhbXBsZSBub25jZR=="));
}

#[test]
fn requests_that_are_refused() {
    for (name, values, expected, status) in [
        ("Host", &[][..], Refusal::Host, 400),
        ("Host", &["a", "b"], Refusal::Host, 400),
        ("Upgrade", &[], Refusal::Upgrade, 426),
        ("Upgrade", &["h2c"], Refusal::Upgrade, 426),
        ("Connection", &[], Refusal::Connection, 400),
        ("Connection", &["keep-alive"], Refusal::Connection, 400),
        ("Connection", &["Upgraded"], Refusal::Connection, 400),
        ("Sec-WebSocket-Version", &[], Refusal::Version, 426),
        ("Sec-WebSocket-Version", &["8"], Refusal::Version, 426),
        ("Sec-WebSocket-Version", &["013"], Refusal::Version, 426),
        ("Sec-WebSocket-Version", &["13, 8"], Refusal::Version, 426),
        ("Sec-WebSocket-Version", &["13", "13"], Refusal::Version, 426),
    ] {
        let refusal = refusal(&with(request(), name, values));
        assert_eq!(refusal, Some(expected.clone()), "{name} {values:?}");
        assert_eq!(expected.status(), status);
        assert!(!expected.to_string().is_empty());
    }
}

#[test]
fn method_and_http_version() {
    for method in ["POST", "HEAD", "get", "CONNECT", ""] {
        let refusal = check_request(method, true, bytes(&request())).unwrap_err();
        assert_eq!((&refusal, refusal.status()), (&Refusal::Method, 405));
    }
    let refusal = check_request("GET", false, bytes(&request())).unwrap_err();
    assert_eq!((&refusal, refusal.status()), (&Refusal::HttpVersion, 400));
}

#[test]
fn keys_that_are_refused() {
    for (values, found, word) in [
        (&[][..], 0, "missing"),
        (&[KEY, KEY], 2, "2 times"),
        (&[KEY, "x", ""], 3, "3 times"),
        (&[""], 1, "base64"),
        (&["not base64!"], 1, "base64"),
        // 15, 17 and 18 bytes
        (&["dGhlIHNhbXBsZSBub25j"], 1, "base64"),
        (&["dGhlIHNhbXBsZSBub25jZWU="], 1, "base64"),
        (&["dGhlIHNhbXBsZSBub25jZWVl"], 1, "base64"),
        // 16 bytes without padding, with a line break, in the URL alphabet
        (&["dGhlIHNhbXBsZSBub25jZQ"], 1, "base64"),
        (&["dGhlIHNhbXBs\r\nZSBub25jZQ=="], 1, "base64"),
        (&["_-hlIHNhbXBsZSBub25jZQ=="], 1, "base64"),
        (&["dGhlIHNhbXBsZSBub25jZQ==, x"], 1, "base64"),
        (&["ünïcödeünïcödeünïcödeünï"], 1, "base64"),
    ] {
        let refusal = refusal(&with(request(), "Sec-WebSocket-Key", values));
        assert_eq!(refusal, Some(Refusal::Key { found }), "{values:?}");
        let refusal = refusal.unwrap();
        assert_eq!(refusal.status(), 400);
        assert!(refusal.to_string().contains(word), "{refusal}");
    }
    let mut long = "A".repeat(10_000);
    long.push_str("==");
    let mut headers = request();
    headers.retain(|header| header.0 != "Sec-WebSocket-Key");
    let mut headers: Vec<(&str, &str)> = headers;
    headers.push(("Sec-WebSocket-Key", &long));
    assert_eq!(refusal(&headers), Some(Refusal::Key { found: 1 }));
}

#[test]
fn subprotocols_are_read_in_order_over_all_lines() {
    for (values, expected) in [
        (&["chat"][..], &["chat"][..]),
        (&["chat, superchat"], &["chat", "superchat"]),
        (&["b", "a,c"], &["b", "a", "c"]),
        (&[" ,a,, b\t,"], &["a", "b"]),
        (&["v1.json+zip"], &["v1.json+zip"]),
        // Names differ by case.
        (&["Chat, chat"], &["Chat", "chat"]),
    ] {
        let headers = with(request(), "Sec-WebSocket-Protocol", values);
        let request = check_request("GET", true, bytes(&headers)).unwrap();
        assert_eq!(request.protocols, expected, "{values:?}");
    }
}

#[test]
fn subprotocols_that_are_refused() {
    let token = |name: &str| Refusal::Protocol { name: name.to_owned() };
    let twice = |name: &str| Refusal::ProtocolTwice { name: name.to_owned() };
    for (values, expected) in [
        (&["a b"][..], token("a b")),
        (&["ok, not/ok"], token("not/ok")),
        (&["\"quoted\""], token("\"quoted\"")),
        (&["ünïcode"], token("ünïcode")),
        (&[""], token("")),
        (&[" , "], token("")),
        (&["a, b, a"], twice("a")),
        (&["a", "a"], twice("a")),
    ] {
        let refusal = refusal(&with(request(), "Sec-WebSocket-Protocol", values));
        assert_eq!(refusal, Some(expected), "{values:?}");
        assert_eq!(refusal.map(|refusal| refusal.status()), Some(400));
    }
    // What the peer sent can't break out of the line it's reported in.
    let shown = token("a\r\nb\u{1b}").to_string();
    assert!(shown.chars().all(|c| !c.is_control()), "{shown:?}");
}

#[test]
fn responses_that_are_right() {
    assert_eq!(rejected(&response(), &[]), Ok(None));
    // The server need not choose any of the protocols offered.
    assert_eq!(rejected(&response(), &["chat"]), Ok(None));
    for (name, value) in [
        ("Upgrade", "WebSocket"),
        ("Connection", "keep-alive, upgrade"),
        ("Sec-WebSocket-Accept", "  s3pPLMBiTxaQ9kYGzzhZRbK+xOo= "),
    ] {
        assert_eq!(rejected(&with(response(), name, &[value]), &[]), Ok(None));
    }
}

#[test]
fn responses_that_are_rejected() {
    let several = || Rejected::SeveralProtocols;
    let protocol = |name: &str| Rejected::Protocol { chosen: name.to_owned() };
    let extensions = |named: &str| Rejected::Extensions { named: named.to_owned() };
    const LOWER: &str = "s3pplmbitxaq9kygzzhzrbk+xoo=";
    for (name, values, expected) in [
        ("Upgrade", &[][..], Rejected::Upgrade),
        ("Upgrade", &["", " ,"], Rejected::Upgrade),
        ("Upgrade", &["h2c"], Rejected::Upgrade),
        ("Upgrade", &["websocket, h2c"], Rejected::Upgrade),
        ("Upgrade", &["websocket", "h2c"], Rejected::Upgrade),
        ("Connection", &[], Rejected::Connection),
        ("Connection", &["close"], Rejected::Connection),
        ("Sec-WebSocket-Accept", &[], Rejected::Accept),
        ("Sec-WebSocket-Accept", &[""], Rejected::Accept),
        ("Sec-WebSocket-Accept", &[LOWER], Rejected::Accept),
        ("Sec-WebSocket-Accept", &[KEY], Rejected::Accept),
        ("Sec-WebSocket-Accept", &[ACCEPT, ACCEPT], Rejected::Accept),
        ("Sec-WebSocket-Extensions", &["permessage-deflate"], extensions("permessage-deflate")),
        ("Sec-WebSocket-Extensions", &[""], extensions("")),
        ("Sec-WebSocket-Protocol", &["other"], protocol("other")),
        ("Sec-WebSocket-Protocol", &["Chat"], protocol("Chat")),
        ("Sec-WebSocket-Protocol", &[""], protocol("")),
        ("Sec-WebSocket-Protocol", &["chat, superchat"], protocol("chat, superchat")),
        ("Sec-WebSocket-Protocol", &["chat", "superchat"], several()),
        ("Sec-WebSocket-Protocol", &["chat", "chat"], several()),
    ] {
        let result = rejected(&with(response(), name, values), &["chat", "superchat"]);
        assert_eq!(result, Err(expected.clone()), "{name} {values:?}");
        assert!(!expected.to_string().is_empty());
    }
    // A choice where nothing was offered
    let headers = with(response(), "Sec-WebSocket-Protocol", &["chat"]);
    assert_eq!(rejected(&headers, &[]), Err(protocol("chat")));
    for status in [200, 301, 401, 100, 404] {
        let rejected = check_response(status, bytes(&response()), KEY, &[]);
        assert_eq!(rejected, Err(Rejected::Status(status)));
        assert!(rejected.unwrap_err().to_string().contains(&status.to_string()));
    }
}

#[test]
fn tokens() {
    for token in ["a", "chat", "v1.2", "soap+xml", "!#$%&'*+-.^_`|~", "09AZaz"] {
        assert!(is_token(token), "{token}");
    }
    let separators = "()<>@,;:\\\"/[]?={} \t\r\n\0\u{7f}é";
    assert!(!is_token(""));
    for separator in separators.chars() {
        assert!(!is_token(&format!("a{separator}b")), "{separator:?}");
    }
}

proptest! {
    /// Two ends joined: the key that a client makes is one that a server takes, and its answer is one that it takes.
    #[test]
    fn any_nonce_makes_a_handshake(nonce in any::<[u8; 16]>()) {
        let key = encode_key(nonce);
        let mut headers: Vec<(&str, &str)> = request();
        headers.retain(|header| header.0 != "Sec-WebSocket-Key");
        headers.push(("Sec-WebSocket-Key", &key));
        let request = check_request("GET", true, bytes(&headers)).unwrap();
        let mut headers: Vec<(&str, &str)> = response();
        headers.retain(|header| header.0 != "Sec-WebSocket-Accept");
        headers.push(("Sec-WebSocket-Accept", &request.accept));
        prop_assert_eq!(check_response(101, bytes(&headers), &key, &[]), Ok(None));
    }

    /// Headers are bytes from a stranger: nothing they hold makes a panic.
    #[test]
    fn any_headers_do_no_harm(
        values in prop::collection::vec((0usize..9, prop::collection::vec(any::<u8>(), 0..60)), 0..12),
    ) {
        const NAMES: [&str; 9] = [
            "Host", "Upgrade", "Connection", "Sec-WebSocket-Key", "Sec-WebSocket-Version",
            "Sec-WebSocket-Protocol", "Sec-WebSocket-Extensions", "Sec-WebSocket-Accept", "",
        ];
        let strange = values.iter().map(|(name, value)| (NAMES[*name], value.as_slice()));
        let (fine_request, fine_response) = (request(), response());
        let _ = is_upgrade(strange.clone());
        let _ = check_request("GET", true, strange.clone());
        let _ = check_request("GET", true, bytes(&fine_request).chain(strange.clone()));
        let _ = check_response(101, bytes(&fine_response).chain(strange), KEY, &[]);
    }
}
