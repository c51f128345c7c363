"""Encodes and decodes the bytes of a client, and holds the small helpers that every attack uses."""

import struct
import time

MASK = bytes(4)


def handshake(path="/ws/room"):
    return (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


def post(path, body, announced=None):
    """A request to publish. `announced` is a Content-Length that differs from the body's."""
    length = len(body) if announced is None else announced
    return f"POST /publish/{path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode() + body


def frame(first, payload):
    """A frame of a client, masked with zeros, so that its payload stays readable."""
    length = len(payload)
    if length < 126:
        head = bytes([first, 0x80 | length])
    elif length < 65536:
        head = bytes([first, 0xFE]) + struct.pack(">H", length)
    else:
        head = bytes([first, 0xFF]) + struct.pack(">Q", length)
    return head + MASK + payload


def received(wire):
    """The complete frames of a server in `wire`: first byte and payload of each."""
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
    """The server did something wrong."""


def expect(condition, sentence):
    if not condition:
        raise Unexpected(sentence)


def quietly(action):
    """Runs a client's call; None if the server has ended the connection."""
    try:
        return action()
    except OSError:
        return None


def loop(stop, body, pause=0.0):
    """Repeats `body` until `stop` is set, but at least once, so that every attack has happened."""
    while True:
        body()
        if stop.wait(pause) if pause else stop.is_set():
            return


class Counter:
    """A counter that prints its number and its rate per second."""

    def __init__(self):
        self.number, self.began = 0, time.monotonic()

    def __iadd__(self, more):
        self.number += more
        return self

    def __str__(self):
        return f"{self.number:,} ({self.number / (time.monotonic() - self.began):,.0f}/s)"
