"""TLS handshakes that are begun and left: each makes the server compute, and the client not."""

import collections
import os
import re
import ssl
import threading

from wire import Tally, expect, handshake, loop, quietly

KEYS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "it", "keys")
FLAGS = ("--tls-listen", "127.0.0.1:0", "--tls-cert", f"{KEYS}/tls-cert.pem", "--tls-key", f"{KEYS}/tls-key.pem")
OPEN = 5000


def trusting():
    """A client's context that takes any certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def client_hello():
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        trusting().wrap_bio(into, out, server_hostname="localhost").do_handshake()
    except ssl.SSLWantReadError:
        return out.read()


def begun(server, stop):
    """Beside them, newcomers at both ports: the other port must not notice."""
    hello, context, sent, tried = client_hello(), trusting(), Tally(), collections.Counter()
    secure = (server.address[0], int(re.search(r"listening on 127\.0\.0\.1:(\d+) .*tls=true", server.said())[1]))

    def newcomer(what, wire, connect):
        tried[what] += 1
        stream = quietly(connect)
        if stream:
            with stream:
                quietly(lambda: stream.sendall(wire))
                answer = quietly(lambda: stream.recv(4096)) or b""
                tried[f"{what} answered"] += answer.startswith((b"HTTP/1.1 101 ", b"HTTP/1.1 200 "))

    def newcomers():
        health = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        newcomer("http", health, server.connect)
        newcomer("ws", handshake("/ws/newcomers"), server.connect)
        newcomer("wss", handshake("/ws/newcomers"), lambda: context.wrap_socket(server.connect(address=secure), server_hostname="localhost"))

    beside = threading.Thread(target=lambda: loop(stop, newcomers, 0.05))
    beside.start()
    streams = collections.deque()

    def once():
        nonlocal sent
        stream = quietly(lambda: server.connect(address=secure))
        if stream:
            quietly(lambda: stream.sendall(hello))
            streams.append(stream)
            sent += 1
        if len(streams) > OPEN:
            streams.popleft().close()

    loop(stop, once)
    beside.join()
    [stream.close() for stream in streams]
    for what in ("http", "ws"):
        expect(tried[f"{what} answered"] == tried[what], f"of {tried[what]} newcomers by {what}, {tried[f'{what} answered']} were answered")
    expect(tried["wss answered"] > 0, f"none of {tried['wss']} newcomers by wss was answered")
    told = ", ".join(f"{tried[f'{what} answered']} of {tried[what]} by {what}" for what in ("http", "ws", "wss"))
    return f"TLS handshakes that are begun and left, {sent}, the last {OPEN:,} of them open; newcomers meanwhile: {told}"
