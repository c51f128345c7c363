"""A TCP relay on loopback that passes bytes on as badly as it is told to, in two threads for each connection.

What it does to a stream is a fault: a function that gets the pieces as they come and the call that sends one on. A fault is
made anew for each direction of each connection, so that it may count. `Cut` ends the connection.
"""

import os
import random
import socket
import struct
import threading
import time


class Cut(Exception):
    """The connection ends here, with a reset or, kindly, with the end of the stream."""

    def __init__(self, reset):
        super().__init__()
        self.reset = reset


def plain():
    return lambda piece, send: send(piece)


def delayed(fixed, jitter):
    """Everything comes so many seconds later, and up to so many more."""

    def make():
        def fault(piece, send):
            time.sleep(fixed + random.uniform(0, jitter))
            send(piece)

        return fault

    return make


def dribbled(most):
    """In pieces of one byte to so many."""

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
    """After so many bytes, drawn at random."""

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
    """Nothing passes between `begin` and `end`; then everything at once."""

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
    """Listens on a port of its own, and for each connection opens one to the server."""

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
                # A piece is a segment.
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.streams += client, server
            for source, target, fault in ((server, client, self.down), (client, server, self.up)):
                threading.Thread(target=self.pass_on, args=(source, target, fault()), daemon=True).start()

    def pass_on(self, source, target, fault):
        # Whoever plays the network keeps no core from those whose time is taken.
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
            self.part(source, target, end.reset)
        except OSError:
            # One side has gone: so does the other.
            self.part(source, target, True)

    def part(self, source, target, reset):
        for stream in (source, target):
            try:
                if reset:
                    # Closed this way, a socket is reset; the other thread wakes up from its call, and finds it closed.
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    stream.shutdown(socket.SHUT_RD)
                    stream.close()
                else:
                    stream.shutdown(socket.SHUT_WR)
            except OSError:
                pass

    def close(self):
        if self.listener.fileno() != -1:
            # Wakes up the thread that accepts.
            self.listener.shutdown(socket.SHUT_RDWR)
            self.listener.close()
        for stream in self.streams:
            try:
                # Wakes up whoever passes on from or to it; without that, it would stay open for those.
                stream.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            stream.close()
