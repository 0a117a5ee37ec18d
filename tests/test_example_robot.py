"""The robot example: the loop keeps its pace, the dashboard shows it and moves the joint."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By

import browser_helper
from support import RawClient, RecordingClient, tick_until
from support_examples import ExampleServer, artifact


@pytest.fixture
def robot() -> Iterator[ExampleServer]:
    with ExampleServer("robot/robot.py") as running:
        yield running


class Panel(RecordingClient):
    """Keeps the values of every step."""

    def __init__(self, robot: ExampleServer) -> None:
        super().__init__()
        self.steps: list[dict[str, Any]] = []
        self.connect(f"ws://127.0.0.1:{robot.port}/")
        tick_until(lambda: self.steps, self)

    def on_message(self, msg: str | bytes) -> None:
        self.steps.append(json.loads(msg))

    @property
    def position(self) -> float:
        return float(self.steps[-1]["position"])


def test_the_joint_goes_to_its_target_and_back_after_a_push(robot: ExampleServer) -> None:
    panel = Panel(robot)
    panel.send('{"target": 1.5}')
    tick_until(lambda: abs(panel.position - 1.5) < 0.02, panel)
    panel.send('{"push": 15}')
    tick_until(lambda: abs(panel.position - 1.5) > 0.1, panel)
    tick_until(lambda: abs(panel.position - 1.5) < 0.02, panel)
    times = [step["time"] for step in panel.steps]
    assert times == sorted(times)
    assert len(panel.steps) <= (times[-1] - times[0]) * 100 + 101  # steps that were missed may follow at once
    robot.stop()


@pytest.mark.parametrize("order", ["{", "{}", '{"target": 4}', '{"target": "1"}', '{"push": NaN}', b"\x00", "[" * 5000])
def test_a_wrong_order_ends_its_sender_alone(robot: ExampleServer, order: str | bytes) -> None:
    other, panel = Panel(robot), Panel(robot)
    panel.send(order)
    tick_until(lambda: panel.close_code, panel)
    assert panel.close_code == 1007
    seen = len(other.steps)
    tick_until(lambda: len(other.steps) > seen + 10, other)
    assert other.position == 0.0


def test_a_page_that_does_not_read_misses_steps_and_delays_nobody(robot: ExampleServer) -> None:
    panel = Panel(robot)
    with RawClient(robot.port, receive_buffer=4096) as asleep:
        seen = len(panel.steps)
        tick_until(lambda: len(panel.steps) > seen + 200, panel)
        asleep.send_text('{"target": 1}')  # it is still there, and still obeyed
        tick_until(lambda: panel.position > 0.5, panel)
    robot.stop()


def test_the_dashboard(robot: ExampleServer, chromium: WebDriver) -> None:
    panel = Panel(robot)
    browser_helper.set_viewport(chromium, 960, 620)
    chromium.get(robot.url)
    slider = chromium.find_element(By.ID, "wanted")
    browser_helper.wait_until(chromium, lambda d: d.find_element(By.ID, "state").text == "Connected")

    def choose(value: str) -> None:
        script = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))"
        chromium.execute_script(script, slider, value)

    def shown() -> float:
        return float(chromium.find_element(By.ID, "position").text)

    for target in (2.0, -1.0):
        choose(str(target))
        browser_helper.wait_until(chromium, lambda _: abs(shown() - target) < 0.02, limit=20)  # noqa: B023
        tick_until(lambda: abs(panel.position - target) < 0.05, panel)  # noqa: B023
    chromium.find_element(By.ID, "push").click()
    tick_until(lambda: abs(panel.position + 1) > 0.1, panel)
    tick_until(lambda: abs(panel.position + 1) < 0.02, panel)
    assert chromium.save_screenshot(str(artifact("robot.png")))
    assert not [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]  # type: ignore[no-untyped-call]
    robot.stop()
