"""Publishes over kept connections with one library: publish.py LIBRARY URL [TOKEN], and a plan on
standard input.

A line of the plan is a session: pauses in milliseconds, separated by spaces. After each pause the
session publishes; the body is `SESSION-NUMBER`. All sessions run at the same time, each on a
connection of its own. The program prints a line for each publication that failed, and how many were
sent again.
"""

import asyncio
import http.client
import sys
import threading
import time
import urllib.parse

LIBRARY, URL = sys.argv[1:3]
TARGET = urllib.parse.urlsplit(URL)
HEADERS = {"Content-Type": "text/plain"} | ({"Authorization": f"Bearer {sys.argv[3]}"} if sys.argv[3:] else {})
PLAN = [[float(pause) / 1000 for pause in line.split()] for line in sys.stdin if line.strip()]
resent = 0


def failed(body, why):
    print(f"failed\t{body}\t{' '.join(str(why).split())}", flush=True)


def http_client():
    """Opens a kept connection once more if the server has ended it, as xmlrpc.client does."""
    connection = http.client.HTTPConnection(TARGET.hostname, TARGET.port, timeout=25)

    def once(body):
        connection.request("POST", TARGET.path, body, HEADERS)
        answer = connection.getresponse()
        answer.read()
        return answer.status

    def post(body):
        global resent
        fresh = connection.sock is None
        try:
            return once(body)
        except (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError):
            connection.close()
            if fresh:
                raise
            resent += 1
            return once(body)

    return post


def fresh_http_client():
    """A new connection for each, as scripts do; `Connection: close` is not said."""

    def post(body):
        connection = http.client.HTTPConnection(TARGET.hostname, TARGET.port, timeout=25)
        connection.request("POST", TARGET.path, body, HEADERS)
        answer = connection.getresponse()
        answer.read()
        connection.close()
        return answer.status

    return post


def requests():
    import requests as library

    session = library.Session()
    session.trust_env = False
    return lambda body: session.post(URL, data=body, headers=HEADERS, timeout=25).status_code


def httpx():
    import httpx as library

    client = library.Client(trust_env=False, timeout=25, limits=library.Limits(keepalive_expiry=60))
    return lambda body: client.post(URL, content=body, headers=HEADERS).status_code


def session(post, number, pauses):
    for step, pause in enumerate(pauses):
        time.sleep(pause)
        body = f"{number}-{step}"
        try:
            status = post(body)
            if status != 202:
                failed(body, f"status {status}")
        except Exception as error:
            failed(body, f"{type(error).__name__}: {error} after {pause * 1000:.1f} ms")


async def with_aiohttp():
    import aiohttp

    async def one(number, pauses):
        connector = aiohttp.TCPConnector(limit=1, keepalive_timeout=60)
        async with aiohttp.ClientSession(connector=connector) as client:
            for step, pause in enumerate(pauses):
                await asyncio.sleep(pause)
                body = f"{number}-{step}"
                try:
                    async with client.post(URL, data=body, headers=HEADERS) as answer:
                        await answer.read()
                        if answer.status != 202:
                            failed(body, f"status {answer.status}")
                except Exception as error:
                    failed(body, f"{type(error).__name__}: {error} after {pause * 1000:.1f} ms")

    await asyncio.gather(*(one(number, pauses) for number, pauses in enumerate(PLAN)))


if LIBRARY == "aiohttp":
    asyncio.run(with_aiohttp())
else:
    make = {"http.client": http_client, "fresh": fresh_http_client, "requests": requests, "httpx": httpx}[
        LIBRARY
    ]
    threads = [
        threading.Thread(target=session, args=(make(), number, pauses)) for number, pauses in enumerate(PLAN)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
print(f"done\t{sum(map(len, PLAN))}\t{resent}", flush=True)
