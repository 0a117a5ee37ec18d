"""The squares example: a pygame world with a browser, a pygame client and hundreds of bots in it."""

from __future__ import annotations

import json
import signal
import struct
from collections.abc import Callable, Iterator

import pytest
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

import browser_helper
from support import RecordingClient, tick_until
from support_examples import EXAMPLES, ExampleServer, artifact
from support_load import Program

pytest.importorskip("pygame")

BOTS = 200


@pytest.fixture
def world() -> Iterator[ExampleServer]:
    with ExampleServer("squares/server.py") as running:
        yield running


class Watcher(RecordingClient):
    """A player who keeps the newest picture."""

    def __init__(self, world: ExampleServer) -> None:
        super().__init__()
        self.picture: dict[int, tuple[int, int]] = {}
        self.connect(f"ws://127.0.0.1:{world.port}/")
        self.until(lambda: self.picture)
        self.id: int = self.received[0]["id"]

    def on_message(self, msg: str | bytes) -> None:
        if isinstance(msg, bytes):
            self.picture = {number: (x, y) for number, x, y, _ in struct.iter_unpack("<HHHB", msg)}
        else:
            self.record.add("message", None, json.loads(msg))

    def until(self, condition: Callable[[], object]) -> None:
        tick_until(condition, self)


def test_a_square_goes_where_its_player_says(world: ExampleServer) -> None:
    player = Watcher(world)
    player.send(b"\xff\x00")
    player.until(lambda: player.picture[player.id][0] == 0)
    player.send(b"\x01\x00")
    player.until(lambda: player.picture[player.id][0] > 50)
    player.send(b"\x00\x00")
    player.close()
    player.until(lambda: player.close_code == 1000)
    world.stop()


@pytest.mark.parametrize(("message", "code"), [("right", 1003), (b"\x01", 1007), (b"\x02\x00", 1007)])
def test_what_is_no_direction_ends_its_sender_alone(world: ExampleServer, message: str | bytes, code: int) -> None:
    other, player = Watcher(world), Watcher(world)
    player.send(message)
    player.until(lambda: player.close_code == code)
    other.until(lambda: player.id not in other.picture)
    assert other.is_connected


def test_browser_client_and_bots_share_the_world(world: ExampleServer, chromium: WebDriver) -> None:
    url = f"ws://127.0.0.1:{world.port}/"
    watcher = Watcher(world)
    with (
        Program(EXAMPLES / "squares" / "bots.py", url, "--count", str(BOTS)) as bots,
        Program(EXAMPLES / "squares" / "client.py", url) as client,
    ):
        bots.wait_for(f"{BOTS} bots are playing")
        client.wait_for("playing as")
        watcher.until(lambda: len(watcher.picture) == BOTS + 2)
        before = watcher.picture
        watcher.until(lambda: sum(before[each] != watcher.picture.get(each) for each in before) > BOTS / 2)

        chromium.get(world.url)
        state = chromium.find_element(By.ID, "state")
        canvas = chromium.find_element(By.ID, "world")
        browser_helper.wait_until(chromium, lambda _: state.text == f"{BOTS + 3} squares", limit=20)
        for key, there in ((Keys.ARROW_LEFT, "0"), (Keys.ARROW_RIGHT, "942")):
            ActionChains(chromium).key_down(key).perform()
            browser_helper.wait_until(chromium, lambda _: canvas.get_attribute("data-x") == there, limit=20)  # noqa: B023
            ActionChains(chromium).key_up(key).perform()
        assert chromium.save_screenshot(str(artifact("squares.png")))
        chromium.get("about:blank")

        for program in (client, bots):
            program.process.send_signal(signal.SIGINT)
            assert program.finish() == 0, program.output
        watcher.until(lambda: list(watcher.picture) == [watcher.id])
    world.stop()
