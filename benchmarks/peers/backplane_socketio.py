"""The same with python-socketio, on aiohttp: python backplane_socketio.py [URL]. What publishes is the event loop."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any
from urllib.parse import parse_qs

import socketio
from aiohttp import web


async def main() -> None:
    """Until the input ends."""
    manager = socketio.AsyncRedisManager(sys.argv[1]) if len(sys.argv) > 1 else None
    server = socketio.AsyncServer(async_mode="aiohttp", client_manager=manager, cors_allowed_origins="*")
    application = web.Application()
    server.attach(application)

    @server.event  # type: ignore[untyped-decorator]
    async def connect(sid: str, environ: dict[str, Any]) -> None:
        await server.enter_room(sid, parse_qs(environ["QUERY_STRING"])["topic"][0])

    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    print(runner.addresses[0][1], flush=True)
    print("connected", flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        ask = json.loads(line)
        spent, topics, pause = 0.0, ask["topics"], ask["pause"]
        for number in range(ask["count"]):
            begin = time.thread_time()
            text = f"{time.monotonic():.9f} ".ljust(ask["size"], "x")
            await server.emit("m", text, room=topics[number % len(topics)])
            spent += time.thread_time() - begin
            if pause and number % ask["each"] == 0:
                await asyncio.sleep(pause)
        print(spent, flush=True)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main())
