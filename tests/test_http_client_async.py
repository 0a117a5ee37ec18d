"""HttpClient: requests whose callbacks run on the thread that ticks."""

from __future__ import annotations

import gc
import logging
import os
import select
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import pyhv
from pyhv import HttpCall, HttpClient, HvWebServer, Response, ServerSentEvent
from support import HOST, Background, port_of, serving, sockets_and_wakes, thread_names, tick_until, wait_until
from support_http_client import Peer, Site, answering, proxy, site
from support_tls import Certificates, SecureServer, make_certificates, tls_port_of

OK = "HTTP/1.1 200 OK\r\n"


@pytest.fixture(scope="module")
def web() -> Iterator[Site]:
    with site() as running:
        yield running


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("tls") / "c")


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Recording(HttpClient):
    """Keeps what went wrong."""

    def __init__(self, **options: Any) -> None:
        self.errors: list[Exception] = []
        super().__init__(**options)

    def on_error(self, exc: Exception) -> None:
        self.errors.append(exc)


@pytest.fixture
def client() -> Iterator[Recording]:
    with Recording() as made:
        yield made


def finish(client: HttpClient, *calls: HttpCall) -> None:
    tick_until(lambda: all(call.is_done for call in calls), client, what="the requests end")


def answer_to(client: HttpClient, call: HttpCall) -> Response:
    finish(client, call)
    assert call.response is not None, call.error
    return call.response


@pytest.mark.parametrize("method", ["get", "post", "put", "patch", "delete", "options", "head"])
def test_every_method(web: Site, client: Recording, method: str) -> None:
    got: list[Response] = []
    call = getattr(client, method)(web.url("/echo"), got.append)
    assert not call.is_done and client.pending == 1
    finish(client, call)
    assert [response.status for response in got] == [200]
    assert call.response is got[0] and call.error is None
    assert web.requests[-1][0] == method.upper()
    assert client.pending == 0 and client.errors == []


def test_callbacks_run_in_tick_on_its_thread(web: Site, client: Recording) -> None:
    threads: list[int] = []
    call = client.get(
        web.url("/bytes/100000"),
        lambda response: threads.append(threading.get_ident()),
        on_chunk=lambda data: threads.append(threading.get_ident()),
    )
    # Whatever happens, nothing runs without a tick.
    wait_until(lambda: select.select([client], [], [], 0)[0], what="the descriptor is readable")
    assert threads == [] and not call.is_done
    Background(lambda: finish(client, call)).result()
    assert len(set(threads)) == 1 and threads[0] != threading.get_ident()


def test_the_same_arguments_as_the_functions(web: Site, client: Recording, tmp_path: Path) -> None:
    call = client.post(web.url("/echo"), json={"a": 1}, params={"q": "x"}, headers={"X-A": "b"}, bearer="t")
    echoed = answer_to(client, call).json()
    assert (echoed["target"], echoed["headers"]["x-a"]) == ("/echo?q=x", "b")
    assert echoed["headers"]["authorization"] == "Bearer t"
    path = tmp_path / "f"
    path.write_bytes(b"content")
    call = client.post(web.url("/form"), form={"a": "b"}, files={"f": path})
    assert [field[0] for field in answer_to(client, call).json()["fields"]] == ["a", "f"]


def test_what_all_requests_have(web: Site) -> None:
    with Recording(headers={"X-A": "base", "X-B": "base"}, auth=("ann", "secret"), redirects=False) as client:
        call = client.get(web.url("/echo"), headers={"x-a": "own"})
        headers = answer_to(client, call).json()["headers"]
        assert (headers["x-a"], headers["x-b"]) == ("own", "base")
        assert headers["authorization"].startswith("Basic ")
        other = answer_to(client, client.get(web.url("/echo"), bearer="t")).json()["headers"]
        assert other["authorization"] == "Bearer t"
        own = answer_to(client, client.get(web.url("/echo"), headers={"Authorization": "x"})).json()["headers"]
        assert own["authorization"] == "x"
        assert answer_to(client, client.get(web.url("/redirect/2"))).status == 302
        assert answer_to(client, client.get(web.url("/redirect/2"), redirects=True)).status == 200


def test_requests_run_beside_each_other(web: Site, client: Recording) -> None:
    web.go.clear()
    slow = client.get(web.url("/wait"))
    quick = [client.get(web.url(f"/bytes/{n}")) for n in range(100)]
    finish(client, *quick)
    assert [len(call.response.body) for call in quick if call.response] == list(range(100))
    assert len({call.id for call in [slow, *quick]}) == 101
    assert not slow.is_done
    web.go.set()
    assert answer_to(client, slow).text() == "at last"


def test_redirects_belong_to_their_request(web: Site, client: Recording) -> None:
    calls = [client.get(web.url(f"/redirect/{n}"), redirects=5) for n in range(1, 9)]
    finish(client, *calls)
    for n, call in enumerate(calls, 1):
        if n <= 5:
            assert call.response is not None
            assert call.response.history == [web.url(f"/redirect/{k}") for k in range(n, 0, -1)]
        else:
            assert isinstance(call.error, pyhv.TooManyRedirects)


def test_cookies_are_kept(web: Site, client: Recording) -> None:
    answer_to(client, client.get(web.url("/cookies?a=1&b=2")))
    assert answer_to(client, client.get(web.url("/cookies"))).json() == {"a": "1", "b": "2"}
    merged = answer_to(client, client.get(web.url("/cookies"), cookies={"b": "own", "c": "3"})).json()
    assert merged == {"a": "1", "b": "own", "c": "3"}
    assert answer_to(client, client.get(web.url("/cookies"))).json() == {"a": "1", "b": "2"}
    other = web.url("/cookies").replace(HOST, "localhost")
    assert answer_to(client, client.get(other)).json() == {}
    with Recording(keep_cookies=False) as forgetful:
        answer_to(forgetful, forgetful.get(web.url("/cookies?a=1")))
        assert answer_to(forgetful, forgetful.get(web.url("/cookies"))).json() == {}


def test_connections_are_kept() -> None:
    def answer(peer: Peer) -> None:
        peer.send(OK + "Content-Length: 2\r\n\r\nok")
        while peer.read_request():
            peer.send(OK + "Content-Length: 2\r\n\r\nok")

    with answering(answer) as server, Recording() as client:
        for _ in range(5):
            assert answer_to(client, client.get(server.url)).text() == "ok"
        assert server.connections == 1


def test_http_2_with_our_own_server(certificates: Certificates) -> None:
    server = SecureServer()
    with serving(server, **certificates.settings), Recording(ca_file=certificates.ca) as client:
        url = f"https://{HOST}:{tls_port_of(server)}"
        calls = [client.get(f"{url}/number/{n}") for n in range(50)]
        finish(client, *calls)
        assert [call.response.text() for call in calls if call.response] == [str(n) for n in range(50)]
        assert {call.response.http_version for call in calls if call.response} == {"2"}


def test_a_server_that_the_same_thread_ticks(client: Recording) -> None:
    server = HvWebServer()
    server.get("/ping", lambda req, resp: resp.text("pong"))
    with server:
        server.start(0)
        call = client.get(f"http://{HOST}:{port_of(server)}/ping")
        tick_until(lambda: call.is_done, client, server)
        assert call.response is not None and call.response.text() == "pong"


# Errors


def test_a_failure_comes_to_the_requests_own_on_error(web: Site, client: Recording) -> None:
    got: list[Response] = []
    failed: list[Exception] = []
    web.go.clear()
    call = client.get(web.url("/wait"), got.append, on_error=failed.append, timeout=0.1)
    finish(client, call)
    assert [type(error) for error in failed] == [pyhv.HttpTimeout]
    assert call.error is failed[0] and call.response is None
    assert got == [] and client.errors == []
    web.go.set()


def test_or_else_to_the_clients(web: Site, client: Recording, caplog: pytest.LogCaptureFixture) -> None:
    call = client.get("http://nosuch.invalid/")
    finish(client, call)
    assert client.errors == [call.error]
    assert isinstance(call.error, pyhv.NameResolutionError)
    assert "nosuch.invalid" in caplog.text


class Stop(Exception):  # noqa: N818
    pass


def raising(error: BaseException) -> Callable[[Any], None]:
    def callback(value: Any) -> None:
        raise error

    return callback


def test_on_response_raises(web: Site, client: Recording, caplog: pytest.LogCaptureFixture) -> None:
    error = Stop()
    calls = [client.get(web.url("/bytes/1"), raising(error)), client.get(web.url("/bytes/1"))]
    finish(client, *calls)
    assert client.errors == [error]
    assert "on_response of a request raised" in caplog.text
    assert all(call.response is not None for call in calls)


def test_on_error_raises(client: Recording, caplog: pytest.LogCaptureFixture) -> None:
    error = Stop()
    finish(client, client.get("http://nosuch.invalid/", on_error=raising(error)))
    assert client.errors == [error]
    assert "on_error of a request raised" in caplog.text


def test_the_clients_on_error_raises(client: Recording, caplog: pytest.LogCaptureFixture) -> None:
    client.on_error = raising(Stop("in on_error"))  # type: ignore[assignment,method-assign]
    finish(client, client.get("http://nosuch.invalid/"))
    assert "in on_error" in caplog.text


def test_on_chunk_raises(web: Site, client: Recording) -> None:
    error = Stop()
    after: list[Any] = []
    before = web.cancelled
    call = client.get(web.url("/endless"), after.append, on_chunk=raising(error), on_error=after.append)
    finish(client, call)
    assert client.errors == [error]
    wait_until(lambda: web.cancelled > before, what="the server sees the end of the connection")
    client.tick(0.05)
    assert after == [] and len(client.errors) == 1


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit])
def test_what_leaves_the_tick(web: Site, client: Recording, kind: type[BaseException]) -> None:
    first = client.get(web.url("/bytes/1"), raising(kind()))
    with pytest.raises(kind):
        tick_until(lambda: False, client)
    assert first.is_done and client.errors == []
    assert answer_to(client, client.get(web.url("/bytes/1"))).status == 200


def test_bad_arguments_raise_at_the_call(client: Recording) -> None:
    with pytest.raises(ValueError, match="not an HTTP URL"):
        client.get("nowhere")
    with pytest.raises(ValueError, match="timeout=-1"):
        client.get("http://a.test/", timeout=-1)
    with pytest.raises(ValueError, match="exclude"):
        client.get("http://a.test/", on_chunk=print, on_event=print)
    with pytest.raises(ValueError, match="max_event_size=0"):
        client.get("http://a.test/", on_event=print, max_event_size=0)
    with pytest.raises(TypeError, match="no_such"):
        client.get("http://a.test/", no_such=1)  # type: ignore[call-arg]
    assert client.pending == 0
    bad: list[dict[str, Any]] = [{"timeout": "x"}, {"redirects": -1}, {"headers": {"Connection": "x"}}, {"no_such": 1}]
    for options in bad:
        with pytest.raises((TypeError, ValueError)):
            HttpClient(**options)
    with pytest.raises(ValueError, match="max_pending_bytes=0"):
        HttpClient(max_pending_bytes=0)
    with pytest.raises(ValueError, match="proxy="):
        HttpClient(proxy="::")


# Cancelling and closing


def test_cancel(web: Site, client: Recording) -> None:
    after: list[Any] = []
    web.go.clear()
    before = web.cancelled
    seen = len(web.requests)
    call = client.get(web.url("/wait"), after.append, on_error=after.append)
    wait_until(lambda: len(web.requests) > seen)
    assert call.cancel() is True
    assert call.is_done and client.pending == 0
    assert call.cancel() is False
    wait_until(lambda: web.cancelled > before, what="the server sees the end of the connection")
    web.go.set()
    client.tick(0.05)
    assert after == [] and client.errors == []


def test_cancel_what_has_come_already(web: Site, client: Recording) -> None:
    after: list[Any] = []
    call = client.get(web.url("/bytes/1"), after.append, on_error=after.append)
    wait_until(lambda: select.select([client], [], [], 0)[0], what="the response waits for a tick")
    assert call.cancel() is True
    client.tick()
    assert after == []


def test_cancel_within_a_callback(web: Site, client: Recording) -> None:
    pieces: list[bytes] = []

    def on_chunk(data: bytes) -> None:
        pieces.append(data)
        assert call.cancel()

    call = client.get(web.url("/endless"), on_chunk=on_chunk)
    finish(client, call)
    client.tick(0.05)
    assert len(pieces) == 1 and client.errors == []


def test_cancel_on_another_thread_ends_the_wait(web: Site, client: Recording) -> None:
    web.go.clear()
    call = client.get(web.url("/wait"))
    ticking = Background(lambda: client.tick(None))
    assert not ticking.done()
    call.cancel()
    ticking.result()
    web.go.set()


def test_close(web: Site) -> None:
    before = sockets_and_wakes()
    web.go.clear()
    client = Recording()
    after: list[Any] = []
    calls = [client.get(web.url("/wait"), after.append, on_error=after.append) for _ in range(3)]
    calls.append(client.get(web.url("/bytes/1"), after.append))
    client.fileno()
    wait_until(lambda: sockets_and_wakes() > before + 1)
    client.close()
    client.close()
    assert client.is_closed and client.pending == 0
    assert all(call.is_done for call in calls)
    assert client.tick() == 0 and client.tick(None) == 0
    assert after == [] and calls[0].cancel() is False
    with pytest.raises(RuntimeError, match="closed"):
        client.get(web.url("/bytes/1"))
    with pytest.raises(RuntimeError, match="closed"):
        client.fileno()
    web.go.set()
    wait_until(lambda: sockets_and_wakes() <= before, what="every descriptor is closed")


def test_close_within_a_callback(web: Site) -> None:
    client = Recording()
    got: list[Response] = []

    def on_response(response: Response) -> None:
        got.append(response)
        client.close()

    calls = [client.get(web.url("/bytes/1"), on_response) for _ in range(5)]
    tick_until(lambda: client.is_closed, client)
    assert len(got) == 1 and all(call.is_done for call in calls)


def test_nothing_is_left_when_it_is_dropped(web: Site) -> None:
    web.go.clear()
    wait_until(lambda: not [n for n in thread_names() if n.startswith("tokio")], what="tokio's helpers have gone")
    before = sockets_and_wakes()
    threads = thread_names()
    for _ in range(10):
        client = HttpClient()
        calls = [client.get(web.url(path)) for path in ("/wait", "/bytes/1", "/endless")]
        finish(client, calls[1])
        gone = weakref.ref(client)
        del client, calls
        gc.collect()
        assert gone() is None, "requests under way keep no client alive"
    wait_until(lambda: sockets_and_wakes() <= before, what="every descriptor is closed")
    assert thread_names() == threads
    web.go.set()


# The tick


def test_an_idle_client_does_not_wait(client: Recording) -> None:
    assert client.tick(None) == 0


def test_tick_waits_for_what_comes(web: Site, client: Recording) -> None:
    call = client.get(web.url("/bytes/1"))
    while not call.is_done:
        client.tick(None)
    assert call.response is not None


def test_no_tick_within_a_callback(web: Site, client: Recording) -> None:
    call = client.get(web.url("/bytes/1"), lambda response: client.tick())
    finish(client, call)
    assert isinstance(client.errors[0], RuntimeError) and "inside a callback" in str(client.errors[0])


def test_a_request_within_a_callback(web: Site, client: Recording) -> None:
    got: list[int] = []

    def again(response: Response) -> None:
        got.append(len(response.body))
        if len(got) < 5:
            client.get(web.url(f"/bytes/{len(got)}"), again)

    client.get(web.url("/bytes/0"), again)
    tick_until(lambda: len(got) == 5, client)
    assert got == [0, 1, 2, 3, 4]


def test_one_thread_ticks(web: Site, client: Recording) -> None:
    entered, leave = threading.Event(), threading.Event()

    def on_response(response: Response) -> None:
        entered.set()
        leave.wait(20)

    call = client.get(web.url("/bytes/1"), on_response)
    ticking = Background(lambda: finish(client, call))
    assert entered.wait(20)
    with pytest.raises(RuntimeError, match="one thread ticks at a time"):
        client.tick()
    leave.set()
    ticking.result()


def test_requests_from_many_threads(web: Site, client: Recording) -> None:
    got: list[int] = []

    def count(response: Response) -> None:
        got.append(len(response.body))

    def start(size: int) -> None:
        for _ in range(20):
            client.get(web.url(f"/bytes/{size}"), count)

    starters = [Background(partial(start, n)) for n in range(8)]
    tick_until(lambda: len(got) == 160, client)
    for starter in starters:
        starter.result()
    assert sorted(got) == sorted(list(range(8)) * 20)
    assert client.pending == 0 and client._calls == {}


# In pieces


def test_chunks_come_before_the_response(web: Site, client: Recording) -> None:
    order: list[Any] = []
    call = client.get(web.url("/bytes/300000"), order.append, on_chunk=order.append)
    response = answer_to(client, call)
    assert order[-1] is response and response.body == b""
    assert b"".join(order[:-1]) == b"x" * 300_000


def test_text_chunks(client: Recording) -> None:
    def answer(peer: Peer) -> None:
        peer.send(OK + "Content-Type: text/plain; charset=utf-8\r\n\r\n")
        for byte in "aü🦀".encode() + b"\xe6":
            peer.send(bytes([byte]))

    pieces: list[str] = []
    with answering(answer) as server:
        answer_to(client, client.get(server.url, on_chunk=pieces.append, text_chunks=True))
    assert "".join(pieces) == "aü🦀\ufffd"


def test_a_client_that_does_not_tick_reads_no_more(web: Site) -> None:
    with Recording(max_pending_bytes=1 << 20) as client:
        before = web.written
        got: list[bytes] = []
        call = client.get(web.url("/endless"), on_chunk=got.append, timeout=None)
        level = -1

        def stands_still() -> bool:
            nonlocal level
            last, level = level, web.written
            time.sleep(0.1)
            return level > before and last == level

        wait_until(stands_still, what="the server cannot write any more")
        assert level - before < 32 << 20, "kernel buffers and a mebibyte of ours"
        client.tick()
        # What each chunk's event counts besides its bytes is in the limit: a chunk less than the limit, at least.
        assert 1 << 19 <= sum(map(len, got)) < 4 << 20
        tick_until(lambda: web.written > level, client, what="it goes on")
        call.cancel()


def test_the_largest_response(web: Site, client: Recording) -> None:
    call = client.get(web.url("/bomb/50"), max_response_size=1000)
    finish(client, call)
    assert isinstance(call.error, pyhv.BodyTooLarge)
    assert "max_response_size=1000" in str(call.error)


# Server-sent events without connecting again

STREAM = OK + "Content-Type: text/event-stream; charset=utf-8\r\nConnection: close\r\n\r\n"


def test_events(client: Recording) -> None:
    order: list[Any] = []
    with answering((STREAM + "data: a\n\nevent: add\nid: 7\ndata: b\ndata: ü\n\ndata: lost").encode()) as server:
        response = answer_to(client, client.get(server.url, order.append, on_event=order.append))
    assert order == [ServerSentEvent("a"), ServerSentEvent("b\nü", "add", "7"), response]
    assert response.body == b""


def test_what_is_no_event_stream(web: Site, client: Recording) -> None:
    events: list[ServerSentEvent] = []
    assert answer_to(client, client.get(web.url("/status/404"), on_event=events.append)).text() == "this is 404"
    call = client.get(web.url("/bytes/1001"), on_event=events.append, max_response_size=1000)
    finish(client, call)
    assert isinstance(call.error, pyhv.BodyTooLarge)
    assert events == []


def test_a_stream_outlives_the_timeout(client: Recording) -> None:
    def answer(peer: Peer) -> None:
        if "/silent" not in peer.line:
            peer.send(STREAM + "data: a\n\n")
            server.over.wait(0.4)
            peer.send("data: b\n\n")
        else:
            server.over.wait(20)

    events: list[ServerSentEvent] = []
    with answering(answer) as server:
        answer_to(client, client.get(server.url, on_event=events.append, timeout=0.2))
        assert [event.data for event in events] == ["a", "b"]
        silent = client.get(server.url + "silent", on_event=events.append, timeout=0.2)
        finish(client, silent)
        assert isinstance(silent.error, pyhv.HttpTimeout)


def test_an_event_beyond_the_limit(client: Recording) -> None:
    with answering(STREAM + "data: a\n\ndata: " + "x" * 100_000) as server:
        events: list[ServerSentEvent] = []
        call = client.get(server.url, on_event=events.append, max_event_size=1000)
        finish(client, call)
    assert [event.data for event in events] == ["a"]
    assert isinstance(call.error, pyhv.BodyTooLarge) and "max_event_size=1000" in str(call.error)


def test_a_long_id_is_not_held_once_for_each_event() -> None:
    def answer(peer: Peer) -> None:
        peer.send(STREAM + "id: " + "x" * 100_000 + "\n" + "data\n\n" * 100_000)
        server.over.wait(20)

    with answering(answer) as server, Recording(max_pending_bytes=1 << 20) as client:
        lengths: list[int] = []
        call = client.get(server.url, on_event=lambda event: lengths.append(len(event.id)), timeout=None)
        wait_until(lambda: select.select([client], [], [], 0)[0])
        ticks = 0
        while len(lengths) < 200:
            before = len(lengths)
            client.tick(1)
            assert len(lengths) - before <= 12, "a tick's events, with their IDs, are within max_pending_bytes"
            ticks += 1
        assert ticks > 10
        call.cancel()


# Proxies and TLS are the client's


def test_a_proxy_of_the_client(web: Site) -> None:
    with proxy() as running, Recording(proxy=running.url) as client:
        assert answer_to(client, client.get(web.url("/echo"))).json()["headers"]["via"] == "1.1 test"


def test_https_of_the_client(certificates: Certificates) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificates.cert, certificates.key)
    with site(context) as running:
        with Recording(fingerprint=certificates.fingerprint) as client:
            assert answer_to(client, client.get(running.url("/bytes/1"))).ok
        with Recording() as client:
            call = client.get(running.url("/bytes/1"))
            finish(client, call)
            assert isinstance(call.error, pyhv.TlsError)


def test_the_log_names_no_password(client: Recording, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    finish(client, client.get("http://ann:secret@nosuch.invalid/"))
    assert "nosuch.invalid" in caplog.text
    assert "secret" not in caplog.text + repr(client.errors)


assert os.name == "posix", "these tests look into /proc"
