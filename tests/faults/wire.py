"""Bytes as a client sends and receives them, and the small words of every attack."""

import struct
import time

MASK = bytes(4)


def handshake(path="/ws/room"):
    return (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


def post(path, body, announced=None):
    """A request to publish, whose body may be another than it announces."""
    length = len(body) if announced is None else announced
    return f"POST /publish/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode() + body


def frame(first, payload):
    """A client's frame, masked with zeros, so that its payload stands as it is."""
    length = len(payload)
    if length < 126:
        head = bytes([first, 0x80 | length])
    elif length < 65536:
        head = bytes([first, 0xFE]) + struct.pack(">H", length)
    else:
        head = bytes([first, 0xFF]) + struct.pack(">Q", length)
    return head + MASK + payload


def received(wire):
    """The frames of a server, whole ones: their first byte and payload."""
    at, found = 0, []
    while at + 2 <= len(wire):
        length, head = wire[at + 1], 2
        if length == 126:
            length, head = int.from_bytes(wire[at + 2 : at + 4], "big"), 4
        elif length == 127:
            length, head = int.from_bytes(wire[at + 2 : at + 10], "big"), 10
        if at + head + length > len(wire):
            break
        found.append((wire[at], bytes(wire[at + head : at + head + length])))
        at += head + length
    return found


class Unexpected(Exception):
    """The server did what it should not."""


def expect(condition, sentence):
    if not condition:
        raise Unexpected(sentence)


def quietly(action):
    """A client's call, which the server may have answered by ending the connection."""
    try:
        return action()
    except OSError:
        return None


def loop(stop, body, pause=0.0):
    """At least once, so that an attack that was hardly begun has been made."""
    while True:
        body()
        if stop.wait(pause) if pause else stop.is_set():
            return


class Tally:
    """How many, and how many in a second."""

    def __init__(self):
        self.number, self.began = 0, time.monotonic()

    def __iadd__(self, more):
        self.number += more
        return self

    def __str__(self):
        return f"{self.number:,} ({self.number / (time.monotonic() - self.began):,.0f}/s)"
