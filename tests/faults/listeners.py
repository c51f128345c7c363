"""Clients that check every byte that they receive. Each is a thread and lists faults in `wrong`."""

import os
import socket
import struct
import threading
import time

from run import frame, handshake

TEXT, CLOSE, PING, PONG, MASKED = 1, 8, 9, 10, 0x100


def connect(address, path):
    """Connects and upgrades; returns the socket and the bytes behind the answer."""
    stream = socket.create_connection(address, 20)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.sendall(handshake(path))
    answer = b""
    while b"\r\n\r\n" not in answer:
        if not (piece := stream.recv(4096)):
            raise ConnectionError("no answer to a handshake")
        answer += piece
    head, _, rest = answer.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 101 "):
        raise ConnectionError(head.decode())
    stream.settimeout(None)
    return stream, bytearray(rest)


def take_frame(buffer):
    """Removes the first frame from the buffer if it is complete; returns its first byte and
    payload."""
    if len(buffer) < 2:
        return None
    length, start = buffer[1], 2
    if length & 0x80:
        return MASKED, b""
    if length == 126:
        length, start = int.from_bytes(buffer[2:4], "big"), 4
    elif length == 127:
        length, start = int.from_bytes(buffer[2:10], "big"), 10
    if len(buffer) < start + length:
        return None
    first, payload = buffer[0], bytes(buffer[start : start + length])
    del buffer[: start + length]
    return first, payload


class Client(threading.Thread):
    """A connected client. With `again` it reconnects after each disconnection, until it leaves."""

    def __init__(self, address, path, again=False, nice=10):
        super().__init__(daemon=True)
        self.address, self.path, self.again, self.nice = address, path, again, nice
        self.wrong, self.code, self.left, self.reset, self.partial = [], None, False, False, 0
        self.stream, self.buffer = None, bytearray()
        self.connect()
        self.start()

    def connect(self):
        while True:
            try:
                self.stream, self.buffer = connect(self.address, self.path)
                return
            except OSError:
                # The connection may have ended in the middle of the handshake.
                if not self.again:
                    raise
                if self.left:
                    return

    def run(self):
        os.nice(self.nice)
        while True:
            self.joined()
            while self.take_all() and self.receive():
                pass
            self.partial += bool(self.buffer)
            self.stream.close()
            if self.left or not self.again:
                return
            self.connect()

    def receive(self):
        """Reads once; False at the end of the stream."""
        try:
            piece = self.stream.recv(65536)
        except OSError:
            self.reset, piece = True, b""
        self.buffer += piece
        return bool(piece)

    def take_all(self):
        """Handles all complete frames; False after a frame that no server may send."""
        while taken := take_frame(self.buffer):
            first, payload = taken
            if self.code is not None:
                self.wrong.append("a frame after the close frame")
            elif first == 0x80 | TEXT:
                self.message(payload)
            elif first == 0x80 | PING:
                self.send(frame(0x80 | PONG, payload))
            elif first == 0x80 | CLOSE:
                (self.code,) = struct.unpack(">H", payload[:2])
                self.send(frame(0x80 | CLOSE, payload[:2]))
            else:
                self.wrong.append(f"an unexpected frame that begins with {first:#x}")
                return False
        return True

    def send(self, data):
        try:
            self.stream.sendall(data)
        except OSError:
            self.reset = True

    def leave(self):
        self.left = True
        try:
            self.stream.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def joined(self):
        """Called after each connection."""

    def message(self, payload):
        raise NotImplementedError


class Listener(Client):
    """Keeps the numbers of the load generator's messages in `spells`, one list for each
    connection."""

    def __init__(self, address, path, payload_bytes, again=False, nice=10):
        self.payload_bytes, self.spells = payload_bytes, []
        super().__init__(address, path, again, nice)

    def joined(self):
        self.spells.append([])

    def message(self, payload):
        self.spells[-1].append(int(payload[4:12], 16))
        if len(payload) != self.payload_bytes or payload[12:].strip(b"x"):
            self.wrong.append(f"a message that was never sent: {payload[:40]}")

    @property
    def got(self):
        return [number for spell in self.spells for number in spell]


class Echo(Client):
    """A client of /echo that sends the next message soon after the last one has come back."""

    def __init__(self, address, payload_bytes, again=False):
        self.payload_bytes, self.number, self.returned, self.quickest, self.enough = payload_bytes, 0, 0, 60.0, False
        super().__init__(address, "/echo", again)

    def joined(self):
        self.say()

    def say(self):
        self.number += 1
        self.said = f"{self.number:012}".encode().ljust(self.payload_bytes, b"e")
        self.since = time.monotonic()
        self.send(frame(0x80 | TEXT, self.said))

    def message(self, payload):
        self.returned += 1
        self.quickest = min(self.quickest, time.monotonic() - self.since)
        if payload != self.said:
            self.wrong.append(f"sent {self.said[:12]}, received {payload[:40]}")
        time.sleep(0.01)
        if not self.enough:
            self.say()
