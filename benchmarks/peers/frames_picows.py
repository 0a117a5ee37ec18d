"""picows on uvloop beside a 60 Hz main loop (see frames.py): in a thread of its own, with queues between the two, or
pumped by the main loop, which then runs the event loop once in each frame.

    python frames_picows.py PORT CASE CLIENTS SECONDS thread|pumped
"""

from __future__ import annotations

import asyncio
import queue
import sys
import threading

import frames
import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_create_server

Message = tuple[WSTransport, str]

connected: set[WSTransport] = set()
arrived: queue.SimpleQueue[Message] = queue.SimpleQueue()


class Listener(WSListener):
    """Runs on the thread of the event loop."""

    def on_ws_connected(self, transport: WSTransport) -> None:
        """One more."""
        connected.add(transport)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """One less."""
        connected.discard(transport)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Hands a message over to the main loop."""
        if frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()
        else:
            arrived.put((transport, frame.get_payload_as_utf8_text()))


def send_all(messages: list[Message]) -> None:
    """On the event loop's thread: what a frame has answered."""
    for transport, message in messages:
        transport.send(WSMsgType.TEXT, message.encode())


def send_to_everybody(message: str) -> None:
    """On the event loop's thread."""
    payload = message.encode()
    for transport in connected:
        transport.send(WSMsgType.TEXT, payload)


class Answering(Listener):
    """Runs on the thread of the main loop, where a message can be answered at once."""

    answered = 0

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """Echoes."""
        if frame.msg_type == WSMsgType.CLOSE:
            transport.disconnect()
        else:
            transport.send(WSMsgType.TEXT, frame.get_payload_as_utf8_text().encode())
            Answering.answered += 1


class Pumped(frames.Network):
    """One pass of the event loop a frame."""

    pumped = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    def clients(self) -> int:
        """How many are there."""
        return len(connected)

    def answer(self) -> int:
        """Handles all that is readable."""
        Answering.answered = 0
        self.loop.call_soon(self.loop.stop)
        self.loop.run_forever()
        return Answering.answered

    def broadcast(self, message: str) -> None:
        """Writes to every socket."""
        send_to_everybody(message)


class Threaded(frames.Network):
    """The main loop's side, where the event loop has a thread of its own."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop

    def clients(self) -> int:
        """How many are there."""
        return len(connected)

    def answer(self) -> int:
        """Hands all answers of the frame over at once."""
        messages: list[Message] = []
        while True:
            try:
                messages.append(arrived.get_nowait())
            except queue.Empty:
                break
        if messages:
            self.loop.call_soon_threadsafe(send_all, messages)
        return len(messages)

    def broadcast(self, message: str) -> None:
        """Hands the message over."""
        self.loop.call_soon_threadsafe(send_to_everybody, message)


def serve(loop: asyncio.AbstractEventLoop, port: int) -> None:
    """The thread of the event loop."""
    asyncio.set_event_loop(loop)
    # Kept alive by this name while the loop runs.
    server = loop.run_until_complete(ws_create_server(lambda request: Listener(), "127.0.0.1", port))
    loop.run_forever()
    server.close()


def main() -> None:
    """Serves until it is killed."""
    loop, port = uvloop.new_event_loop(), int(sys.argv[1])
    if sys.argv[5] == "pumped":
        asyncio.set_event_loop(loop)
        server = loop.run_until_complete(ws_create_server(lambda request: Answering(), "127.0.0.1", port))
        frames.run(Pumped(loop))
        server.close()
    else:
        threading.Thread(target=serve, args=(loop, port), daemon=True).start()
        frames.run(Threaded(loop))


if __name__ == "__main__":
    main()
