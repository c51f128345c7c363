"""Hostile clients over HTTP: invalid requests, request smuggling, and publishers that do not
finish."""

import re
import time

from clients import answered
from wire import Counter, expect, handshake, loop, post, quietly, received

GREETING = handshake()
HEAD, REST = GREETING.split(b"\r\n", 1)
# Name, bytes, and the statuses that may answer them; None is an end of the connection without an
# answer.
INVALID_REQUESTS = [
    ("noise", bytes(range(128, 256)) * 512, {400}),
    # A ClientHello of TLS 1.2 or later, in its record.
    ("a TLS ClientHello", bytes.fromhex("16030100c8010000c40303") + bytes(194), {400}),
    ("an HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), {400, None}),
    ("a header of 1 MB", HEAD + b"\r\nX: " + b"x" * (1 << 20) + b"\r\n" + REST, {431}),
    ("10,000 headers", HEAD + b"\r\n" + b"X: x\r\n" * 10_000 + REST, {431}),
    ("an endless path", b"GET /ws/" + b"x" * (1 << 20), {414, 431}),
    ("only line ends", b"\r\n" * 100_000, {400, 431}),
    ("an absolute URI", GREETING.replace(b"/ws/room", b"http://h/ws/room"), {101}),
    ("no Host", GREETING.replace(b"Host: localhost\r\n", b""), {400}),
    ("two keys", HEAD + b"\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n" + REST, {400}),
    ("a body", HEAD + b"\r\nContent-Length: 5\r\n" + REST + b"hello", {400}),
    ("a NUL in a header", HEAD + b"\r\nX: \0\r\n" + REST, {400}),
    ("a folded header", HEAD + b"\r\nX: a\r\n b\r\n" + REST, {400}),
    ("a space before a colon", GREETING.replace(b"Host:", b"Host :"), {400}),
    ("HTTP/1.0", GREETING.replace(b"HTTP/1.1", b"HTTP/1.0"), {400}),
    ("CONNECT", b"CONNECT h:80 HTTP/1.1\r\nHost: localhost\r\n\r\n", {400, 404, 405}),
]

HIDDEN = post("smuggled", b"seen")


def marker(room):
    """A request that publishes the last message of a room and ends its connection."""
    return post(room, b"the end").replace(b"Host: localhost", b"Host: localhost\r\nConnection: close")


def publish(headers, body):
    return f"POST /publish/open HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n".encode() + body


# Requests whose length two readers may understand differently; a second request hides where one of
# them would see the end.
SMUGGLED = [
    (publish(f"Content-Length: {len(HIDDEN) + 5}\r\nTransfer-Encoding: chunked", b"0\r\n\r\n" + HIDDEN), {202, 400}),
    (publish(f"Transfer-Encoding: chunked\r\nContent-Length: {len(HIDDEN) + 5}", b"0\r\n\r\n" + HIDDEN), {202, 400}),
    (publish("Content-Length: 4\r\nTransfer-Encoding: chunked", b"%x\r\n%s\r\n0\r\n\r\n" % (len(HIDDEN), HIDDEN)), {202, 400}),
    (publish(f"Content-Length: 0\r\nContent-Length: {len(HIDDEN)}", HIDDEN), {400}),
    (publish(f"Content-Length: {len(HIDDEN)}\r\nContent-Length: 0", HIDDEN), {400}),
    (publish("Content-Length: 0, 4", HIDDEN), {400}),
    (publish("Content-Length: +0", HIDDEN), {400}),
    (publish("Content-Length: 99999999999999999999999", HIDDEN), {400}),
    (publish("Transfer-Encoding: xchunked", b"0\r\n\r\n" + HIDDEN), {400}),
    (publish("Transfer-Encoding: chunked, identity", b"0\r\n\r\n" + HIDDEN), {400}),
    (publish("Transfer-Encoding : chunked", b"0\r\n\r\n" + HIDDEN), {400}),
    (publish("Transfer-Encoding: chunked", b"fffffffffffffffff\r\n" + HIDDEN), {400}),
    (publish("Transfer-Encoding: chunked", b"3;" + b"x" * 70_000 + b"\r\n" + HIDDEN), {400}),
    (publish("Transfer-Encoding: chunked", b"0\n\n" + HIDDEN), {400}),
]


def statuses(answer):
    return [int(status) for status in re.findall(rb"(?:^|\n)HTTP/1\.[01] (\d+) ", answer)]


def asked(server, wire):
    """Everything that answers a request, until the server ends the connection; it may not let the
    client finish."""
    with server.connect() as stream:
        quietly(lambda: stream.sendall(wire))
        return answered(stream)[0]


def greeted(server, wire):
    """Sends `wire` and returns the beginning of the answer; the connection may stay open after
    it."""
    with server.connect() as stream:
        quietly(lambda: stream.sendall(wire))
        return quietly(lambda: stream.recv(4096)) or b""


def invalid_requests(server, stop):
    sent, met = Counter(), {}

    def once():
        nonlocal sent
        for name, wire, expected in INVALID_REQUESTS:
            status = (statuses(greeted(server, wire)) or [None])[0]
            expect(status in expected, f"{name} was answered with {status}, not one of {expected}")
            met[status] = met.get(status, 0) + 1
            sent += 1

    loop(stop, once)
    told = ", ".join(f"{status or 'no answer'} {number:,}" for status, number in sorted(met.items(), key=str))
    return f"{len(INVALID_REQUESTS)} kinds of invalid requests, from noise to a header of 1 MB, {sent}: {told}"


def smuggling(server, stop):
    watchers = {room: server.connect(f"/ws/{room}") for room in ("open", "smuggled")}
    sent, accepted, deadline = Counter(), 0, time.monotonic() + 60

    def once():
        nonlocal sent, accepted
        for wire, expected in SMUGGLED:
            given = statuses(asked(server, wire))
            expect(len(given) == 1 and given[0] in expected, f"{wire[:120]!r} was answered with {given}")
            accepted += given == [202]
            sent += 1

    loop(stop, once)
    for room in watchers:
        expect(statuses(asked(server, marker(room))) == [202], "no end")
    got = {}
    for room, stream in watchers.items():
        wire = b""
        while not wire.endswith(b"the end") and time.monotonic() < deadline:
            wire += stream.recv(1 << 16)
        got[room] = received(wire)
    expect(len(got["open"]) == accepted + 1, f"{accepted} were accepted, and {len(got['open']) - 1} have come")
    expect(len(got["smuggled"]) == 1, f"{len(got['smuggled']) - 1} requests were smuggled")
    return f"{len(SMUGGLED)} kinds of requests of ambiguous length, each with a second request inside, {sent}: {accepted} accepted as one message, none smuggled"


def missing_bodies(server, stop):
    """Bodies that are announced and arrive in part or not at all."""
    wires, made, late = [post("room", b"x" * length, announced=1000) for length in (0, 1, 999)], Counter(), 0

    def once():
        nonlocal made, late
        streams = [server.connect() for _ in range(500)]
        for index, stream in enumerate(streams):
            stream.sendall(wires[index % 3])
        for stream in streams:
            given = statuses(answered(stream)[0])
            expect(given == [408], f"a missing body was answered with {given}")
            late += 1
            stream.close()
        made += len(streams)

    loop(stop, once)
    return f"publishers that announce a body and do not send it, 500 at a time, {made}: 408 {late:,}, with --handshake-timeout 1s"


def truncated_bodies(server, stop):
    """Publishers that disconnect in the middle of a body: no subscriber may get any part of it."""
    watcher, whole = server.connect("/ws/cut"), post("cut", b"x" * 40_000)
    chunked = b"POST /publish/cut HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + b"5\r\nhello\r\n" * 1000
    wires, sent = [*[whole[:cut] for cut in range(100, len(whole), 4000)], whole[:-1], chunked, chunked + b"5\r\nhel"], Counter()

    last = []

    def once():
        nonlocal sent, last
        streams = [quietly(server.connect) for _ in wires]
        for stream, wire in zip(streams, wires):
            if stream:
                quietly(lambda: stream.sendall(wire))
                sent += 1
        # Half of the streams end as soon as they have sent their part. The other half ends one
        # round later, when the server has read it.
        [stream.close() for stream in filter(None, [*last, *streams[::2]])]
        last = streams[1::2]

    loop(stop, once)
    [stream.close() for stream in filter(None, last)]
    expect(statuses(asked(server, marker("cut"))) == [202], "no end")
    got = [message for message in received(watcher.recv(1 << 16)) if message[0] in (0x81, 0x82)]
    expect(got == [(0x81, b"the end")], f"of truncated bodies, {len(got)} messages were delivered")
    return f"publishers that disconnect in the middle of a body, {sent}"


def idle_connections(server, stop):
    """As many HTTP connections as may be open, each with a request every second. New clients send
    their handshake in two pieces."""
    limit, request = 256, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    requests, tried, admitted, round = Counter(), 0, 0, 0

    def ask(stream):
        quietly(lambda: stream.sendall(request))
        return quietly(lambda: stream.recv(4096))

    streams = [server.connect() for _ in range(limit)]
    [ask(stream) for stream in streams]

    def once():
        nonlocal requests, tried, admitted, round
        for index in range(round % 10, limit, 10):
            if not ask(streams[index]):
                streams[index] = server.connect()
            requests += 1
        new = [server.connect() for _ in range(32)]
        for piece in (GREETING[:20], GREETING[20:]):
            [quietly(lambda: stream.sendall(piece)) for stream in new]
            time.sleep(0.05)
        for stream in new:
            tried += 1
            admitted += statuses(quietly(lambda: stream.recv(4096)) or b"") == [101]
            stream.close()
        round += 1

    loop(stop, once)
    [stream.close() for stream in streams]
    expect(admitted == tried, f"of {tried} new clients, {admitted} were admitted")
    return f"{limit} HTTP connections, as many as may be open, each with a request every second, {requests}; {admitted:,} of {tried:,} new clients were admitted"
