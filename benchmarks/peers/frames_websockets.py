"""websockets on uvloop in a thread of its own beside a 60 Hz main loop, with queues between the two: see frames.py."""

from __future__ import annotations

import asyncio
import queue
import sys
import threading

import frames
import uvloop
from websockets.asyncio.server import ServerConnection, broadcast, serve
from websockets.exceptions import ConnectionClosed

Message = tuple[ServerConnection, str]

connected: set[ServerConnection] = set()
arrived: queue.SimpleQueue[Message] = queue.SimpleQueue()


async def receive(connection: ServerConnection) -> None:
    """Hands messages over to the main loop; on the thread of the event loop, as all coroutines here."""
    connected.add(connection)
    try:
        async for message in connection:
            arrived.put((connection, str(message)))
    except ConnectionClosed:
        pass
    finally:
        connected.discard(connection)


async def send_all(messages: list[Message]) -> None:
    """What a frame has answered: one coroutine for all, which costs less than a task for each."""
    for connection, message in messages:
        try:
            await connection.send(message)
        except ConnectionClosed:
            continue


class Network(frames.Network):
    """The main loop's side."""

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
            asyncio.run_coroutine_threadsafe(send_all(messages), self.loop)
        return len(messages)

    def broadcast(self, message: str) -> None:
        """Hands the message over."""
        self.loop.call_soon_threadsafe(broadcast, connected, message)


async def listen(port: int) -> None:
    """Serves until the process is killed."""
    async with serve(receive, "127.0.0.1", port, compression=None, ping_interval=None) as server:
        await server.serve_forever()


def main() -> None:
    """Serves until it is killed."""
    loop = uvloop.new_event_loop()
    threading.Thread(target=loop.run_until_complete, args=(listen(int(sys.argv[1])),), daemon=True).start()
    frames.run(Network(loop))


if __name__ == "__main__":
    main()
