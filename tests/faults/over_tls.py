"""TLS handshakes that stop after the ClientHello: each costs the server CPU time and the client
none."""

import collections
import os
import re
import ssl
import threading

from wire import Counter, expect, handshake, loop, quietly

KEYS = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "it", "keys")
FLAGS = ("--tls-listen", "127.0.0.1:0", "--tls-cert", f"{KEYS}/tls-cert.pem", "--tls-key", f"{KEYS}/tls-key.pem")
OPEN = 5000


def trusting():
    """A client's context that accepts any certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def client_hello():
    into, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    try:
        trusting().wrap_bio(into, out, server_hostname="localhost").do_handshake()
    except ssl.SSLWantReadError:
        return out.read()


def abandoned(server, stop):
    """Meanwhile new clients connect to both ports: the attack must not slow down the plain port."""
    hello, context, sent, tried = client_hello(), trusting(), Counter(), collections.Counter()
    secure = (server.address[0], int(re.search(r"listening on 127\.0\.0\.1:(\d+) for \w+: wss:", server.said())[1]))

    def new_client(what, wire, connect):
        tried[what] += 1
        stream = quietly(connect)
        if stream:
            with stream:
                quietly(lambda: stream.sendall(wire))
                answer = quietly(lambda: stream.recv(4096)) or b""
                tried[f"{what} answered"] += answer.startswith((b"HTTP/1.1 101 ", b"HTTP/1.1 200 "))

    def new_clients():
        health = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        new_client("http", health, server.connect)
        new_client("ws", handshake("/ws/new"), server.connect)
        new_client("wss", handshake("/ws/new"), lambda: context.wrap_socket(server.connect(address=secure), server_hostname="localhost"))

    others = threading.Thread(target=lambda: loop(stop, new_clients, 0.05))
    others.start()
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
    others.join()
    [stream.close() for stream in streams]
    for what in ("http", "ws"):
        expect(tried[f"{what} answered"] == tried[what], f"of {tried[what]} new clients by {what}, {tried[f'{what} answered']} were answered")
    expect(tried["wss answered"] > 0, f"none of {tried['wss']} new clients by wss was answered")
    told = ", ".join(f"{tried[f'{what} answered']} of {tried[what]} by {what}" for what in ("http", "ws", "wss"))
    return f"TLS handshakes that stop after the ClientHello, {sent}, the last {OPEN:,} of them open; new clients served meanwhile: {told}"
