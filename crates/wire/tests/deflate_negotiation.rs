//! permessage-deflate in the handshake, both sides, row by row.

use proptest::prelude::*;
use pyhv_wire::Role;
use pyhv_wire::deflate::{
    CompressParams, DeflateConfig, DeflateParams, ExtensionError, accept_offer, check_answer, offer,
};
use pyhv_wire::handshake::{Accepted, Rejected, check_response, check_response_with, extensions};

/// The least that can be wanted: nothing is demanded.
const ANY: DeflateConfig = config(false, false, 15, 15);

const fn config(server_no: bool, client_no: bool, server_bits: u8, client_bits: u8) -> DeflateConfig {
    DeflateConfig {
        server_no_context_takeover: server_no,
        client_no_context_takeover: client_no,
        server_max_window_bits: server_bits,
        client_max_window_bits: client_bits,
    }
}

fn params(server_no: bool, client_no: bool, server_bits: u8, client_bits: u8) -> DeflateParams {
    DeflateParams {
        server_no_context_takeover: server_no,
        client_no_context_takeover: client_no,
        server_max_window_bits: server_bits,
        client_max_window_bits: client_bits,
    }
}

fn accept(headers: &[&str], config: &DeflateConfig) -> Result<Option<(DeflateParams, String)>, ExtensionError> {
    accept_offer(headers.iter().map(|header| header.as_bytes()), config)
}

fn check(headers: &[&str], config: &DeflateConfig) -> Result<Option<DeflateParams>, ExtensionError> {
    check_answer(headers.iter().map(|header| header.as_bytes()), config)
}

/// The parameters of an offer or answer, without the extension's name.
fn with_name(params: &str) -> String {
    if params.is_empty() { "permessage-deflate".to_owned() } else { format!("permessage-deflate; {params}") }
}

#[test]
fn offers_and_what_they_are_answered_with() {
    let default = DeflateConfig::default();
    let small = config(false, false, 10, 9);
    for (offered, config, answer, agreed) in [
        ("", ANY, "", (false, false, 15, 15)),
        // The two that forbid takeover need no offer.
        ("", default, "server_no_context_takeover; client_no_context_takeover", (true, true, 15, 15)),
        ("", config(true, false, 15, 15), "server_no_context_takeover", (true, false, 15, 15)),
        ("", config(false, true, 15, 15), "client_no_context_takeover", (false, true, 15, 15)),
        // Offered, they're agreed.
        ("server_no_context_takeover", ANY, "server_no_context_takeover", (true, false, 15, 15)),
        ("client_no_context_takeover", ANY, "client_no_context_takeover", (false, true, 15, 15)),
        // What browsers offer
        (
            "client_max_window_bits",
            default,
            "server_no_context_takeover; client_no_context_takeover",
            (true, true, 15, 15),
        ),
        ("client_max_window_bits", ANY, "", (false, false, 15, 15)),
        ("client_max_window_bits", small, "client_max_window_bits=9", (false, false, 10, 9)),
        ("client_max_window_bits=12", ANY, "client_max_window_bits=12", (false, false, 15, 12)),
        ("client_max_window_bits=12", small, "client_max_window_bits=9", (false, false, 10, 9)),
        ("client_max_window_bits=8", small, "client_max_window_bits=8", (false, false, 10, 8)),
        ("client_max_window_bits=15", ANY, "", (false, false, 15, 15)),
        // Not offered: not answered, and the client may use all.
        ("", small, "", (false, false, 10, 15)),
        ("server_max_window_bits=10", ANY, "server_max_window_bits=10", (false, false, 10, 15)),
        ("server_max_window_bits=8", ANY, "server_max_window_bits=8", (false, false, 8, 15)),
        ("server_max_window_bits=15", ANY, "server_max_window_bits=15", (false, false, 15, 15)),
        ("server_max_window_bits=12", small, "server_max_window_bits=10", (false, false, 10, 15)),
        (
            "client_max_window_bits=11; server_no_context_takeover; server_max_window_bits=9; client_no_context_takeover",
            ANY,
            "server_no_context_takeover; client_no_context_takeover; server_max_window_bits=9; client_max_window_bits=11",
            (true, true, 9, 11),
        ),
        // Limits outside of what there is are taken for the nearest.
        ("client_max_window_bits", config(false, false, 0, 99), "", (false, false, 8, 15)),
    ] {
        let (server_no, client_no, server_bits, client_bits) = agreed;
        let agreed = params(server_no, client_no, server_bits, client_bits);
        let result = accept(&[&with_name(offered)], &config);
        assert_eq!(result, Ok(Some((agreed, with_name(answer)))), "{offered:?} {config:?}");
    }
}

/// RFC 7692 section 7.1.3's examples, and more of their kind.
#[test]
fn the_first_offer_that_can_be_met_is_accepted() {
    let plain = || Ok(Some((params(false, false, 15, 15), with_name(""))));
    let ten = || Ok(Some((params(false, false, 10, 15), with_name("server_max_window_bits=10"))));
    for (headers, expected) in [
        (&["permessage-deflate"][..], plain()),
        (&["permessage-deflate; client_max_window_bits; server_max_window_bits=10"], ten()),
        (
            &[
                "permessage-deflate; client_max_window_bits; server_max_window_bits=10, permessage-deflate; client_max_window_bits",
            ],
            ten(),
        ),
        (&["permessage-deflate; server_max_window_bits=\"10\""], ten()),
        (&["permessage-deflate; server_max_window_bits=\"1\\0\""], ten()),
        (&["permessage-deflate; server_max_window_bits=7, permessage-deflate; server_max_window_bits=10"], ten()),
        (&["permessage-deflate; what", "permessage-deflate; server_max_window_bits=10"], ten()),
        (&["x-webkit-deflate-frame, bbf-usp; a=\"b\", permessage-deflate"], plain()),
        (&["other", "permessage-deflate", "permessage-deflate; server_max_window_bits=10"], plain()),
        (&[" ,\t, permessage-deflate ,, "], plain()),
        (&["permessage-deflate\t;\tserver_max_window_bits\t=\t10"], ten()),
        // Nothing there
        (&[], Ok(None)),
        (&[""], Ok(None)),
        (&[" , "], Ok(None)),
        (&["other; with=params; and, more"], Ok(None)),
        // Names are what they are.
        (&["Permessage-Deflate"], Ok(None)),
        (&["permessage-deflate2"], Ok(None)),
    ] {
        assert_eq!(accept(headers, &ANY), expected, "{headers:?}");
    }
}

#[test]
fn offers_that_are_declined() {
    for offered in [
        "unknown",
        "server_no_context_takeover=1",
        "client_no_context_takeover=\"true\"",
        "Server_no_context_takeover",
        "server_no_context_takeover; server_no_context_takeover",
        "client_no_context_takeover; client_no_context_takeover",
        "server_max_window_bits",
        "server_max_window_bits=7",
        "server_max_window_bits=16",
        "server_max_window_bits=0",
        "server_max_window_bits=010",
        "server_max_window_bits=08",
        "server_max_window_bits=+9",
        "server_max_window_bits=-9",
        "server_max_window_bits=9.0",
        "server_max_window_bits=265",
        "server_max_window_bits=99999999999999999999",
        "server_max_window_bits=ten",
        "server_max_window_bits=10; server_max_window_bits=10",
        "client_max_window_bits=7",
        "client_max_window_bits=16",
        "client_max_window_bits=09",
        "client_max_window_bits; client_max_window_bits",
        "client_max_window_bits; client_max_window_bits=10",
        "client_max_window_bits=10; client_max_window_bits",
    ] {
        assert_eq!(accept(&[&with_name(offered)], &ANY), Ok(None), "{offered:?}");
        // Another one may still be accepted.
        let headers = [&*with_name(offered), "permessage-deflate"];
        assert!(matches!(accept(&headers, &ANY), Ok(Some(_))), "{offered:?}");
    }
}

const MALFORMED: &[&str] = &[
    "permessage-deflate;",
    "permessage-deflate; ; server_no_context_takeover",
    "; server_no_context_takeover",
    "permessage-deflate server_no_context_takeover",
    "permessage-deflate=1",
    "permessage-deflate; =10",
    "permessage-deflate; server_max_window_bits=",
    "permessage-deflate; server_max_window_bits=, x",
    "permessage-deflate; server_max_window_bits=10=10",
    "permessage-deflate; server_max_window_bits=\"10",
    "permessage-deflate; server_max_window_bits=\"10\\",
    "permessage-deflate; server_max_window_bits=\"10\"0",
    "permessage-deflate; server_max_window_bits=\"\"",
    "permessage-deflate; server_max_window_bits=\"1 0\"",
    "permessage-deflate; server_max_window_bits=1\"0\"",
    "permessage/deflate",
    "permessage-deflate; ü",
    "permessage-deflate; x=\u{7f}",
    "a\u{0}b",
];

#[test]
fn headers_that_are_not_well_formed() {
    for &header in MALFORMED {
        let malformed = ExtensionError::Malformed { value: header.to_owned() };
        assert_eq!(accept(&[header], &ANY), Err(malformed.clone()), "{header:?}");
        // Even where an offer was found before
        assert_eq!(accept(&["permessage-deflate", header], &ANY), Err(malformed.clone()), "{header:?}");
        assert_eq!(check(&[header], &ANY), Err(malformed.clone()), "{header:?}");
        // What the peer sent can't break out of the line it's reported in.
        assert!(malformed.to_string().chars().all(|c| !c.is_control()));
    }
    assert!(accept_offer([&b"\xff"[..]].into_iter(), &ANY).is_err());
}

#[test]
fn what_a_client_offers() {
    for (config, offered) in [
        (ANY, "client_max_window_bits"),
        (DeflateConfig::default(), "server_no_context_takeover; client_no_context_takeover; client_max_window_bits"),
        (config(true, false, 12, 15), "server_no_context_takeover; server_max_window_bits=12; client_max_window_bits"),
        (config(false, true, 15, 8), "client_no_context_takeover; client_max_window_bits=8"),
        (config(false, false, 3, 200), "server_max_window_bits=8; client_max_window_bits"),
    ] {
        assert_eq!(offer(&config), with_name(offered));
    }
}

#[test]
fn answers_that_are_right() {
    let small = config(true, false, 12, 10);
    for (answered, config, agreed) in [
        ("", ANY, (false, false, 15, 15)),
        ("server_no_context_takeover", ANY, (true, false, 15, 15)),
        ("client_no_context_takeover", ANY, (false, true, 15, 15)),
        ("server_max_window_bits=8", ANY, (false, false, 8, 15)),
        ("server_max_window_bits=15", ANY, (false, false, 15, 15)),
        ("client_max_window_bits=\"8\"", ANY, (false, false, 15, 8)),
        ("client_max_window_bits=15", ANY, (false, false, 15, 15)),
        ("server_no_context_takeover", DeflateConfig::default(), (true, true, 15, 15)),
        ("server_no_context_takeover; server_max_window_bits=12", small, (true, false, 12, 10)),
        (
            "server_max_window_bits=9; client_max_window_bits=9; client_no_context_takeover; server_no_context_takeover",
            small,
            (true, true, 9, 9),
        ),
    ] {
        let (server_no, client_no, server_bits, client_bits) = agreed;
        let agreed = params(server_no, client_no, server_bits, client_bits);
        assert_eq!(check(&[&with_name(answered)], &config), Ok(Some(agreed)), "{answered:?}");
    }
    assert_eq!(check(&[], &ANY), Ok(None));
}

#[test]
fn answers_that_are_rejected() {
    let parameter = |shown: &str| ExtensionError::Parameter { shown: shown.to_owned() };
    let missing = |name| ExtensionError::Missing { name };
    let small = config(true, false, 12, 10);
    for (answered, config, expected) in [
        ("unknown", ANY, parameter("unknown")),
        ("unknown=\"x\"", ANY, parameter("unknown=x")),
        ("server_no_context_takeover=1", ANY, parameter("server_no_context_takeover=1")),
        ("client_no_context_takeover; client_no_context_takeover", ANY, parameter("client_no_context_takeover")),
        ("server_max_window_bits", ANY, parameter("server_max_window_bits")),
        ("server_max_window_bits=16", ANY, parameter("server_max_window_bits=16")),
        // Only an offer may leave the value out.
        ("client_max_window_bits", ANY, parameter("client_max_window_bits")),
        ("client_max_window_bits=7", ANY, parameter("client_max_window_bits=7")),
        // What was demanded
        ("", DeflateConfig::default(), missing("server_no_context_takeover")),
        ("server_no_context_takeover", small, missing("server_max_window_bits")),
        ("server_max_window_bits=12", small, missing("server_no_context_takeover")),
        // More than was offered
        ("server_no_context_takeover; server_max_window_bits=13", small, parameter("server_max_window_bits=13")),
        (
            "server_no_context_takeover; server_max_window_bits=12; client_max_window_bits=11",
            small,
            parameter("client_max_window_bits=11"),
        ),
    ] {
        let result = check(&[&with_name(answered)], &config);
        assert_eq!(result, Err(expected.clone()), "{answered:?}");
        assert!(!expected.to_string().is_empty());
    }
    let name = "other".to_owned();
    assert_eq!(check(&["permessage-deflate, other"], &ANY), Err(ExtensionError::NotOffered { name }));
    assert_eq!(check(&["permessage-deflate, permessage-deflate"], &ANY), Err(ExtensionError::Twice));
    assert_eq!(check(&["permessage-deflate", "permessage-deflate"], &ANY), Err(ExtensionError::Twice));
    assert!(matches!(check(&[""], &ANY), Err(ExtensionError::Malformed { .. })));
}

#[test]
fn each_role_compresses_with_its_own_half() {
    let params = params(true, false, 9, 12);
    let server = CompressParams { window_bits: 9, context_takeover: false };
    let client = CompressParams { window_bits: 12, context_takeover: true };
    assert_eq!(params.compress_params(Role::Server), server);
    assert_eq!(params.compress_params(Role::Client), client);
}

#[test]
fn the_clients_check_of_the_response() {
    const KEY: &str = "dGhlIHNhbXBsZSBub25jZQ==";
    let mut headers = vec![
        ("Upgrade", &b"websocket"[..]),
        ("Connection", b"Upgrade"),
        ("Sec-WebSocket-Accept", b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="),
        ("Sec-WebSocket-Protocol", b"chat"),
    ];
    let offered = ["chat".to_owned()];
    let protocol = Some("chat".to_owned());
    let run = |headers: &[(&'static str, &'static [u8])], config: Option<&DeflateConfig>| {
        check_response_with(101, headers.iter().copied(), KEY, &offered, config)
    };
    // The server declined.
    let declined = Accepted { protocol: protocol.clone(), deflate: None };
    assert_eq!(run(&headers, Some(&ANY)), Ok(declined.clone()));
    assert_eq!(run(&headers, None), Ok(declined));
    headers.push(("sec-websocket-extensions", b"permessage-deflate; server_max_window_bits=10"));
    assert_eq!(extensions(headers.iter().copied()).count(), 1);
    let deflate = Some(params(false, false, 10, 15));
    assert_eq!(run(&headers, Some(&ANY)), Ok(Accepted { protocol, deflate }));
    // Nothing was offered.
    let named = "permessage-deflate; server_max_window_bits=10".to_owned();
    let rejected = Rejected::Extensions { named };
    assert_eq!(run(&headers, None), Err(rejected.clone()));
    assert_eq!(check_response(101, headers.iter().copied(), KEY, &offered), Err(rejected));
    // Something else was.
    let missing = ExtensionError::Missing { name: "server_no_context_takeover" };
    let rejected = Rejected::Deflate(missing.clone());
    assert_eq!(rejected.to_string(), missing.to_string());
    assert_eq!(run(&headers, Some(&DeflateConfig::default())), Err(rejected));
}

fn configs() -> impl Strategy<Value = DeflateConfig> {
    (any::<bool>(), any::<bool>(), 8u8..=15, 8u8..=15).prop_map(|(a, b, c, d)| config(a, b, c, d))
}

proptest! {
    /// Two ends joined: what a client offers a server accepts, and both come to the same, within what both want.
    #[test]
    fn both_ends_agree(client in configs(), server in configs()) {
        let offered = offer(&client);
        let (agreed, answer) = accept(&[&offered], &server).unwrap().unwrap();
        let read = check(&[&answer], &client).unwrap().unwrap();
        // A server's own limit that the client didn't ask for isn't told.
        prop_assert!(agreed.server_max_window_bits <= read.server_max_window_bits);
        prop_assert_eq!(DeflateParams { server_max_window_bits: agreed.server_max_window_bits, ..read }, agreed);
        for config in [client, server] {
            prop_assert!(agreed.server_no_context_takeover || !config.server_no_context_takeover);
            prop_assert!(agreed.client_no_context_takeover || !config.client_no_context_takeover);
            prop_assert!(agreed.server_max_window_bits <= config.server_max_window_bits);
            prop_assert!(agreed.client_max_window_bits <= config.client_max_window_bits);
        }
    }

    /// Nothing is answered that the client couldn't have accepted, whatever it offered.
    #[test]
    fn answers_hold_to_their_offer(
        pieces in prop::collection::vec(prop::sample::select(vec![
            "permessage-deflate", ";", ",", " ", "=", "\"", "\\", "8", "10", "15", "16", "x",
            "server_no_context_takeover", "client_no_context_takeover",
            "; server_max_window_bits=9", "; client_max_window_bits", "; client_max_window_bits=11",
        ]), 0..12),
        server in configs(),
    ) {
        let offered = pieces.concat();
        if let Ok(Some((agreed, answer))) = accept(&[&offered], &server) {
            prop_assert!(offered.contains("permessage-deflate"));
            prop_assert!(!answer.contains("client_max") || offered.contains("client_max"));
            prop_assert!(!answer.contains("server_max") || offered.contains("server_max"));
            prop_assert!((8..=15).contains(&agreed.server_max_window_bits));
            prop_assert!((8..=15).contains(&agreed.client_max_window_bits));
            let read = check(&[&answer], &ANY).unwrap().unwrap();
            prop_assert_eq!(read.client_max_window_bits, agreed.client_max_window_bits);
        }
    }

    #[test]
    fn any_headers_do_no_harm(headers in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..4)) {
        let values = || headers.iter().map(Vec::as_slice);
        let _ = accept_offer(values(), &ANY);
        let _ = check_answer(values(), &ANY);
    }
}
