"""A control loop at 100 Hz with a live dashboard in the browser.

    python examples/robot/robot.py [--port 9090] [--host 127.0.0.1]

The robot is one simulated joint, held at its target by a PID controller. The protocol on the WebSocket, in JSON:

    server, each step   {"time": 12.34, "target": 1.0, "position": 0.98, "effort": 0.4, "late": 0.0002}
    client              {"target": 1.0} (radians, from -3 to 3) or {"push": 2.0} (newton metres, for one step)

`late` is how long after its due time the step began, in seconds. A page that cannot keep up gets fewer steps, each of
them the newest.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING

import pyhv

if TYPE_CHECKING:
    from pyhv import HttpRequest, HttpResponse, WebSocketChannel

PERIOD = 0.01  # seconds


class Joint:
    """What would be the motor and its encoder."""

    INERTIA, FRICTION, LIMIT = 0.02, 0.05, 1.5  # kg m², N m s, N m

    def __init__(self) -> None:
        self.position = self.velocity = self.push = 0.0

    def apply(self, effort: float) -> None:
        torque = effort + self.push - self.FRICTION * self.velocity
        self.push = 0.0
        self.velocity += torque / self.INERTIA * PERIOD
        self.position += self.velocity * PERIOD


class Controller:
    """PID, with the integral held while the motor is at its limit."""

    KP, KI, KD = 4.0, 2.0, 0.45

    def __init__(self) -> None:
        self.integral = 0.0

    def effort(self, target: float, joint: Joint) -> float:
        error = target - joint.position
        wanted = self.KP * error + self.KI * self.integral - self.KD * joint.velocity
        if abs(wanted) < joint.LIMIT:
            self.integral += error * PERIOD
        return min(max(wanted, -joint.LIMIT), joint.LIMIT)


class Dashboard(pyhv.HvWebServer):
    """Every method here runs inside `tick()`, between two steps."""

    def __init__(self, joint: Joint) -> None:
        self.joint = joint
        self.target = 0.0

    def on_init(self) -> None:
        self.page = Path(__file__).with_name("index.html").read_text(encoding="utf-8")
        self.get("/", self.get_page)

    def get_page(self, req: HttpRequest, resp: HttpResponse) -> HTTPStatus:
        return resp.html(self.page)

    def on_ws_message(self, channel: WebSocketChannel, msg: str | bytes) -> None:
        try:
            order = json.loads(msg)
        except (ValueError, RecursionError):  # RecursionError: a few thousand "[" in a row
            order = None
        match order:
            case {"target": int() | float() as target} if -3 <= target <= 3:
                self.target = float(target)
            case {"push": int() | float() as push} if -20 <= push <= 20:
                self.joint.push = float(push)
            case _:
                channel.close(1007, 'expected {"target": -3 to 3} or {"push": -20 to 20}')

    def show(self, **values: float) -> None:
        """Sends the newest values to every page, in the place of those that it has not been sent yet."""
        self.broadcast(json.dumps(values), key="values")


def control(joint: Joint, dashboard: Dashboard) -> None:
    """The loop: a step each 10 ms, and the network in what is left of them."""
    controller = Controller()
    start = due = time.monotonic()
    while True:
        now = time.monotonic()
        effort = controller.effort(dashboard.target, joint)
        joint.apply(effort)
        dashboard.show(
            time=round(now - start, 4),
            target=dashboard.target,
            position=round(joint.position, 4),
            effort=round(effort, 4),
            late=round(now - due, 6),
        )
        due += PERIOD
        dashboard.tick()  # once at least, also when the step was late
        while (left := due - time.monotonic()) > 0:
            dashboard.tick(left)
        if left < -1.0:
            due = time.monotonic()  # the program was stopped for a while: no hundred steps at once


def main() -> int:
    parser = argparse.ArgumentParser(description="A control loop with a dashboard.")
    parser.add_argument("--port", type=int, default=9090, help="0 picks a free one (default: 9090)")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets others in (default: 127.0.0.1)")
    args = parser.parse_args()

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    joint = Joint()
    dashboard = Dashboard(joint)
    dashboard.start(args.port, args.host)
    print(f"robot on http://{args.host}:{dashboard.port} (Ctrl-C stops)", flush=True)
    try:
        control(joint, dashboard)
    except KeyboardInterrupt:
        pass
    finally:
        dashboard.stop()
    print("stopped", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
