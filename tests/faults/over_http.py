"""Hostile clients that never become a WebSocket: what is no handshake, and publishers that do not publish."""

import re
import time

from clients import answered
from wire import Tally, expect, handshake, loop, post, quietly, received

GREETING = handshake()
HEAD, REST = GREETING.split(b"\r\n", 1)
# What it is, its bytes, and the statuses that may answer it; None is an end without an answer.
GARBAGE = [
    ("noise", bytes(range(128, 256)) * 512, {400}),
    # A handshake record with a ClientHello of TLS 1.2 and later.
    ("a TLS ClientHello", bytes.fromhex("16030100c8010000c40303") + bytes(194), {400}),
    ("an HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), {400, None}),
    ("a header of 1 MB", HEAD + b"\r\nX: " + b"x" * (1 << 20) + b"\r\n" + REST, {431}),
    ("10,000 headers", HEAD + b"\r\n" + b"X: x\r\n" * 10_000 + REST, {431}),
    ("a path without end", b"GET /ws/" + b"x" * (1 << 20), {414, 431}),
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
    """The last message of a room, on a connection that ends with it."""
    return post(room, b"the end").replace(b"Host: localhost", b"Host: localhost\r\nConnection: close")


def publish(headers, body):
    return f"POST /publish/open HTTP/1.1\r\nHost: localhost\r\n{headers}\r\n\r\n".encode() + body


# Requests whose end two readers may see in different places; behind one of the ends is another request to publish.
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
    """Everything that answers a request, until the server ends the connection; it may not let the client finish."""
    with server.connect() as stream:
        quietly(lambda: stream.sendall(wire))
        return answered(stream)[0]


def greeted(server, wire):
    """The beginning of an answer: a 101 does not end a connection, nor do all refusals."""
    with server.connect() as stream:
        quietly(lambda: stream.sendall(wire))
        return quietly(lambda: stream.recv(4096)) or b""


def garbage(server, stop):
    sent, met = Tally(), {}

    def once():
        nonlocal sent
        for name, wire, expected in GARBAGE:
            status = (statuses(greeted(server, wire)) or [None])[0]
            expect(status in expected, f"{name} was answered with {status}, not one of {expected}")
            met[status] = met.get(status, 0) + 1
            sent += 1

    loop(stop, once)
    told = ", ".join(f"{status or 'no answer'} {number:,}" for status, number in sorted(met.items(), key=str))
    return f"{len(GARBAGE)} kinds of what is no handshake, from noise to a header of 1 MB, {sent}: {told}"


def smugglers(server, stop):
    watchers = {room: server.connect(f"/ws/{room}") for room in ("open", "smuggled")}
    sent, accepted, deadline = Tally(), 0, time.monotonic() + 60

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
    heard = {}
    for room, stream in watchers.items():
        wire = b""
        while not wire.endswith(b"the end") and time.monotonic() < deadline:
            wire += stream.recv(1 << 16)
        heard[room] = received(wire)
    expect(len(heard["open"]) == accepted + 1, f"{accepted} were accepted, and {len(heard['open']) - 1} have come")
    expect(len(heard["smuggled"]) == 1, f"{len(heard['smuggled']) - 1} requests were smuggled")
    return f"{len(SMUGGLED)} kinds of requests with two ends or none, with another request behind, {sent}: {accepted} accepted as one message, none smuggled"


def never_sent(server, stop):
    """Bodies that are announced and do not come, in part or at all."""
    wires, made, late = [post("room", b"x" * length, announced=1000) for length in (0, 1, 999)], Tally(), 0

    def once():
        nonlocal made, late
        streams = [server.connect() for _ in range(500)]
        for index, stream in enumerate(streams):
            stream.sendall(wires[index % 3])
        for stream in streams:
            given = statuses(answered(stream)[0])
            expect(given == [408], f"a body that does not come was answered with {given}")
            late += 1
            stream.close()
        made += len(streams)

    loop(stop, once)
    return f"publishers that announce a body and do not send it, 500 at a time, {made}: 408 {late:,}, with --handshake-timeout 1s"


def cut_bodies(server, stop):
    """Publishers that vanish in the middle of a body: nothing of it may be heard."""
    watcher, whole = server.connect("/ws/cut"), post("cut", b"x" * 40_000)
    chunked = b"POST /publish/cut HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + b"5\r\nhello\r\n" * 1000
    wires, sent = [*[whole[:cut] for cut in range(100, len(whole), 4000)], whole[:-1], chunked, chunked + b"5\r\nhel"], Tally()

    last = []

    def once():
        nonlocal sent, last
        streams = [quietly(server.connect) for _ in wires]
        for stream, wire in zip(streams, wires):
            if stream:
                quietly(lambda: stream.sendall(wire))
                sent += 1
        # Those of the last round, whose part has been read since; every other one ends as soon as it is sent.
        [stream.close() for stream in filter(None, [*last, *streams[::2]])]
        last = streams[1::2]

    loop(stop, once)
    [stream.close() for stream in filter(None, last)]
    expect(statuses(asked(server, marker("cut"))) == [202], "no end")
    heard = [message for message in received(watcher.recv(1 << 16)) if message[0] in (0x81, 0x82)]
    expect(heard == [(0x81, b"the end")], f"of bodies that were cut, {len(heard)} messages have come")
    return f"publishers that vanish in the middle of a body, {sent}"


def holders(server, stop):
    """As many as there are places, each of which asks again every second; newcomers say what they want in two pieces."""
    places, request = 256, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    held, came, entered, round = Tally(), 0, 0, 0

    def ask(stream):
        quietly(lambda: stream.sendall(request))
        return quietly(lambda: stream.recv(4096))

    streams = [server.connect() for _ in range(places)]
    [ask(stream) for stream in streams]

    def once():
        nonlocal held, came, entered, round
        for index in range(round % 10, places, 10):
            if not ask(streams[index]):
                streams[index] = server.connect()
            held += 1
        newcomers = [server.connect() for _ in range(32)]
        for piece in (GREETING[:20], GREETING[20:]):
            [quietly(lambda: stream.sendall(piece)) for stream in newcomers]
            time.sleep(0.05)
        for stream in newcomers:
            came += 1
            entered += statuses(quietly(lambda: stream.recv(4096)) or b"") == [101]
            stream.close()
        round += 1

    loop(stop, once)
    [stream.close() for stream in streams]
    expect(entered == came, f"of {came} newcomers, {entered} came in")
    return f"{places} idle clients on as many places, which ask again every second, {held}; {entered:,} of {came:,} newcomers came in"
