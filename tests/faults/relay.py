"""A TCP relay on loopback that delays, splits or ends connections; two threads for each connection.

A fault is a function with two arguments: a piece as it arrived, and the function that sends a piece
on. Each direction of each connection gets a fault of its own, which may keep state. A fault raises
`Cut` to end the connection.
"""

import os
import random
import socket
import struct
import threading
import time


class Cut(Exception):
    """The connection ends here, with a reset or with a FIN."""

    def __init__(self, reset):
        super().__init__()
        self.reset = reset


def plain():
    return lambda piece, send: send(piece)


def delayed(fixed, jitter):
    """Delays each piece by `fixed` seconds plus a random time up to `jitter` seconds."""

    def make():
        def fault(piece, send):
            time.sleep(fixed + random.uniform(0, jitter))
            send(piece)

        return fault

    return make


def split(most):
    """Splits each piece into segments of 1 to `most` bytes."""

    def make():
        def fault(piece, send):
            while piece:
                length = random.randint(1, most)
                send(piece[:length])
                piece = piece[length:]
                time.sleep(0)

        return fault

    return make


def cut(least, most, reset):
    """Ends the connection after a random number of bytes between `least` and `most`."""

    def make():
        left = random.randint(least, most)

        def fault(piece, send):
            nonlocal left
            send(piece[:left])
            left -= len(piece)
            if left <= 0:
                raise Cut(reset)

        return fault

    return make


class Stall:
    """Holds all bytes between `begin` and `end`, then passes them on at once."""

    def __init__(self):
        self.open = threading.Event()
        self.begin, self.end = self.open.clear, self.open.set
        self.end()

    def __call__(self):
        def fault(piece, send):
            self.open.wait()
            send(piece)

        return fault


class Relay:
    """Listens on a free port, and opens a connection to the server for each that it accepts."""

    def __init__(self, server, down=plain, up=plain, buffer_bytes=None):
        self.server, self.down, self.up, self.buffer_bytes = server, down, up, buffer_bytes
        self.cuts, self.pieces, self.streams, self.lock = 0, 0, [], threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self.address = self.listener.getsockname()
        threading.Thread(target=self.accept, daemon=True).start()

    def accept(self):
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            server = socket.socket()
            if self.buffer_bytes:
                server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, self.buffer_bytes)
                client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self.buffer_bytes)
            server.connect(self.server)
            for stream in (client, server):
                # Without delay, so that each piece becomes a segment.
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.streams += client, server
            for source, target, fault in ((server, client, self.down), (client, server, self.up)):
                threading.Thread(target=self.pass_on, args=(source, target, fault()), daemon=True).start()

    def pass_on(self, source, target, fault):
        # The relay has a lower priority than the server and the bystanders, whose delay is
        # measured.
        os.nice(10)

        def send(piece):
            target.sendall(piece)
            self.pieces += 1

        try:
            while piece := source.recv(65536):
                fault(piece, send)
            target.shutdown(socket.SHUT_WR)
        except Cut as end:
            with self.lock:
                self.cuts += 1
            self.end(source, target, end.reset)
        except OSError:
            # One side is closed: close the other.
            self.end(source, target, True)

    def end(self, source, target, reset):
        for stream in (source, target):
            try:
                if reset:
                    # Linger 0 makes close send a reset. The shutdown wakes the other thread, which
                    # then finds the socket closed.
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    stream.shutdown(socket.SHUT_RD)
                    stream.close()
                else:
                    stream.shutdown(socket.SHUT_WR)
            except OSError:
                pass

    def close(self):
        if self.listener.fileno() != -1:
            # Wakes the accept thread.
            self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
        for stream in self.streams:
            try:
                # Wakes the threads that use the socket; otherwise they would keep it open.
                stream.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            stream.close()
