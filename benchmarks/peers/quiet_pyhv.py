"""pyHV with nothing to do: python quiet_pyhv.py PORT wait|60hz PING_INTERVAL CLIENTS SECONDS

Waits for so many clients, then for a second more, and prints the CPU seconds of the process in the SECONDS after that.
A PING_INTERVAL of 0 is none.
"""

from __future__ import annotations

import sys
import time

import pyhv

SETTLE = 1.0
FRAME = 1 / 60


class Server(pyhv.HvWebServer):
    """Counts its clients."""

    count = 0

    def on_ws_open(self, channel: pyhv.WebSocketChannel, url: str) -> None:
        """One more."""
        self.count += 1

    def idle(self, how: str, seconds: float) -> None:
        """Ticks as a program would that has nothing to do: waiting inside, or once a frame."""
        end = time.perf_counter() + seconds
        while (left := end - time.perf_counter()) > 0:
            if how == "wait":
                self.tick(left)
            else:
                self.tick()
                time.sleep(min(FRAME, left))


def main() -> None:
    """Measures once."""
    port, how, ping_interval = int(sys.argv[1]), sys.argv[2], float(sys.argv[3])
    clients, seconds = int(sys.argv[4]), float(sys.argv[5])
    server = Server()
    server.start(port, ping_interval=ping_interval or None)
    while server.count < clients:
        server.tick(0.1)
    server.idle(how, SETTLE)
    before = time.process_time()
    server.idle(how, seconds)
    print(time.process_time() - before, flush=True)
    server.stop(0)


if __name__ == "__main__":
    main()
