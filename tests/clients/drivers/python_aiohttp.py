"""aiohttp's client."""

import asyncio

import aiohttp
from lines import ECHOES, attempts


async def message(socket):
    """The next message, with pings answered as aiohttp does it by itself."""
    while True:
        found = await socket.receive(timeout=25)
        if found.type == aiohttp.WSMsgType.PING:
            await socket.pong(found.data)
        else:
            return found


async def run(session, attempt):
    found = attempt.found
    origin = attempt.headers.pop("Origin", None)
    async with session.ws_connect(
        attempt.url,
        protocols=attempt.protocols,
        headers=attempt.headers,
        origin=origin,
        autoping=attempt.action != "echo",
    ) as socket:
        found.update(open=1, protocol=socket.protocol or "")
        if attempt.action == "echo":
            same = []
            for kind, data in ECHOES:
                await (socket.send_str(data) if isinstance(data, str) else socket.send_bytes(data))
                if (await message(socket)).data == data:
                    same.append(kind)
            found["echo"] = ",".join(same)
            await socket.ping(b"p")
            pong = await message(socket)
            found["pong"] = int(pong.type == aiohttp.WSMsgType.PONG and pong.data == b"p")
        if attempt.action == "receive":
            attempt.ready()
            attempt.got([(await message(socket)).data for _ in range(int(attempt.argument))])
        if attempt.action == "say":
            attempt.ready()
            if attempt.argument:
                await socket.send_str(attempt.text_to_say())
            while (await message(socket)).type not in (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSED):
                pass
        await socket.close()
        found["close"] = socket.close_code


async def main():
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=25)) as session:
        for attempt in attempts():
            try:
                await run(session, attempt)
            except aiohttp.WSServerHandshakeError as rejected:
                attempt.found["status"] = rejected.status
            except Exception as error:
                attempt.found["error"] = f"{type(error).__name__}: {error}"
            attempt.result()


asyncio.run(main())
