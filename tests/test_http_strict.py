"""HTTP/1.1 as strict as it must be: what two readers could take for two different things reaches no handler.

The program has a handler for every path and method, which records what it gets. Behind each broken request stands a
complete one for `/smuggled`: if it runs, the server has lost its place in the stream (request smuggling). The cases
are those of RFC 9112 and RFC 9110, of PortSwigger's lists of CL.TE, TE.CL and TE.TE, of the tests of h11 and llhttp,
and of HTTP Garden. Each is sent in one piece and byte by byte.

The client closes its sending side behind it, so that a server that keeps the connection ends it after the last answer.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from support import build_frame, serving
from support_http import CatchAllServer, Target, answers_in, exchange, get, head


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    server = CatchAllServer()
    with serving(server) as thread:
        running = Target(server, thread.port)
        yield running
        running.bystander.socket.close()


@pytest.fixture(autouse=True)
def nothing_left(request: pytest.FixtureRequest) -> None:
    """A test that failed must not make the next one fail."""
    if "target" in request.fixturenames:
        target: Target = request.getfixturevalue("target")
        target.seen()
        target.server.record.calls.clear()


def post(*fields: bytes) -> bytes:
    return head(b"POST /first HTTP/1.1", *fields)


SMUGGLED = get(b"GET /smuggled HTTP/1.1")
NEXT = get(b"GET /next HTTP/1.1")
CHUNKED = b"Transfer-Encoding: chunked"
LAST = b"0\r\n\r\n"


def length(value: bytes) -> bytes:
    return post(b"Content-Length: " + value) + b"hello"


def coding(value: bytes) -> bytes:
    return post(b"Transfer-Encoding: " + value) + LAST


def chunks(data: bytes) -> bytes:
    return post(CHUNKED) + data


def hosted(value: bytes) -> bytes:
    return head(b"GET /first HTTP/1.1", host=b"Host: " + value)


HANDSHAKE = (
    b"Upgrade: websocket",
    b"Connection: Upgrade",
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
    b"Sec-WebSocket-Version: 13",
)

# What is refused. A key begins with the section of RFC 9112, or names another RFC.

REFUSED: dict[str, bytes] = {
    "6.3 lengths differ": length(b"5\r\nContent-Length: 6"),
    "6.3 lengths differ, the longer first": length(b"6\r\nContent-Length: 5"),
    "6.3 list of lengths that differ": length(b"5, 6"),
    "9110-8.6 length with plus": length(b"+5"),
    "9110-8.6 length with minus": length(b"-5"),
    "9110-8.6 length of minus zero": length(b"-0"),
    "9110-8.6 length in hex": length(b"0x5"),
    "9110-8.6 length with a space inside": length(b"5 5"),
    "9110-8.6 length with a tab inside": length(b"5\t5"),
    "9110-8.6 empty length": length(b""),
    "9110-8.6 length with a fraction": length(b"5.0"),
    "9110-8.6 length with an exponent": length(b"5e0"),
    "9110-8.6 length with an underscore": length(b"0_5"),
    "9110-8.6 length in other digits": length("\u0665".encode()),
    "9110-8.6 quoted length": length(b'"5"'),
    "9110-8.6 length with a parameter": length(b"5;a"),
    "9110-8.6 length behind a form feed": length(b"\x0c5"),
    "9110-8.6 length behind a vertical tab": length(b"\x0b5"),
    "9110-8.6 length behind a no-break space": length(b"\xa05"),
    "9110-8.6 length of 2^64": length(b"%d" % 2**64),
    "9110-8.6 length of 2^64 + 5": length(b"%d" % (2**64 + 5)),
    "9110-8.6 length of 20 nines": length(b"9" * 20),
    "6.3 chunked is not the last coding": coding(b"chunked, identity"),
    "6.3 chunked is not the last coding, two lines": coding(b"chunked\r\nTransfer-Encoding: identity"),
    "6.3 chunked is not the last coding, an unknown one": coding(b"chunked\r\nTransfer-encoding: cow"),
    "6.3 gzip alone": coding(b"gzip"),
    "6.1 xchunked": coding(b"xchunked"),
    "6.1 chunkedx": coding(b"chunkedx"),
    "6.1 chunked in quotes": coding(b'"chunked"'),
    "6.1 chunked with a parameter": coding(b"chunked;q=1"),
    "6.1 chunked with a space inside": coding(b"chu nked"),
    "6.1 chunked behind a vertical tab": coding(b"\x0bchunked"),
    "6.1 chunked before a form feed": coding(b"chunked\x0c"),
    "6.1 chunked behind a no-break space": coding(b"\xa0chunked"),
    "6.1 chunked before NUL": coding(b"chunked\0"),
    "6.1 chunked with the Kelvin sign": coding("chun\u212aed".encode()),
    "6.1 empty coding": coding(b""),
    "6.1 chunked on HTTP/1.0": head(b"POST /first HTTP/1.0", CHUNKED) + LAST,
    "6.1 chunked twice in a list": coding(b"chunked, chunked"),
    "6.1 chunked twice in two lines": coding(b"chunked\r\nTransfer-Encoding: chunked"),
    "6.1 identity, chunked": coding(b"identity, chunked"),
    "6.1 identity, chunked in two lines": coding(b"identity\r\nTransfer-Encoding: chunked"),
    "6.1 unknown coding, chunked": coding(b"cow\r\nTransfer-Encoding: chunked"),
    "6.1 gzip, chunked": coding(b"gzip, chunked"),
    "5.1 space before the colon": get(b"GET /first HTTP/1.1", b"X : a"),
    "5.1 tab before the colon": get(b"GET /first HTTP/1.1", b"X\t: a"),
    "5.1 space before the colon of the coding": post(b"Transfer-Encoding : chunked", b"Content-Length: 5") + LAST,
    "5.1 space before the colon of the length": post(b"Content-Length : 5") + b"hello",
    "5 no colon": get(b"GET /first HTTP/1.1", b"X"),
    "5 no name": get(b"GET /first HTTP/1.1", b": a"),
    "2.2 space before the first field": head(b"GET /first HTTP/1.1", host=b" Host: x"),
    "5.2 folded value": get(b"GET /first HTTP/1.1", b"X: a\r\n b"),
    "5.2 folded with a tab": get(b"GET /first HTTP/1.1", b"X: a\r\n\tb"),
    "5.2 folded coding": coding(b"\r\n chunked"),
    "5.2 a coding that looks folded": post(b"X: a", b" Transfer-Encoding: chunked", b"Content-Length: 5") + LAST,
    "2.2 bare CR in a value": get(b"GET /first HTTP/1.1", b"X: a\rb"),
    "2.2 bare CR between fields": get(b"GET /first HTTP/1.1", b"X: a\rTransfer-Encoding: chunked"),
    "2.2 bare CR behind the request line": b"GET /first HTTP/1.1\rHost: x\r\n\r\n",
    "2.2 two CRs": b"GET /first HTTP/1.1\r\r\nHost: x\r\n\r\n",
    "2.2 two CRs before the empty line": b"GET /first HTTP/1.1\r\nHost: x\r\r\n\r\n",
    "2.2 CR before the request line": b"\r" + get(),
    **{
        f"9110-5.5 {code:#04x} in a value": get(b"GET /first HTTP/1.1", b"X: a%cb" % code)
        for code in (0, 1, 8, 11, 12, 27, 127)
    },
    **{
        f"9110-5.6.2 {code:#04x} in a name": get(b"GET /first HTTP/1.1", b"X%cY: a" % code)
        for code in (*(0, 1, 9, 11, 12, 27, 32, 127, 128, 255), *b'()<>@,;\\"/[]?={}')
    },
    "7.1 chunk size of letters": chunks(b"xyz\r\n"),
    "7.1 no chunk size": chunks(b"\r\nhello\r\n" + LAST),
    "7.1 negative chunk size": chunks(b"-1\r\n"),
    "7.1 chunk size with plus": chunks(b"+5\r\nhello\r\n" + LAST),
    "7.1 chunk size with 0x": chunks(b"0x5\r\nhello\r\n" + LAST),
    "7.1 chunk size with an underscore": chunks(b"0_5\r\nhello\r\n" + LAST),
    "7.1 chunk size behind a space": chunks(b" 5\r\nhello\r\n" + LAST),
    "7.1 chunk size with a space inside": chunks(b"5 5\r\nhello\r\n" + LAST),
    "7.1 chunk size before a comma": chunks(b"5,5\r\nhello\r\n" + LAST),
    "7.1 chunk size before NUL": chunks(b"5\0\r\nhello\r\n" + LAST),
    "7.1 chunk size of 2^64": chunks(b"1" + b"0" * 16 + b"\r\nhello"),
    "7.1 chunk size of 2^64 + 5": chunks(b"1" + b"0" * 15 + b"5\r\nhello\r\n" + LAST),
    "7.1 chunk size ends in LF": chunks(b"5\nhello\r\n" + LAST),
    "7.1 chunk size ends in CR": chunks(b"5\rhello\r\n" + LAST),
    "7.1 no CRLF behind the data": chunks(b"5\r\nhello" + LAST),
    "7.1 LF behind the data": chunks(b"5\r\nhello\n" + LAST),
    "7.1 more data than the size": chunks(b"5\r\nhello!\r\n" + LAST),
    "7.1 less data than the size": chunks(b"6\r\nhello\r\n" + LAST),
    "7.1 last chunk ends in LF": chunks(b"5\r\nhello\r\n0\n\r\n"),
    "7.1 last chunk and end are LF": chunks(b"0\n\n"),
    "7.1.1 extension with LF": chunks(b"5;a\nhello\r\n" + LAST),
    "7.1.1 extension with CR": chunks(b"5;a\rb\r\nhello\r\n" + LAST),
    "7.1.1 extension without a semicolon": chunks(b"5=a\r\nhello\r\n" + LAST),
    "7.1.1 extension of 20 KiB": chunks(b"5;" + b"a" * 20480 + b"\r\nhello\r\n" + LAST),
    "7.1.1 400 extensions of 100 bytes": chunks((b"1;" + b"a" * 100 + b"\r\nx\r\n") * 400 + LAST),
    "7.1.2 trailer without a colon": chunks(b"0\r\nno trailer\r\n\r\n"),
    "7.1.2 trailer with a space before the colon": chunks(b"0\r\nX : a\r\n\r\n"),
    "7.1.2 trailer with NUL": chunks(b"0\r\nX: a\0\r\n\r\n"),
    "7.1.2 trailer with CR": chunks(b"0\r\nX: a\rb\r\n\r\n"),
    "7.1.2 folded trailer": chunks(b"0\r\nX: a\r\n b\r\n\r\n"),
    "7.1.2 trailer of 20 KiB": chunks(b"0\r\nX: " + b"a" * 20480 + b"\r\n\r\n"),
    "7.1.2 300 trailers": chunks(b"0\r\n" + b"X: a\r\n" * 300 + b"\r\n"),
    "3 two spaces before the target": get(b"GET  /first HTTP/1.1"),
    "3 two spaces behind the target": get(b"GET /first  HTTP/1.1"),
    "3 space behind the version": get(b"GET /first HTTP/1.1 "),
    "3 space before the method": get(b" GET /first HTTP/1.1"),
    "3 tabs": get(b"GET\t/first\tHTTP/1.1"),
    "3 tab before the version": get(b"GET /first\tHTTP/1.1"),
    "3 space in the target": get(b"GET /fir st HTTP/1.1"),
    "3 no target": get(b"GET  HTTP/1.1"),
    "3 no version": get(b"GET /first"),
    "3 HTTP/0.9": b"GET /first\r\n",
    "2.3 HTTP/1.2": get(b"GET /first HTTP/1.2"),
    "2.3 HTTP/2.0": get(b"GET /first HTTP/2.0"),
    "2.3 HTTP/2": get(b"GET /first HTTP/2"),
    "2.3 HTTP/01.1": get(b"GET /first HTTP/01.1"),
    "2.3 HTTP/1.10": get(b"GET /first HTTP/1.10"),
    "2.3 HTTP/1.1x": get(b"GET /first HTTP/1.1x"),
    "2.3 http/1.1": get(b"GET /first http/1.1"),
    "3.1 method with @": get(b"G@T /first HTTP/1.1"),
    "3.2 relative target": get(b"GET first/x HTTP/1.1"),
    "3.2 target of a query": get(b"GET ?first HTTP/1.1"),
    "3.2.2 absolute form without a host": get(b"GET http:///first HTTP/1.1"),
    "9110-4.2.4 userinfo in the target": get(b"GET http://user:secret@x/first HTTP/1.1"),
    "9110-7.4 absolute form with another scheme": get(b"GET ftp://x/first HTTP/1.1"),
    "3.2 target with NUL": get(b"GET /first\0 HTTP/1.1"),
    "3.2 target with a control character": get(b"GET /first\x01 HTTP/1.1"),
    "3.2 target with DEL": get(b"GET /first\x7f HTTP/1.1"),
    "3.2 target that is not UTF-8": get(b"GET /first\xff HTTP/1.1"),
    "9110-9.3.6 CONNECT of a path": get(b"CONNECT /first HTTP/1.1"),
    "3.2 no Host": head(b"GET /first HTTP/1.1", host=b""),
    "3.2 no Host in absolute form": head(b"GET http://x/first HTTP/1.1", host=b""),
    "3.2 two Hosts": hosted(b"x\r\nHost: y"),
    "3.2 two equal Hosts": hosted(b"x\r\nHost: x"),
    "3.2 two Hosts on HTTP/1.0": head(b"GET /first HTTP/1.0", host=b"Host: x\r\nHost: y"),
    "3.2 Host with a space": hosted(b"x y"),
    "3.2 Host with a comma": hosted(b"x, y"),
    "3.2 Host with userinfo": hosted(b"user@x"),
    "3.2 Host with a scheme": hosted(b"http://x"),
    "3.2 Host with a path": hosted(b"x/first"),
    "3.2 Host with a query": hosted(b"x?first"),
    "3.2 Host with a fragment": hosted(b"x#first"),
    "3.2 Host with a backslash": hosted(b"x\\y"),
    "3.2 Host with angle brackets": hosted(b"<x>"),
    "3.2 Host with a port of letters": hosted(b"x:abc"),
    "3.2 Host with a bracket open": hosted(b"[::1"),
    "3.2 Host in UTF-8": hosted("é".encode()),
    "6455-4.1 handshake with content": get(b"GET /first HTTP/1.1", *HANDSHAKE, b"Content-Length: 1000"),
    "6455-4.1 handshake with chunks": get(b"GET /first HTTP/1.1", *HANDSHAKE, CHUNKED) + LAST,
}

# Statuses other than 400 that the RFCs have for some of them.
ALSO: dict[str, tuple[int, ...]] = {
    "6.1": (501,),  # RFC 9112 section 6.1: a coding that the server does not understand
    "6.3": (501,),
    "2.3": (505,),
    "3.1": (501,),
    "9110-7.4": (421,),
    "9110-9.3.6": (405, 501),
}


def cases(table: dict[str, bytes]) -> list[object]:
    """The cases of a table as parameters, each with the statuses that refuse it."""
    found: list[object] = []
    for key, data in table.items():
        section = key.split()[0]
        found.append(pytest.param(data, (400, *ALSO.get(section, ())), id=key))
    return found


def in_pieces(data: bytes, how: str) -> bool:
    """Whether to send byte by byte; what is long would only take long."""
    if how == "bytewise" and len(data) > 3000:
        pytest.skip("too long to be sent byte by byte")
    return how == "bytewise"


@pytest.mark.parametrize("how", ["whole", "bytewise"])
@pytest.mark.parametrize(("data", "statuses"), cases(REFUSED))
def test_what_is_ambiguous_is_refused(target: Target, data: bytes, statuses: tuple[int, ...], how: str) -> None:
    """One answer, then the end; no handler has seen anything of it."""
    bytewise = in_pieces(data, how)
    answered = answers_in(exchange(target.port, data + SMUGGLED, bytewise=bytewise))
    assert target.seen() == []
    assert not target.server.record.calls  # no WebSocket either
    assert len(answered) == 1
    assert answered[0].status in statuses
    assert answered[0].headers["connection"] == "close"


def test_a_smuggled_request_would_be_seen(target: Target) -> None:
    """The test above can fail: what is well-formed does reach the handler."""
    answered = answers_in(exchange(target.port, length(b"5") + SMUGGLED))
    assert [answer.body for answer in answered] == [b"5", b"0"]
    assert [seen.url for seen in target.seen()] == ["/first", "/smuggled"]


# RFC 9112 section 6.1: a request with both may be refused, or served by its Transfer-Encoding alone; either way
# "the server MUST close the connection after responding".

BOTH: dict[str, tuple[bytes, bytes]] = {
    "CL.TE": (post(b"Content-Length: %d" % len(LAST + SMUGGLED), CHUNKED) + LAST, b""),
    "TE.CL": (post(CHUNKED, b"Content-Length: 4") + b"%x\r\n%s\r\n" % (len(SMUGGLED), SMUGGLED) + LAST, SMUGGLED),
    "TE.CL, no length": (post(CHUNKED, b"Content-Length: abc") + LAST, b""),
    "TE.CL, length 0": (post(CHUNKED, b"Content-Length: 0") + LAST, b""),
    "CL.TE, upper case": (post(b"Content-Length: 6", b"TRANSFER-ENCODING: CHUNKED") + LAST, b""),
    "CL.TE, tab": (post(b"Content-Length: 6", b"Transfer-Encoding:\tchunked") + LAST, b""),
    "CL.TE, bare LF": (post(b"Content-Length: 6", b"X: a\nTransfer-Encoding: chunked") + LAST, b""),
    "CL.TE, keep-alive": (post(b"Content-Length: 6", CHUNKED, b"Connection: keep-alive") + LAST, b""),
    "CL.CL.TE": (post(b"Content-Length: 5", b"Content-Length: 5", CHUNKED) + LAST, b""),
    "CL.TE, of no body": (get(b"GET /first HTTP/1.1", b"Content-Length: 6", CHUNKED) + LAST, b""),
}


@pytest.mark.parametrize("how", ["whole", "bytewise"])
@pytest.mark.parametrize(("data", "body"), BOTH.values(), ids=BOTH)
def test_length_and_coding_together_end_the_connection(target: Target, data: bytes, body: bytes, how: str) -> None:
    answered = answers_in(exchange(target.port, data + SMUGGLED, bytewise=in_pieces(data, how)))
    seen = target.seen()
    assert len(answered) == 1
    if answered[0].status == 400:
        assert seen == []
    else:
        assert [(request.url, request.body) for request in seen] == [("/first", body)]
        assert "content-length" not in seen[0].headers  # section 6.3: it is not forwarded either
        assert answered[0].headers["connection"] == "close"


# What is served, with NEXT behind it. Some of it a stricter server would refuse, and may: what matters is that the
# request ends where every reader of the RFC lets it end.

FIRST = ("POST", "/first", b"hello")
EMPTY = ("POST", "/first", b"")
PLAIN = ("GET", "/first", b"")
HELLO = b"5\r\nhello\r\n" + LAST

SERVED: dict[str, tuple[bytes, tuple[str, str, bytes]]] = {
    "9110-5.5 length in white space": (length(b" \t 5 \t "), FIRST),
    "9110-8.6 length with zeros": (length(b"005"), FIRST),
    "6.3 no length": (post(), EMPTY),
    "6.1 CHUNKED": (coding(b"CHUNKED"), EMPTY),
    "6.1 cHuNkEd": (coding(b"cHuNkEd"), EMPTY),
    "6.1 chunked in tabs": (coding(b"\tchunked\t"), EMPTY),
    "6.1 no space behind the colon": (post(b"transfer-encoding:chunked") + LAST, EMPTY),
    "5.1 Transfer_Encoding is another field": (
        post(b"Transfer_Encoding: chunked", b"Content-Length: 5") + LAST,
        ("POST", "/first", LAST),
    ),
    "9110-5.5 bytes above 127 in a value": (get(b"GET /first HTTP/1.1", b"X: a\x80\xff"), PLAIN),
    "7.1 chunks": (chunks(HELLO), FIRST),
    "7.1 chunk size in upper and lower case": (
        chunks(b"A\r\n0123456789\r\na\r\n0123456789\r\n" + LAST),
        ("POST", "/first", b"0123456789" * 2),
    ),
    "7.1 chunk size with zeros": (chunks(b"0" * 30 + HELLO), FIRST),
    "7.1 last chunk of many zeros": (chunks(b"5\r\nhello\r\n0000\r\n\r\n"), FIRST),
    "7.1.1 extensions": (chunks(b'5;a=b;c="d e"\r\nhello\r\n0;f\r\n\r\n'), FIRST),
    "7.1.1 extension in white space": (chunks(b"5 ; a = b\r\nhello\r\n" + LAST), FIRST),
    "2.2 an empty line before": (b"\r\n" + get(), PLAIN),
    "2.3 PATCH of HTTP/1.1": (get(b"PATCH /first HTTP/1.1"), ("PATCH", "/first", b"")),
    "3.1 lower-case method is another one": (get(b"get /first HTTP/1.1"), ("get", "/first", b"")),
    "3.2.2 absolute form": (get(b"GET http://x/first?a HTTP/1.1"), ("GET", "/first?a", b"")),
    "3.2.2 absolute form without a path": (get(b"GET http://x HTTP/1.1"), ("GET", "/", b"")),
    "3.2.1 two slashes are a path": (get(b"GET //x/first HTTP/1.1"), ("GET", "//x/first", b"")),
    "3.2.1 dots are left to the program": (get(b"GET /a/../first HTTP/1.1"), ("GET", "/a/../first", b"")),
    "3.2.1 encoded CRLF is data": (get(b"GET /%0d%0a HTTP/1.1"), ("GET", "/%0d%0a", b"")),
    "3.2.1 encoded NUL is data": (get(b"GET /%00 HTTP/1.1"), ("GET", "/%00", b"")),
    "3.2 Host with a port": (hosted(b"x:80"), PLAIN),
    "3.2 Host with an empty port": (hosted(b"x:"), PLAIN),
    "3.2 Host of IPv6": (hosted(b"[::1]:80"), PLAIN),
    "3.2 empty Host": (hosted(b""), PLAIN),
    "9110-7.8 unknown upgrade": (get(b"GET /first HTTP/1.1", b"Upgrade: x/1", b"Connection: Upgrade"), PLAIN),
    "9113-3.1 upgrade to h2c": (
        get(b"GET /first HTTP/1.1", b"Upgrade: h2c", b"Connection: Upgrade, HTTP2-Settings", b"HTTP2-Settings: AAM"),
        PLAIN,
    ),
    "9110-10.1.1 unknown expectation": (post(b"Expect: smoke", b"Content-Length: 5") + b"hello", FIRST),
}

LENIENT: dict[str, tuple[bytes, tuple[str, str, bytes]]] = {
    "6.3 equal lengths": (length(b"5\r\nContent-Length: 5"), FIRST),
    "6.3 list of equal lengths": (length(b"5, 5"), FIRST),
    "9110-5.6.1 empty list element": (coding(b",chunked"), EMPTY),
    "9110-5.6.1 empty list element at the end": (coding(b"chunked,"), EMPTY),
    # Section 2.2: "a recipient MAY recognize a single LF as a line terminator", in the head alone.
    "2.2 bare LF throughout": (get().replace(b"\r\n", b"\n"), PLAIN),
    "2.2 bare LF between fields": (b"GET /first HTTP/1.1\r\nHost: x\nX: a\r\n\r\n", PLAIN),
    "2.2 bare LF as the empty line": (b"GET /first HTTP/1.1\r\nHost: x\r\n\n", PLAIN),
    "2.2 LF before": (b"\n" + get(), PLAIN),
    "2.2 a hundred empty lines before": (b"\r\n" * 100 + get(), PLAIN),
    "7.1 chunk size before a space": (chunks(b"5 \r\nhello\r\n" + LAST), FIRST),
    "7.1 chunk size with 20,000 zeros": (chunks(b"0" * 20000 + HELLO), FIRST),
    "7.1.1 empty extension": (chunks(b"5;\r\nhello\r\n" + LAST), FIRST),
    "7.1.1 NUL in an extension": (chunks(b"5;a\0\r\nhello\r\n" + LAST), FIRST),
    "7.1.1 extension of 15,000 bytes": (chunks(b"5;" + b"a" * 15000 + b"\r\nhello\r\n" + LAST), FIRST),
    "3.2 fragment in the target": (get(b"GET /first#x HTTP/1.1"), PLAIN),
    "3.2 target in UTF-8": (get("GET /é HTTP/1.1".encode()), ("GET", "/é", b"")),
    "3.2 backslash in the target": (get(b"GET /a\\b HTTP/1.1"), ("GET", "/a\\b", b"")),
    "3.2 bad percent-encoding": (get(b"GET /%zz HTTP/1.1"), ("GET", "/%zz", b"")),
}


@pytest.mark.parametrize("how", ["whole", "bytewise"])
@pytest.mark.parametrize(("data", "expected"), SERVED.values(), ids=SERVED)
def test_what_is_well_formed_is_served(target: Target, data: bytes, expected: tuple[str, str, bytes], how: str) -> None:
    answered = answers_in(exchange(target.port, data + NEXT, bytewise=in_pieces(data, how)))
    assert [seen.brief for seen in target.seen()] == [expected, ("GET", "/next", b"")]
    assert [answer.status for answer in answered] == [200, 200]


@pytest.mark.parametrize("how", ["whole", "bytewise"])
@pytest.mark.parametrize(("data", "expected"), LENIENT.values(), ids=LENIENT)
def test_what_may_be_refused_is_refused_or_ends_where_it_should(
    target: Target, data: bytes, expected: tuple[str, str, bytes], how: str
) -> None:
    answered = answers_in(exchange(target.port, data + NEXT, bytewise=in_pieces(data, how)))
    seen = [request.brief for request in target.seen()]
    if len(answered) == 1:
        assert answered[0].status in (400, 501)
        assert seen == []
    else:
        assert seen == [expected, ("GET", "/next", b"")]


@pytest.mark.parametrize(("number", "statuses"), [(2**63 - 1, (413,)), (2**63, (413,)), (2**64 - 1, (400, 413, 431))])
def test_a_length_beyond_all_limits_is_refused(target: Target, number: int, statuses: tuple[int, ...]) -> None:
    (answer,) = answers_in(exchange(target.port, length(b"%d" % number) + SMUGGLED))
    assert answer.status in statuses
    assert target.seen() == []


@pytest.mark.parametrize("size", [b"7fffffffffffffff", b"fffffffffffffffe", b"ffffffffffffffff"])
def test_a_chunk_size_beyond_all_limits_frames_nothing(target: Target, size: bytes) -> None:
    """It is no overflow: what follows is data, until the client's end makes it an incomplete request."""
    answered = answers_in(exchange(target.port, chunks(size + b"\r\n") + SMUGGLED))
    assert [answer.status for answer in answered] in ([], [400], [413])
    assert target.seen() == []


@pytest.mark.parametrize(
    "data",
    [
        length(b"6"),
        chunks(b"5\r\nhel"),
        chunks(b"5\r\nhello\r\n"),
        chunks(b"5\r\nhello\r\n0\r\n"),
        chunks(b"5\r\nhello\r\n0\r\nX: a\r\n"),
        get()[:-2],
        get()[:-1],
        b"GET /fir",
    ],
)
def test_a_request_that_breaks_off_is_not_served(target: Target, data: bytes) -> None:
    """RFC 9112 section 8: an incomplete request is no request."""
    answered = answers_in(exchange(target.port, data))
    assert [answer.status for answer in answered] in ([], [400])
    assert target.seen() == []


@pytest.mark.parametrize("end", [b"0\r\n\n", b"0\r\nX: a\n\r\n"], ids=["no trailer", "a trailer"])
def test_a_body_that_a_bare_lf_may_end_ends_the_connection(target: Target, end: bytes) -> None:
    """RFC 9112 section 7.1 has CRLF there: who takes LF for it sees a request where another reader sees trailers."""
    (answer,) = answers_in(exchange(target.port, chunks(b"5\r\nhello\r\n" + end) + SMUGGLED + NEXT))
    assert [request.url for request in target.seen()] in ([], ["/first"])
    assert answer.headers["connection"] == "close"


def test_trailers_become_no_headers(target: Target) -> None:
    """RFC 9110 section 6.5.1: framing, routing and the rest of those fields have no effect in a trailer."""
    fields = b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\nHost: evil\r\nCookie: evil\r\nX-Trailer: evil\r\n"
    data = post(CHUNKED, b"Trailer: X-Trailer") + b"5\r\nhello\r\n0\r\n" + fields + b"\r\n"
    exchange(target.port, data + NEXT)
    first, *others = target.seen()
    assert first.brief == FIRST
    assert "evil" not in str(first.headers)
    assert [seen.url for seen in others] in ([], ["/next"])  # it may end the connection


TARGETS: dict[str, bytes] = {
    "3.2.3 authority form with GET": b"GET x:80 HTTP/1.1",
    "3.2.3 authority form without a port": b"GET x HTTP/1.1",
    "3.2.4 asterisk form with GET": b"GET * HTTP/1.1",
    "9110-9.3.6 CONNECT": b"CONNECT x:80 HTTP/1.1",
    "9113-3.4 half a preface of HTTP/2": b"PRI * HTTP/2.0",
}


@pytest.mark.parametrize("line", TARGETS.values(), ids=TARGETS)
def test_a_target_that_is_no_path_has_no_handler(target: Target, line: bytes) -> None:
    answered = answers_in(exchange(target.port, get(line)))
    assert target.seen() == []
    assert [answer.status in (400, 404, 405, 501, 505) for answer in answered] == [True]


def test_options_for_the_whole_server(target: Target) -> None:
    """RFC 9110 section 9.3.7."""
    answered = answers_in(exchange(target.port, get(b"OPTIONS * HTTP/1.1")))
    assert [answer.status in (200, 204) for answer in answered] == [True]
    assert target.seen() == []


def test_the_host_of_an_absolute_target_replaces_the_field(target: Target) -> None:
    """RFC 9112 section 3.2.2: "an origin server MUST ignore the received Host header field (if any)"."""
    exchange(target.port, get(b"GET http://other:81/first HTTP/1.1"))
    assert [seen.headers["host"] for seen in target.seen()] == ["other:81"]


def test_an_absolute_target_with_a_query_alone_has_the_root_as_its_path(target: Target) -> None:
    """RFC 9110 section 4.2.3: an empty path is "/"."""
    exchange(target.port, get(b"GET http://x?a HTTP/1.1"))
    assert [seen.url for seen in target.seen()] == ["/?a"]


def test_http_2_on_the_plain_port_is_refused(target: Target) -> None:
    """RFC 9113 section 3.4: the preface is made to be refused by a server of HTTP/1.1."""
    data = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
    answered = answers_in(exchange(target.port, data + SMUGGLED))
    assert [answer.status for answer in answered] in ([], [400], [505])
    assert target.seen() == []


def test_empty_lines_without_end_are_refused(target: Target) -> None:
    answered = answers_in(exchange(target.port, b"\r\n" * 100_000))
    assert [answer.status for answer in answered] in ([400], [431])
    assert target.seen() == []


@pytest.mark.parametrize("version", [b"HTTP/1.0", b"HTTP/1.1"])
def test_http_1_0_ends_and_http_1_1_keeps_the_connection(target: Target, version: bytes) -> None:
    """RFC 9112 section 9.3; HTTP/1.0 needs no Host (section 3.2)."""
    host = b"Host: x" if version == b"HTTP/1.1" else b""
    answered = answers_in(exchange(target.port, head(b"GET /first " + version, host=host) + NEXT))
    assert [seen.url for seen in target.seen()] == ["/first", "/next"][: len(answered)]
    assert len(answered) == (2 if version == b"HTTP/1.1" else 1)


@pytest.mark.parametrize("status", [426, 400, 405])
def test_the_content_of_a_handshake_that_is_refused_is_no_request(target: Target, status: int) -> None:
    """An intermediary that takes any answer for a tunnel would let the client's content through as requests."""
    fields, line = list(HANDSHAKE), b"GET /first HTTP/1.1"
    if status == 426:
        fields[3] = b"Sec-WebSocket-Version: 777"
    elif status == 400:
        del fields[2]
    else:
        line = b"POST /first HTTP/1.1"
    answered = answers_in(exchange(target.port, get(line, *fields) + SMUGGLED))
    assert [answer.status for answer in answered] == [status]
    assert target.seen() == []
    assert not target.server.record.calls


def test_requests_behind_an_upgrade_are_frames(target: Target) -> None:
    data = get(b"GET /first HTTP/1.1", *HANDSHAKE) + build_frame(1, SMUGGLED) + SMUGGLED
    received = exchange(target.port, data)
    assert received.startswith(b"HTTP/1.1 101 ")
    assert target.seen() == []
    assert target.server.record.values("message") == [SMUGGLED.decode()]
