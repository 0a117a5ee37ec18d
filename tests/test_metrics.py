"""`enable_metrics`, read by Prometheus' own parser for Python, and who may ask."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from pyhv import HvWebServer
from support import HOST, Background, RawClient, RecordingServer, ServerThread, http, port_of, tick_until, wait_until

#: Every name with its type, and the labels that it has.
METRICS = {
    "pyhv_build_info": ("gauge", "version"),
    "pyhv_start_time_seconds": ("gauge", None),
    "pyhv_io_threads": ("gauge", None),
    "pyhv_connections": ("gauge", "protocol"),
    "pyhv_connections_accepted": ("counter", None),
    "pyhv_websockets_opened": ("counter", None),
    "pyhv_websockets_closed": ("counter", "code"),
    "pyhv_http_requests": ("counter", None),
    "pyhv_http_requests_active": ("gauge", None),
    "pyhv_http_requests_abandoned": ("counter", None),
    "pyhv_http_responses": ("counter", "class"),
    "pyhv_messages_received": ("counter", None),
    "pyhv_messages_sent": ("counter", None),
    "pyhv_message_received_bytes": ("counter", None),
    "pyhv_message_sent_bytes": ("counter", None),
    "pyhv_messages_dropped": ("counter", None),
    "pyhv_messages_skipped": ("counter", None),
    "pyhv_messages_replaced": ("counter", None),
    "pyhv_socket_read_bytes": ("counter", "protocol"),
    "pyhv_socket_written_bytes": ("counter", "protocol"),
    "pyhv_pings_sent": ("counter", None),
    "pyhv_pings_answered": ("counter", None),
    "pyhv_pings_waiting": ("gauge", None),
    "pyhv_pings_unanswered": ("counter", None),
    "pyhv_refusals": ("counter", "reason"),
    "pyhv_events_pending": ("gauge", None),
    "pyhv_events_pending_bytes": ("gauge", None),
    "pyhv_websockets_paused": ("gauge", None),
    "pyhv_websockets_behind": ("gauge", None),
    "pyhv_buffered_bytes": ("gauge", None),
    "pyhv_commands_pending": ("gauge", None),
    "pyhv_commands_pending_bytes": ("gauge", None),
    "pyhv_ticks": ("counter", None),
    "pyhv_events_delivered": ("counter", None),
    "pyhv_tick_seconds": ("histogram", "le"),
    "pyhv_tick_running_seconds": ("gauge", None),
    "pyhv_stall_age_seconds": ("gauge", None),
}


def scrape(server: HvWebServer, path: str = "/metrics") -> dict[str, Metric]:
    """The families by name, without a tick."""
    answer = http(port_of(server), "GET", path)
    assert answer.status == 200, answer
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert answer.headers["cache-control"] == "no-store"
    families = list(text_string_to_metric_families(answer.body.decode()))
    named = {family.name: family for family in families}
    assert len(named) == len(families)
    return named


def values(family: Metric) -> dict[str, float]:
    """By the value of the only label, "" without one."""
    return {"".join(sample.labels.values()): sample.value for sample in family.samples}


def test_all_of_it_is_read_by_the_parser(server: RecordingServer) -> None:
    server.enable_metrics()
    with RawClient(port_of(server)) as client:
        tick_until(lambda: server.channels, server)
        for text in ("a", "bb", "ccc"):
            client.send_text(text)
        tick_until(lambda: server.record.count("message") == 3, server)
        server.broadcast("to all")
        client.read_message()
        client.send_close(1000)
        tick_until(lambda: server.record.count("close"), server)
        http(port_of(server), "GET", "/nowhere")
        with RawClient(port_of(server)) as second:
            second.send_text("a" * 100, fin=True)
            second.send_frame(3)  # no opcode
            tick_until(lambda: server.refusals, server)
            found = scrape(server)
    assert {name: family.type for name, family in found.items()} == {name: kind for name, (kind, _) in METRICS.items()}
    for name, (_, label) in METRICS.items():
        family = found[name]
        assert family.documentation.endswith("."), name
        for sample in family.samples:
            assert set(sample.labels) == ({label} if label and not sample.name.endswith(("_sum", "_count")) else set())
    one = {name: family.samples[0].value for name, family in found.items() if family.samples}
    assert one["pyhv_messages_received"] == 4
    assert (one["pyhv_messages_sent"], one["pyhv_message_sent_bytes"]) == (1, 6)
    assert (one["pyhv_message_received_bytes"], one["pyhv_websockets_opened"]) == (1 + 2 + 3 + 100, 2)
    assert values(found["pyhv_websockets_closed"])["1000"] == 1
    assert values(found["pyhv_refusals"]) == {"protocol error": 1}
    # The one that asks is not answered yet.
    assert values(found["pyhv_http_responses"]) == {"1xx": 2, "2xx": 0, "3xx": 0, "4xx": 1, "5xx": 0}
    assert one["pyhv_http_requests"] == 4
    assert one["pyhv_http_requests_active"] == 1


def test_the_histogram_is_one(server: RecordingServer) -> None:
    server.enable_metrics()
    server.on_ws_open = lambda channel, url: time.sleep(0.012)  # type: ignore[method-assign]
    for _ in range(3):
        with RawClient(port_of(server)):
            tick_until(lambda: server.channels, server)
        tick_until(lambda: not server.channels, server)
    samples = scrape(server)["pyhv_tick_seconds"].samples
    buckets = [(sample.labels["le"], sample.value) for sample in samples if sample.name.endswith("_bucket")]
    (count,) = [sample.value for sample in samples if sample.name.endswith("_count")]
    (total,) = [sample.value for sample in samples if sample.name.endswith("_sum")]
    assert [bound for bound, _ in buckets[:3]] == ["0.0001", "0.0002", "0.0005"]
    assert buckets[-1] == ("+Inf", count)
    assert [n for _, n in buckets] == sorted(n for _, n in buckets)
    assert dict(buckets)["0.01"] <= count - 3
    assert total >= 0.036
    assert server.stats().tick_seconds.count == count


def test_it_answers_while_the_program_hangs(server: RecordingServer) -> None:
    """In a callback, with the GIL let go; and without any tick at all."""
    server.enable_metrics()
    with RawClient(port_of(server)) as client:
        tick_until(lambda: server.channels, server)
        over: list[bool] = []

        def hang(channel: Any, msg: Any) -> None:
            wait_until(lambda: over)

        server.on_ws_message = hang  # type: ignore[method-assign]
        client.send_text("x")
        wait_until(lambda: server.stats().events_pending == 1)
        ticking = Background(server.tick)
        wait_until(lambda: scrape(server)["pyhv_tick_running_seconds"].samples[0].value > 0.1)
        client.send_text("y")
        wait_until(lambda: scrape(server)["pyhv_events_pending"].samples[0].value == 1)
        over.append(True)
        ticking.result()
    wait_until(lambda: scrape(server)["pyhv_stall_age_seconds"].samples[0].value > 0.2)


def test_curl_and_head_and_post(server: RecordingServer) -> None:
    server.enable_metrics("/internal/metrics")
    for name in ("localhost", HOST):
        url = f"http://{name}:{server.port}/internal/metrics"
        asked = subprocess.run(["curl", "-sS4", "--fail", "--max-time", "10", url], capture_output=True, check=True)
        assert b"\npyhv_ticks_total 0\n" in asked.stdout
    assert http(port_of(server), "HEAD", "/internal/metrics").status == 200
    assert http(port_of(server), "POST", "/internal/metrics", body=b"").status == 405
    assert http(port_of(server), "GET", "/metrics").status == 404


# Who may ask


def refused(
    server: HvWebServer, why: str, headers: list[tuple[str, str]] | None = None, path: str = "/metrics"
) -> None:
    before = server.refusals.get("enable_metrics", 0)
    answer = http(port_of(server), "GET", path, headers=headers or [])
    assert (answer.status, answer.headers["content-type"]) == (403, "text/plain; charset=utf-8")
    assert why in answer.body.decode()
    assert b"pyhv_" not in answer.body
    assert server.refusals["enable_metrics"] == before + 1


def test_others_are_refused(server: RecordingServer) -> None:
    server.enable_metrics(allow=("10.0.0.0/8", "::1"))
    refused(server, "127.0.0.1 is not in allow= (enable_metrics)")


def test_a_list_of_addresses(server: RecordingServer) -> None:
    server.enable_metrics(allow=["192.0.2.1", "127.0.0.1"])
    assert scrape(server)


def test_behind_a_trusted_proxy_the_client_counts(serve: Callable[..., ServerThread]) -> None:
    server = RecordingServer()
    server.enable_metrics(allow=("10.0.0.0/8", "127.0.0.1"))
    serve(server, trusted_proxies=[HOST])
    for header in ("X-Forwarded-For", "Forwarded"):
        value = "for={}" if header == "Forwarded" else "{}"
        refused(server, "192.0.2.1 is not in allow=", [(header, value.format("192.0.2.1"))])
        refused(
            server, "6.6.6.6 is not in allow=", [(header, f"{value.format('10.1.2.3')}, {value.format('6.6.6.6')}")]
        )
        answer = http(port_of(server), "GET", "/metrics", headers=[(header, value.format("10.1.2.3"))])
        assert answer.status == 200
    # The proxy itself, that is: somebody on this machine.
    assert scrape(server)


@pytest.mark.parametrize("header", ["X-Forwarded-For", "X-Real-IP", "Forwarded", "Via"])
def test_what_came_through_an_unknown_proxy_is_refused(server: RecordingServer, header: str) -> None:
    """Else a proxy on this machine would let everybody in."""
    server.enable_metrics()
    refused(server, "127.0.0.1 is not in trusted_proxies", [(header, "127.0.0.1")])


def test_a_name_that_was_changed_to_this_address_is_refused(server: RecordingServer) -> None:
    """DNS rebinding: the page of a site reads from its own origin, which leads here."""
    server.enable_metrics()
    with RawClient(port_of(server), upgrade=False) as raw:
        for host, status in [
            ("evil.example", 403),
            ("127.0.0.1.evil.example:80", 403),
            ("localhost", 200),
            ("LOCALHOST:8080", 200),
            ("app.localhost:80", 200),
            ("[::1]:80", 200),
            ("192.168.1.7", 200),
        ]:
            raw.send_bytes(f"GET /metrics HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
            assert raw.read_answer().status == status, host


def test_pages_of_another_origin_are_refused_whatever_cors_says(server: RecordingServer) -> None:
    server.enable_metrics()
    server.allow_cors("*")
    for origin in ("http://evil.example", "null", f"http://{HOST}:1", "http://"):
        refused(server, "another origin", [("Origin", origin)])
    same = http(port_of(server), "GET", "/metrics", headers=[("Origin", f"http://{HOST}")])
    assert same.status == 200


def test_misuse_raises_and_changes_nothing(server: RecordingServer) -> None:
    server.get("/taken", lambda req, resp: "taken")
    server.get("/page/stats.json", lambda req, resp: "mine")
    bad: list[tuple[Callable[..., None], str, Any, str]] = []
    for enable in (server.enable_metrics, server.enable_dashboard):
        bad += [
            (enable, "/taken", ["::1"], "has a handler already"),
            (enable, "up", ["::1"], "begins with '/'"),
            (enable, "/x", [], "allow is empty"),
            (enable, "/x", "127.0.0.1", "allow='127.0.0.1' is not a list"),
            (enable, "/x", ["10.0.0.0/33"], 'allow: "10.0.0.0/33"'),
            (enable, "/x", ["localhost"], 'allow: "localhost" is not an address'),
            (enable, "/x", [7], r"allow=\[7\] is not a list of addresses"),
        ]
    bad.append((server.enable_dashboard, "/page", ["::1"], "stats.json has a handler already"))
    for enable, path, allow, part in bad:
        with pytest.raises(ValueError, match=part):
            enable(path, allow=allow)
    for path in ("/x", "/page", "/x/stats.json"):
        assert http(port_of(server), "GET", path).status == 404
    server.enable_metrics()
    with pytest.raises(ValueError, match="has a handler already"):
        server.enable_metrics()
