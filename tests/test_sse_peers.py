"""Server-sent events and streams to clients that we did not write: curl, httpx, aiohttp, Chromium's EventSource."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Callable

import aiohttp
import httpx
import pytest
from selenium.webdriver.chrome.webdriver import WebDriver

from browser_helper import wait_until
from pyhv import HttpRequest, HttpResponse, StreamWriter
from support import HOST, LIMIT, RecordingServer, ServerThread, port_of
from support import wait_until as wait_for

PAGE = """<!doctype html>
<title>events</title>
<script>
  window.seen = [];
  window.source = new EventSource("/events");
  source.onopen = () => seen.push("open");
  source.onmessage = event => seen.push("message " + event.data + " id " + event.lastEventId);
  source.addEventListener("news", event => seen.push("news " + event.data));
  source.onerror = () => seen.push("error " + source.readyState);
  window.read = async () => {
    const reader = (await fetch("/bytes")).body.getReader();
    let length = 0, chunks = 0;
    for (;;) {
      const {done, value} = await reader.read();
      if (done) return [length, chunks];
      length += value.length;
      chunks += 1;
    }
  };
</script>
"""


class EventServer(RecordingServer):
    """Sends numbered events; a stream begins behind the last one that its client has seen."""

    def on_init(self) -> None:
        self.get("/", self.get_page)
        self.sse("/events", self.follow)
        self.stream("/bytes", self.stream_bytes)
        self.last_ids: list[str | None] = []

    def get_page(self, req: HttpRequest, resp: HttpResponse) -> None:
        resp.html(PAGE)

    def follow(self, req: HttpRequest, writer: StreamWriter) -> None:
        self.last_ids.append(writer.last_event_id)
        first = int(writer.last_event_id or 0) + 1
        for number in range(first, first + 3):
            writer.event(f"number {number}\nof many", id=str(number), retry=50)
        writer.event({"text": "néws"}, event="news")
        if req.query.get("end"):
            writer.close()

    def stream_bytes(self, req: HttpRequest, writer: StreamWriter) -> None:
        for _ in range(100):
            writer.write(bytes(10_000))
        writer.close()

    def on_stream_close(self, writer: StreamWriter) -> None:
        self.record.add("stream close", None, writer)


@pytest.fixture
def address(serve: Callable[..., ServerThread]) -> tuple[EventServer, str]:
    server = EventServer()
    serve(server)
    return server, f"http://{HOST}:{port_of(server)}"


EXPECTED = (
    "".join(f"id: {n}\nretry: 50\ndata: number {n}\ndata: of many\n\n" for n in (1, 2, 3))
    + 'event: news\ndata: {"text":"néws"}\n\n'
)


def test_curl_reads_a_stream_and_is_noticed_when_it_leaves(address: tuple[EventServer, str]) -> None:
    server, url = address
    if shutil.which("curl") is None:
        pytest.skip("there is no curl")
    command = ["curl", "--silent", "--no-buffer", f"{url}/events"]
    done = subprocess.run([*command[:-1], f"{url}/events?end=1"], capture_output=True, check=True, timeout=LIMIT)
    assert done.stdout.decode() == EXPECTED
    with subprocess.Popen(command, stdout=subprocess.PIPE) as curl:
        assert curl.stdout is not None
        assert curl.stdout.read(len(EXPECTED.encode())).decode() == EXPECTED
        (writer,) = server.streams
        writer.event("live")
        assert curl.stdout.readline() == b"data: live\n"
        curl.kill()
    wait_for(lambda: server.streams == [])


def test_httpx_reads_events_as_they_come(address: tuple[EventServer, str]) -> None:
    server, url = address
    with httpx.Client(timeout=LIMIT) as client, client.stream("GET", f"{url}/events") as response:
        lines = response.iter_lines()
        head = [next(lines) for _ in range(EXPECTED.count("\n"))]
        assert "\n".join(head) + "\n" == EXPECTED
        for number in range(50):
            server.streams[0].event(str(number))
            assert next(lines) == f"data: {number}"
            assert next(lines) == ""
    wait_for(lambda: server.streams == [])


def test_aiohttp_reads_many_streams_at_once(address: tuple[EventServer, str]) -> None:
    server, url = address

    async def follow(session: aiohttp.ClientSession) -> str:
        text = b""
        async with session.get(f"{url}/events") as response:
            assert response.content_type == "text/event-stream"
            async for chunk in response.content.iter_any():
                text += chunk
                if text.endswith(b"data: last\n\n"):
                    break
        return text.decode()

    async def main() -> list[str]:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(LIMIT)) as session:
            tasks = [asyncio.create_task(follow(session)) for _ in range(50)]
            while len(server.streams) < 50:
                await asyncio.sleep(0.01)
            for writer in server.streams:
                writer.event("last")
            return await asyncio.gather(*tasks)

    assert asyncio.run(main()) == [EXPECTED + "data: last\n\n"] * 50
    wait_for(lambda: server.streams == [])
    assert len(server.record.values("stream close")) == 50


def test_an_event_source_of_chromium_comes_back_with_its_last_id(
    address: tuple[EventServer, str], chromium: WebDriver
) -> None:
    server, url = address
    chromium.get(url)
    first = ["open", *(f"message number {n}\nof many id {n}" for n in (1, 2, 3)), 'news {"text":"néws"}']
    wait_until(chromium, lambda d: d.execute_script("return seen") == first)
    server.streams[0].close()
    second = ["error 0", "open", *(f"message number {n}\nof many id {n}" for n in (4, 5, 6)), 'news {"text":"néws"}']
    wait_until(chromium, lambda d: d.execute_script("return seen") == first + second)
    assert server.last_ids == [None, "3"]
    length, chunks = chromium.execute_async_script("const done = arguments[0]; read().then(done)")
    assert length == 1_000_000
    assert chunks > 1
    chromium.execute_script("source.close()")
    wait_for(lambda: server.streams == [])
