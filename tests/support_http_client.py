"""What the tests of the HTTP client share: a site by aiohttp, a server that answers what a test says, a proxy."""

from __future__ import annotations

import asyncio
import base64
import gzip
import select
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from aiohttp import web

from support import HOST, LIMIT

#: "hello" in Brotli: one uncompressed meta-block (RFC 7932 section 9.2).
BROTLI_HELLO = bytes.fromhex("0b028068656c6c6f03")
#: "hello" as a Zstandard frame of one raw block (RFC 8878 section 3.1.1).
ZSTD_HELLO = bytes.fromhex("28b52ffd2005290000") + b"hello"
#: A mebibyte of zeros, compressed; the site sends it as often as it is asked to.
MEBIBYTE = 1 << 20


class Site:
    """A site that aiohttp serves on a thread of its own."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        #: Of every request that came: method, path with query, headers.
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        #: /wait answers when it is set.
        self.go = threading.Event()
        #: Bytes that /endless has written.
        self.written = 0
        #: Requests that ended because the client went away.
        self.cancelled = 0
        self._context = context
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),), daemon=True)
        self._thread.start()
        assert self._ready.wait(LIMIT), "the site does not start"

    @property
    def base(self) -> str:
        return f"{'https' if self._context else 'http'}://{HOST}:{self.port}"

    def url(self, path: str) -> str:
        return self.base + path

    def stop(self) -> None:
        self.go.set()
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(LIMIT)
        assert not self._thread.is_alive(), "the site does not stop"
        self._loop.close()

    async def _run(self) -> None:
        app = web.Application(middlewares=[self._note], client_max_size=1 << 30)
        app.router.add_route("*", "/echo", self._echo)
        app.router.add_post("/form", self._form)
        app.router.add_get("/status/{status}", self._status)
        app.router.add_route("*", "/redirect/{left}", self._redirect)
        app.router.add_route("*", "/to", self._to)
        app.router.add_get("/bytes/{size}", self._bytes)
        app.router.add_get("/encoded/{encoding}", self._encoded)
        app.router.add_get("/bomb/{mebibytes}", self._bomb)
        app.router.add_get("/charset/{charset}", self._charset)
        app.router.add_get("/cookies", self._cookies)
        app.router.add_get("/wait", self._wait)
        app.router.add_get("/endless", self._endless)
        runner = web.AppRunner(app, handler_cancellation=True, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        listener = socket.create_server((HOST, 0))
        self.port: int = listener.getsockname()[1]
        await web.SockSite(runner, listener, ssl_context=self._context).start()
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    @web.middleware
    async def _note(self, request: web.Request, handler: Callable[..., Any]) -> web.StreamResponse:
        self.requests.append((request.method, request.path_qs, dict(request.headers)))
        try:
            answer: web.StreamResponse = await handler(request)
            return answer
        except (asyncio.CancelledError, ConnectionError):
            self.cancelled += 1
            raise

    async def _echo(self, request: web.Request) -> web.Response:
        body = await request.read()
        return web.json_response(
            {
                "method": request.method,
                "target": request.raw_path,
                "headers": {name.lower(): value for name, value in request.headers.items()},
                "body": base64.b64encode(body).decode(),
            }
        )

    async def _form(self, request: web.Request) -> web.Response:
        fields: list[list[Any]] = []
        for name, value in (await request.post()).items():
            if isinstance(value, web.FileField):
                content = base64.b64encode(value.file.read()).decode()
                fields.append([name, value.filename, value.content_type, content])
            else:
                fields.append([name, None, None, value])
        return web.json_response({"fields": fields, "length": request.headers.get("Content-Length")})

    async def _status(self, request: web.Request) -> web.Response:
        return web.Response(status=int(request.match_info["status"]), text=f"this is {request.match_info['status']}")

    async def _redirect(self, request: web.Request) -> web.Response:
        left = int(request.match_info["left"])
        location = f"/redirect/{left - 1}" if left > 1 else "/echo"
        return web.Response(status=302, headers={"Location": location, "Set-Cookie": f"step{left}=yes; Path=/"})

    async def _to(self, request: web.Request) -> web.Response:
        status = int(request.query.get("status", "302"))
        return web.Response(status=status, headers={"Location": request.query["url"]})

    async def _bytes(self, request: web.Request) -> web.Response:
        return web.Response(body=b"x" * int(request.match_info["size"]))

    async def _encoded(self, request: web.Request) -> web.Response:
        encoding = request.match_info["encoding"]
        body = {"gzip": gzip.compress(b"hello"), "br": BROTLI_HELLO, "zstd": ZSTD_HELLO}[encoding]
        return web.Response(body=body, headers={"Content-Encoding": encoding, "Content-Type": "text/plain"})

    async def _bomb(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse(headers={"Content-Encoding": "gzip"})
        await answer.prepare(request)
        # Members of a gzip stream may follow one another; one alone holds it all, so that every decoder reads it.
        squeezed = await asyncio.to_thread(gzip.compress, bytes(MEBIBYTE * int(request.match_info["mebibytes"])))
        await answer.write(squeezed)
        return answer

    async def _charset(self, request: web.Request) -> web.Response:
        charset = request.match_info["charset"]
        text = request.query.get("text", "grün")
        try:
            body = text.encode(charset)
        except LookupError:
            body = text.encode()
        return web.Response(body=body, headers={"Content-Type": f'text/plain; charset="{charset}"'})

    async def _cookies(self, request: web.Request) -> web.Response:
        answer = web.json_response(dict(request.cookies))
        for name, value in request.query.items():
            answer.set_cookie(name, value)
        return answer

    async def _wait(self, request: web.Request) -> web.Response:
        while not self.go.is_set():
            await asyncio.sleep(0.005)
        return web.Response(text="at last")

    async def _endless(self, request: web.Request) -> web.StreamResponse:
        answer = web.StreamResponse()
        await answer.prepare(request)
        while True:
            await answer.write(b"y" * (64 << 10))
            self.written += 64 << 10


@contextmanager
def site(context: ssl.SSLContext | None = None) -> Iterator[Site]:
    running = Site(context)
    try:
        yield running
    finally:
        running.stop()


class Peer:
    """One connection to an `Answering` server."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(LIMIT)
        #: Of the last request: its first line, and headers with names in lower case.
        self.line = ""
        self.headers: dict[str, str] = {}
        self._rest = b""

    def read_request(self) -> bool:
        """Reads a head; False at the end of the connection."""
        while b"\r\n\r\n" not in self._rest:
            data = self.socket.recv(1 << 16)
            if not data:
                return False
            self._rest += data
        head, self._rest = self._rest.split(b"\r\n\r\n", 1)
        self.line, *lines = head.decode("latin-1").split("\r\n")
        pairs = (line.split(":", 1) for line in lines)
        self.headers = {name.lower(): value.strip() for name, value in pairs}
        return True

    def read_body(self) -> bytes:
        """As long as Content-Length says."""
        length = int(self.headers["content-length"])
        while len(self._rest) < length:
            data = self.socket.recv(1 << 20)
            assert data, "the connection ended within the body"
            self._rest += data
        body, self._rest = self._rest[:length], self._rest[length:]
        return body

    def send(self, data: bytes | str) -> None:
        self.socket.sendall(data.encode("latin-1") if isinstance(data, str) else data)

    def reset(self) -> None:
        """Ends the connection with RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        self.socket.close()


class Answering:
    """A server whose answers a function makes, called on a thread for each connection when its first head was read."""

    def __init__(self, answer: Callable[[Peer], object], context: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self._context = context
        #: Set when the test is over, for answers that go on until then.
        self.over = threading.Event()
        #: The heads that came: first line, headers.
        self.requests: list[tuple[str, dict[str, str]]] = []
        self.connections = 0
        self._open: list[socket.socket] = []
        self.listener = socket.create_server((HOST, 0))
        self.port: int = self.listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def url(self) -> str:
        return f"{'https' if self._context else 'http'}://{HOST}:{self.port}/"

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection = self.listener.accept()[0]
                self.connections += 1
                self._open.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection: socket.socket) -> None:
        # A client that has had enough closes its end.
        with connection, suppress(OSError):
            if self._context is not None:
                connection = self._context.wrap_socket(connection, server_side=True, suppress_ragged_eofs=False)
                self._open.append(connection)
            peer = Peer(connection)
            if peer.read_request():
                self.requests.append((peer.line, peer.headers))
                self.answer(peer)

    def stop(self) -> None:
        self.over.set()
        # Ends `accept`, which closing alone does not on Linux.
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self._open:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            if self._context is not None:
                connection.close()
        for thread in self._threads:
            thread.join(LIMIT)
            assert not thread.is_alive(), "a thread of the server does not end"


@contextmanager
def answering(
    answer: Callable[[Peer], object] | bytes | str, context: ssl.SSLContext | None = None
) -> Iterator[Answering]:
    """`answer`: a function, or what to send before the connection is closed."""
    function = answer if callable(answer) else lambda peer: peer.send(answer)
    running = Answering(function, context)
    try:
        yield running
    finally:
        running.stop()


def relay(first: socket.socket, second: socket.socket) -> None:
    """Copies both ways until one side ends."""
    while True:
        for ready in select.select([first, second], [], [], LIMIT)[0]:
            data = ready.recv(1 << 16)
            if not data:
                return
            (second if ready is first else first).sendall(data)


@contextmanager
def proxy(refuse: bool = False) -> Iterator[Answering]:
    """A proxy for http and, by CONNECT, for https. `refuse`: it asks for a password that nobody has."""

    def answer(peer: Peer) -> None:
        method, target, _ = peer.line.split(" ")
        if refuse:
            peer.send("HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
            return
        if method == "CONNECT":
            host, port = target.rsplit(":", 1)
            with socket.create_connection((host, int(port)), LIMIT) as upstream:
                peer.send("HTTP/1.1 200 Connected\r\n\r\n")
                relay(peer.socket, upstream)
            return
        assert target.startswith("http://"), target
        authority, _, path = target.removeprefix("http://").partition("/")
        host, port = authority.rsplit(":", 1)
        with socket.create_connection((host, int(port)), LIMIT) as upstream:
            lines = [f"{method} /{path} HTTP/1.1", "Via: 1.1 test", "Connection: close"]
            lines += [f"{name}: {value}" for name, value in peer.headers.items() if name != "connection"]
            upstream.sendall("\r\n".join([*lines, "", ""]).encode("latin-1"))
            while data := upstream.recv(1 << 16):
                peer.send(data)

    with answering(answer) as running:
        yield running
