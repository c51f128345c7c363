"""Hostile clients. Each attack runs in a process of its own until it is told to stop, and returns a
sentence on what it did.

An attack checks the server's answers itself: `expect` fails the fault. Bytes are built before the
attack, so that it spends its time sending.
"""

import fcntl
import multiprocessing
import os
import signal
import socket
import struct
import subprocess
import sys
import termios
import time

from server import wait_until
from wire import MASK, Counter, Unexpected, expect, frame, handshake, loop, post, quietly, received

# Memory that the server's threads keep for their next allocations. The leak of the smallest of
# these faults would be several times larger.
HEAP_SLACK = 1024 * 1024
SAY = frame(0x81, b'{"event":"SAY","message":"hello"}')
FORK = multiprocessing.get_context("fork")


class Attack:
    """A running attack: its process, and a pipe for its result."""

    def __init__(self, server, act):
        self.stopping, (self.result, sender) = FORK.Event(), FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=self.run, args=(server, act, sender))
        self.process.start()
        sender.close()

    def run(self, server, act, sender):
        server.cores.attack()
        try:
            sender.send((act(server, self.stopping), []))
        except (Unexpected, OSError) as error:
            sender.send((None, [f"{act.__name__}: {error}"]))

    def stop(self):
        """Ends the attack; returns what it did, and what was wrong."""
        self.stopping.set()
        try:
            did = self.result.recv() if self.result.poll(60) else (None, ["the attack does not end"])
        except EOFError:
            did = (None, ["the attack crashed"])
        if did[0] is None and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGTERM)
        self.process.join()
        return did


def answered(stream, seconds=5):
    """Reads until the server ends the connection, or is silent for `seconds`; returns the bytes and
    whether the connection ended."""
    stream.settimeout(seconds)
    answer = b""
    try:
        while piece := stream.recv(1 << 16):
            answer += piece
    except TimeoutError:
        return answer, False
    except OSError:
        pass
    return answer, True


def gone(stream):
    """Whether the connection was reset, or no longer exists in the kernel."""
    info = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    # The first byte is the state; 7 is CLOSE.
    return info[0] == 7


def rush(server, wires, path="/ws/room"):
    """For each of `wires`: connects, sends it right behind a handshake, and closes after the first
    bytes of the answer."""
    streams = [quietly(server.connect) for _ in wires]
    for stream, wire in zip(streams, wires):
        if stream:
            quietly(lambda: stream.sendall(handshake(path) + wire))
    for stream in filter(None, streams):
        quietly(lambda: stream.recv(4096))
        stream.close()


def nothing(server, stop):
    stop.wait()
    return "nothing: the difference between two quiet runs"


def slowloris(server, stop):
    streams, sent = [server.connect() for _ in range(500)], Counter()

    def once():
        nonlocal sent
        for stream in streams:
            quietly(lambda: stream.send(b"G"))
        sent += len(streams)

    loop(stop, once, 0.2)
    return f"500 connections, a byte of a request head every 0.2 s on each, {sent}"


def half_open(server, stop):
    """Opens more unfinished handshakes than allowed, again and again: the server has to close the
    oldest."""
    streams, opened = [], Counter()

    def once():
        nonlocal opened
        for _ in range(100 if streams else 5000):
            if stream := quietly(server.connect):
                quietly(lambda: stream.send(b"GET /ws/room HTTP/1.1\r\nHost: localhost\r\n"))
                streams.append(stream)
                opened += 1
        while len(streams) > 5000:
            streams.pop(0).close()

    loop(stop, once)
    return f"handshakes that stop in the middle of the head, {opened}, the last 5,000 of them open"


def truncated_frames(server, stop):
    wires, sent = [SAY[:cut] for cut in range(len(SAY))], Counter()

    def once():
        nonlocal sent
        rush(server, wires)
        sent += len(wires)

    loop(stop, once)
    return f"frames, truncated at each possible byte, {sent}"


def tiny_fragments(server, stop):
    pieces, sent = frame(0x01, b"x") + frame(0x00, b"x") * 2000, Counter()

    def once():
        nonlocal sent
        rush(server, [pieces] * 10)
        sent += 10 * 2001

    loop(stop, once)
    return f"fragments of one byte, {sent}, a thousand more than the limit for one message"


def false_lengths(server, stop):
    heads = [bytes([0x81, 0xFF]) + struct.pack(">Q", size) + MASK for size in (1 << 62, (1 << 63) + 1, 70_000, 126, 65_536)]
    wires, sent = [head + b"x" * 100 for head in heads] * 4, Counter()

    def once():
        nonlocal sent
        rush(server, wires)
        sent += len(wires)

    loop(stop, once)
    return f"headers that claim up to 2^63 bytes, {sent}"


class Flooder:
    """A connection that sends the same bytes as fast as the server takes them, and reconnects when
    it is closed."""

    def __init__(self, server, burst, reads):
        self.server, self.burst, self.reads, self.answers = server, burst, reads, 0
        self.connect()

    def connect(self):
        self.stream = self.server.connect("/ws/room", None if self.reads else 2048)
        self.stream.setblocking(False)
        self.rest = self.burst

    def unread(self):
        """Number of bytes in the client's receive buffer."""
        return int.from_bytes(fcntl.ioctl(self.stream, termios.FIONREAD, bytes(4)), sys.byteorder)

    def turn(self):
        """Sends and reads once without blocking; returns the number of bytes that the server
        took."""
        taken = 0
        try:
            taken = self.stream.send(self.rest)
            # The next turn sends the rest of a frame that the server took in part.
            self.rest = self.rest[taken:] or self.burst
        except BlockingIOError:
            pass
        except OSError:
            self.stream.close()
            self.connect()
        try:
            if self.reads and not (answers := self.stream.recv(1 << 18)):
                self.stream.close()
                self.connect()
            elif self.reads:
                self.answers += len(answers)
        except OSError:
            pass
        return taken


def flood(frames, noun, connections=5, reads=True, heap_max=None):
    """A flood of `frames`. If the answers are not read, the heap may grow by `heap_max` bytes at
    most."""
    burst = b"".join(frames) * (65536 // len(b"".join(frames)))
    frame_bytes = len(b"".join(frames)) / len(frames)

    def act(server, stop):
        flooders, sent = [Flooder(server, burst, reads) for _ in range(connections)], Counter()
        before, most, looked = server.heap(), 0, time.monotonic()

        def look():
            nonlocal most, looked
            most, looked = max(most, server.heap() - before), time.monotonic()

        def once():
            nonlocal sent
            taken = sum(flooder.turn() for flooder in flooders)
            sent += int(taken / frame_bytes)
            if time.monotonic() > looked + 0.5:
                look()
            if not taken:
                stop.wait(0.0005)

        loop(stop, once)
        if reads:
            expect(sum(flooder.answers for flooder in flooders), "nothing was answered")
            return f"{noun} on {connections} connections, {sent}"
        look()
        full = sum(flooder.unread() > 1000 for flooder in flooders)
        expect(full > connections // 10, f"only {full} clients have answers that they do not read")
        expect(most < heap_max, f"the heap grew by {most // 1024} KiB while nobody read the answers")
        return f"{noun} on {connections} connections that read no answer, {sent}; the heap grew by {most // 1024} KiB at most meanwhile"

    act.__name__ = f"flood of {noun}"
    return act


def never_reading(number):
    def act(server, stop):
        """Fills their backlogs through a channel without other subscribers."""
        publisher, streams, came, message = server.connect(), [], Counter(), post("unread", b"x" * 60_000)

        def once():
            nonlocal came
            streams[:] = [stream for stream in streams if not gone(stream)]
            for _ in range(number - len(streams)):
                streams.append(server.connect("/ws/bystanders?channel=unread", 2048))
                came += 1
            for _ in range(2):
                publisher.sendall(message)
                publisher.recv(4096)

        loop(stop, once, 0.2)
        return f"{number} clients in the bystanders' room that never read and reconnect when they are closed: {came}"

    act.__name__ = "never reading"
    return act


def idle_clients(server, number, room):
    """Clients that do nothing, in a process that can be killed."""
    words = ["idle", "--connections", str(number), "--duration", "1h", "--url", server.url(room)]
    return subprocess.Popen(server.command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def mass_disconnect(server, stop):
    """10,000 clients disconnect at once, again and again, while a pass to them is running.

    Most of them are in a channel of their own: in the bystanders' channel they would make its
    passes twenty times as long, which is not the effect of the disconnection."""
    publisher, left, present = server.connect(), Counter(), server.metrics()["hydrant_connections"]

    def once():
        nonlocal left
        processes = [idle_clients(server, 9_950, "idle"), idle_clients(server, 50, "bystanders")]
        try:
            wait_until(lambda: server.metrics()["hydrant_connections"] >= 10_200, 20)
            here = server.metrics()["hydrant_connections"]
            publisher.sendall(post("idle", b"x" * 200) * 2)
        finally:
            [each.kill() for each in processes]
            [each.wait() for each in processes]
        publisher.recv(4096)
        expect(here >= 10_000, f"only {here} were connected")
        left += 10_000
        wait_until(lambda: server.metrics()["hydrant_connections"] <= present, 10)

    loop(stop, once)
    return f"10,000 clients disconnected at the same instant, {left.number // 10_000} times, 50 of them from the bystanders' room"


def storm(server, stop):
    words = ["churn", "--connections", "1000", "--churn-rate", "2000", "--duration", "1h", "--url", server.url("storm"), "--rate", "1"]
    churning = subprocess.Popen(server.command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        stop.wait()
        left = server.metrics()['hydrant_closed_total{reason="by_client"}']
    finally:
        churning.kill()
        churning.wait()
    expect(left > 100, f"only {left} have left")
    return f"2,000 clients per second leave and join, {left:,} in all"


def many_channels(server, stop):
    """Clients with as many channels as allowed, each of their own, which they leave and join
    without end."""
    clients, most, moved = 200, 64, Counter()
    event = lambda name, channel: frame(0x81, b'{"event":"%s","channel":"%s"}' % (name, channel))
    streams = []
    for client in range(clients):
        names = [b"own-%d-%d" % (client, number) for number in range(most)]
        stream = server.connect("/ws?" + "&".join(f"channel={name.decode()}" for name in names))
        stream.setblocking(False)
        # The pong comes when all of this has been executed; then the next round begins.
        burst = b"".join(event(b"UNSUBSCRIBE", name) + event(b"SUBSCRIBE", name) for name in names) + frame(0x89, b"")
        streams.append((stream, burst))
    series = lambda: sum(name.startswith("hydrant_channel_frames_matched_total") for name in server.metrics())
    shown = series()
    expect(shown >= clients * most, f"only {shown} channels exist")
    with server.connect("/ws?" + "&".join(f"channel=one-{number}" for number in range(most - 1))) as full:
        full.sendall(event(b"SUBSCRIBE", b"the-last") + event(b"SUBSCRIBE", b"one-too-many"))
        answers = b""
        while b'"one-too-many"}' not in answers and (more := full.recv(4096)):
            answers += more
        expect(b"at most 64 channels" in answers, "a client has more channels than it may have")
    for stream, burst in streams:
        stream.send(burst)

    def once():
        nonlocal moved
        for stream, burst in streams:
            # No acknowledgement has this byte: it is the first of the pong.
            if b"\x8a" in (quietly(lambda: stream.recv(65536)) or b""):
                moved += 2 * most
                stream.send(burst)

    loop(stop, once, 0.001)
    return f"{clients} clients, each unsubscribing from and subscribing to {most} channels of its own, {moved}"


def too_many(server, stop):
    streams, tried = [], Counter()

    def once():
        nonlocal tried
        tried += 1
        if stream := quietly(server.connect):
            streams.append(stream)
        if len(streams) > 1500:
            stop.wait(0.1)

    loop(stop, once)
    # The connections with the least progress have given way to this one.
    expect(server.get("/healthz") == "ok\n", "no answer while the files are used up")
    expect("cannot accept" not in server.said(), "new clients had to wait for files")
    [stream.close() for stream in streams]
    return f"{len(streams):,} connections under a limit of 1,000 open files"


def memory_hogs(server, stop):
    slow = [server.connect(f"/ws/hog{room}", 2048) for room in range(20)]
    messages, sent = [post(f"hog{room}", b"x" * 15_000) for room in range(20)], Counter()

    def once():
        nonlocal sent
        stream = server.connect()
        for message in messages:
            stream.sendall(message)
            quietly(lambda: stream.recv(4096))
            sent += 1
        stream.close()
        # While the heap is full, the server rejects new clients and counts them.
        quietly(lambda: server.connect("/ws/new").close())

    loop(stop, once, 0.05)
    [stream.close() for stream in slow]
    return f"messages of 15 kB for 20 clients that never read, each in its own room, {sent}"


def sends_after_close(server, stop):
    """Sends a close frame, and behind it messages for the whole room and protocol errors."""
    wire, sent, ends = frame(0x88, struct.pack(">H", 1000)) + (SAY + frame(0x89, b"x") + frame(0xF3, b"")) * 500, Counter(), 0

    def once():
        nonlocal sent, ends
        streams = [server.connect("/ws/bystanders") for _ in range(20)]
        for stream in streams:
            quietly(lambda: [stream.sendall(wire) for _ in range(3)])
        for stream in streams:
            answer, ended = answered(stream)
            # The surplus bytes reset the socket, which may discard the answer.
            expect(ended, "the server keeps a connection that both sides have closed")
            expect(all(first in (0x88, 0x81, 0x89) for first, _ in received(answer)), "a frame after the close frame was answered")
            ends += any(first == 0x88 for first, _ in received(answer))
            stream.close()
        sent += len(streams)

    loop(stop, once)
    says = server.metrics()["hydrant_says_total"]
    expect(says == 0, f"{says} messages after a close frame were accepted")
    return f"clients that send 1,500 more messages after their close frame, {sent}"


def never_closes(server, stop):
    """The server sends a close frame, for two reasons; half of the clients stay silent, half go on
    sending."""
    leave, broken = frame(0x81, b'{"event":"LEAVE"}'), frame(0xF1, b"")
    made, longest = Counter(), 0.0

    def once():
        nonlocal made, longest
        streams = [server.connect("/ws/room") for _ in range(200)]
        began = time.monotonic()
        for index, stream in enumerate(streams):
            stream.sendall(leave if index % 2 else broken)
        for stream in streams:
            expect(received(stream.recv(4096))[0][0] == 0x88, "no close frame has come")
            stream.setblocking(False)
        open_ones = list(streams)
        while open_ones and time.monotonic() < began + 10:
            for stream in open_ones[::2]:
                quietly(lambda: stream.send(SAY * 100))
            # Waits for the reset, not for the end of the stream: after a protocol error the latter
            # comes at once.
            open_ones = [stream for stream in open_ones if not gone(stream)]
            time.sleep(0.01)
        took = time.monotonic() - began
        expect(not open_ones, f"{len(open_ones)} closing handshakes have not ended in 10 s")
        expect(took > 0.5, f"they were closed after {took:.1f} s, before --close-timeout")
        longest = max(longest, took)
        made += len(streams)
        [stream.close() for stream in streams]

    loop(stop, once)
    return f"closing handshakes that the client never completes, {made}; closed by the server after at most {longest:.1f} s, with --close-timeout 1s"
