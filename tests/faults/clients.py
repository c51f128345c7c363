"""Hostile clients: each attack does its worst until told to stop, in a process of its own, and says what it did.

What it expects of the server it checks itself: `expect` fails the fault. What it sends is built before it is sent.
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

from server import settled
from wire import MASK, Tally, Unexpected, expect, frame, handshake, loop, post, quietly, received

# What threads of the server keep for their next allocations; a leak of the smallest of these faults is several times that.
HEAP_SLACK = 1024 * 1024
SAY = frame(0x81, b'{"event":"SAY","message":"hello"}')
FORK = multiprocessing.get_context("fork")


class Attack:
    """An attack under way: its process, and what it told at its end."""

    def __init__(self, server, act):
        self.stopping, (self.told, telling) = FORK.Event(), FORK.Pipe(duplex=False)
        self.process = FORK.Process(target=self.run, args=(server, act, telling))
        self.process.start()
        telling.close()

    def run(self, server, act, telling):
        server.cores.attack()
        try:
            telling.send((act(server, self.stopping), []))
        except (Unexpected, OSError) as error:
            telling.send((None, [f"{act.__name__}: {error}"]))

    def stop(self):
        """What it did, and what was wrong with it."""
        self.stopping.set()
        try:
            did = self.told.recv() if self.told.poll(60) else (None, ["the attack does not end"])
        except EOFError:
            did = (None, ["the attack broke down"])
        if did[0] is None and self.process.is_alive():
            os.kill(self.process.pid, signal.SIGTERM)
        self.process.join()
        return did


def answered(stream, seconds=5):
    """Everything until the server ends the connection, or says nothing for so long; and whether it ended it."""
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
    """Whether the peer has reset the connection, or the kernel has forgotten it."""
    info = stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    # Its first byte is the state: 7 is CLOSE.
    return info[0] == 7


def rush(server, wires, path="/ws/room"):
    """A connection for each piece of wire, which travels behind its handshake; closed when the server has begun to answer."""
    streams = [quietly(server.connect) for _ in wires]
    for stream, wire in zip(streams, wires):
        if stream:
            quietly(lambda: stream.sendall(handshake(path) + wire))
    for stream in filter(None, streams):
        quietly(lambda: stream.recv(4096))
        stream.close()


def nothing(server, stop):
    stop.wait()
    return "nothing: what two quiet runs differ by"


def slowloris(server, stop):
    streams, sent = [server.connect() for _ in range(500)], Tally()

    def once():
        nonlocal sent
        for stream in streams:
            quietly(lambda: stream.send(b"G"))
        sent += len(streams)

    loop(stop, once, 0.2)
    return f"500 connections, a byte of a request head every 0.2 s on each, {sent}"


def half_open(server, stop):
    """More than may be unfinished, at once and then again and again: the older ones have to go."""
    streams, opened = [], Tally()

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
    return f"handshakes that never end, {opened}, the last 5,000 of them open"


def cut_frames(server, stop):
    wires, sent = [SAY[:cut] for cut in range(len(SAY))], Tally()

    def once():
        nonlocal sent
        rush(server, wires)
        sent += len(wires)

    loop(stop, once)
    return f"frames, cut at every byte, {sent}"


def tiny_fragments(server, stop):
    pieces, sent = frame(0x01, b"x") + frame(0x00, b"x") * 2000, Tally()

    def once():
        nonlocal sent
        rush(server, [pieces] * 10)
        sent += 10 * 2001

    loop(stop, once)
    return f"fragments of one byte, {sent}, a thousand more in a message than may be"


def lying_lengths(server, stop):
    lies = [bytes([0x81, 0xFF]) + struct.pack(">Q", size) + MASK for size in (1 << 62, (1 << 63) + 1, 70_000, 126, 65_536)]
    wires, sent = [lie + b"x" * 100 for lie in lies] * 4, Tally()

    def once():
        nonlocal sent
        rush(server, wires)
        sent += len(wires)

    loop(stop, once)
    return f"headers that claim up to 2^63 bytes, {sent}"


class Flooder:
    """A connection that sends the same for ever, as fast as the server takes it, and comes back when it is closed."""

    def __init__(self, server, burst, reads):
        self.server, self.burst, self.reads, self.answers = server, burst, reads, 0
        self.connect()

    def connect(self):
        self.stream = self.server.connect("/ws/room", None if self.reads else 2048)
        self.stream.setblocking(False)
        self.rest = self.burst

    def unread(self):
        """The number of bytes that wait for the client."""
        return int.from_bytes(fcntl.ioctl(self.stream, termios.FIONREAD, bytes(4)), sys.byteorder)

    def turn(self):
        """The number of bytes that the server took."""
        taken = 0
        try:
            taken = self.stream.send(self.rest)
            # A frame that was taken in part is finished with the next turn.
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
    """A flood of `frames`; the heap may not grow by more than `heap_max` bytes while nobody reads the answers."""
    burst = b"".join(frames) * (65536 // len(b"".join(frames)))
    frame_bytes = len(b"".join(frames)) / len(frames)

    def act(server, stop):
        flooders, sent = [Flooder(server, burst, reads) for _ in range(connections)], Tally()
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
        """Their backlogs are filled by a channel that nobody else hears."""
        publisher, streams, came, message = server.connect(), [], Tally(), post("deaf", b"x" * 60_000)

        def once():
            nonlocal came
            streams[:] = [stream for stream in streams if not gone(stream)]
            for _ in range(number - len(streams)):
                streams.append(server.connect("/ws/bystanders?channel=deaf", 2048))
                came += 1
            for _ in range(2):
                publisher.sendall(message)
                publisher.recv(4096)

        loop(stop, once, 0.2)
        return f"{number} clients in the bystanders' room that never read; who is closed comes back: {came}"

    act.__name__ = "never reading"
    return act


def crowd(server, number, room):
    """Clients that do nothing, in a process that can be killed."""
    words = ["idle", "--connections", str(number), "--duration", "1h", "--url", server.url(room)]
    return subprocess.Popen(server.command(*words), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def mass_disconnect(server, stop):
    """Again and again, and most of them in a room of their own, in which a pass is under way: in the bystanders' room they
    would make its passes twenty times as long, which says nothing about how they go."""
    publisher, gone, present = server.connect(), Tally(), server.metrics()["hydrant_connections"]

    def once():
        nonlocal gone
        crowds = [crowd(server, 9_950, "crowd"), crowd(server, 50, "bystanders")]
        try:
            settled(lambda: server.metrics()["hydrant_connections"] >= 10_200, 20)
            here = server.metrics()["hydrant_connections"]
            publisher.sendall(post("crowd", b"x" * 200) * 2)
        finally:
            [each.kill() for each in crowds]
            [each.wait() for each in crowds]
        publisher.recv(4096)
        expect(here >= 10_000, f"only {here} were there to leave")
        gone += 10_000
        settled(lambda: server.metrics()["hydrant_connections"] <= present, 10)

    loop(stop, once)
    return f"10,000 gone in the same instant, {gone.number // 10_000} times, 50 of them from the bystanders' room"


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
    return f"2,000 leave and join in a second, {left:,} in all"


def hoarders(server, stop):
    """As many channels as a client may have, each a channel of its own, left and joined without end."""
    clients, most, moved = 200, 64, Tally()
    event = lambda name, channel: frame(0x81, b'{"event":"%s","channel":"%s"}' % (name, channel))
    streams = []
    for client in range(clients):
        names = [b"hoard-%d-%d" % (client, number) for number in range(most)]
        stream = server.connect("/ws?" + "&".join(f"channel={name.decode()}" for name in names))
        stream.setblocking(False)
        # A pong tells that all of it has been carried out: then comes the next round.
        burst = b"".join(event(b"UNSUBSCRIBE", name) + event(b"SUBSCRIBE", name) for name in names) + frame(0x89, b"")
        streams.append((stream, burst))
    series = lambda: sum(name.startswith("hydrant_channel_frames_matched_total") for name in server.metrics())
    shown = series()
    expect(shown >= clients * most, f"only {shown} channels are there")
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
    return f"{clients} clients with {most} channels each that nobody else has, left and joined, {moved}"


def too_many(server, stop):
    streams, tried = [], Tally()

    def once():
        nonlocal tried
        tried += 1
        if stream := quietly(server.connect):
            streams.append(stream)
        if len(streams) > 1500:
            stop.wait(0.1)

    loop(stop, once)
    expect("cannot accept" in server.said(), "there were files for all of them")
    [stream.close() for stream in streams]
    return f"{len(streams):,} connections where 1,000 files may be open"


def memory_eaters(server, stop):
    slow = [server.connect(f"/ws/eater{room}", 2048) for room in range(20)]
    messages, sent = [post(f"eater{room}", b"x" * 15_000) for room in range(20)], Tally()

    def once():
        nonlocal sent
        stream = server.connect()
        for message in messages:
            stream.sendall(message)
            quietly(lambda: stream.recv(4096))
            sent += 1
        stream.close()
        # Whoever comes while the heap is full is told so.
        quietly(lambda: server.connect("/ws/newcomers").close())

    loop(stop, once, 0.05)
    [stream.close() for stream in slow]
    return f"messages of 15 kB for 20 clients that never read, in a room each, {sent}"


def sends_after_close(server, stop):
    """A close frame, and behind it what would be heard by everybody in the room, and what breaks the protocol."""
    wire, sent, ends = frame(0x88, struct.pack(">H", 1000)) + (SAY + frame(0x89, b"x") + frame(0xF3, b"")) * 500, Tally(), 0

    def once():
        nonlocal sent, ends
        streams = [server.connect("/ws/bystanders") for _ in range(20)]
        for stream in streams:
            quietly(lambda: [stream.sendall(wire) for _ in range(3)])
        for stream in streams:
            answer, ended = answered(stream)
            # What it has sent too much resets the socket, and that may take the answer with it.
            expect(ended, "the server goes on with a connection that both have closed")
            expect(all(first in (0x88, 0x81, 0x89) for first, _ in received(answer)), "something was answered behind the close frame")
            ends += any(first == 0x88 for first, _ in received(answer))
            stream.close()
        sent += len(streams)

    loop(stop, once)
    says = server.metrics()["hydrant_says_total"]
    expect(says == 0, f"{says} messages behind a close frame were taken")
    return f"clients that send 1,500 messages more behind their close frame, {sent}"


def never_closes(server, stop):
    """The server closes, for two reasons, and the client does not: half of them say nothing more, half go on sending."""
    leave, broken = frame(0x81, b'{"event":"LEAVE"}'), frame(0xF1, b"")
    made, longest = Tally(), 0.0

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
            # A reset, and not the end of the stream: that one comes at once to who broke the protocol.
            open_ones = [stream for stream in open_ones if not gone(stream)]
            time.sleep(0.01)
        took = time.monotonic() - began
        expect(not open_ones, f"{len(open_ones)} closing handshakes have not ended in 10 s")
        expect(took > 0.5, f"they were cut after {took:.1f} s, before --close-timeout")
        longest = max(longest, took)
        made += len(streams)
        [stream.close() for stream in streams]

    loop(stop, once)
    return f"closing handshakes that the client never ends, {made}; cut after {longest:.1f} s at the latest, with --close-timeout 1s"
