"""The end of the server under load: SIGTERM, and SIGKILL with an immediate restart on the same
port.

The load generator treats every disconnection as a fault, so the bystanders here are clients of this
file. They keep all messages, which are compared with the answers that the publishers got.
"""

import re
import selectors
import signal
import socket
import threading
import time

from clients import FORK
from over_http import greeted, statuses
from server import Server, wait_until
from wire import frame, handshake, post, quietly, received

CLIENTS = 50
GOING_AWAY = b"server is shutting down"


class Life:
    """One connection of a client, from the 101 to its end."""

    def __init__(self, stream):
        self.stream, self.wire, self.began = stream, bytearray(), time.monotonic()
        self.first = self.ended = None

    def messages(self):
        return [payload for first, payload in received(self.wire) if first == 0x81]

    def close_code(self):
        return next((int.from_bytes(payload[:2], "big") for first, payload in received(self.wire) if first == 0x88), None)


class Subscribers:
    """Clients that keep all messages, and reconnect after a disconnection if `reconnect` is set."""

    def __init__(self, server, reconnect):
        self.address, self.reconnect, self.stopping = server.address, reconnect, False
        self.lives = [[Life(server.connect("/ws/bystanders"))] for _ in range(CLIENTS)]
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        selector, away = selectors.DefaultSelector(), []
        watch = lambda lives: selector.register(lives[-1].stream, selectors.EVENT_READ, lives)
        for lives in self.lives:
            watch(lives)
        while not self.stopping:
            for key, _ in selector.select(0.005):
                life = key.data[-1]
                piece = quietly(lambda: life.stream.recv(1 << 18))
                if piece:
                    life.first = life.first or time.monotonic()
                    life.wire += piece
                    if GOING_AWAY in piece:
                        quietly(lambda: life.stream.send(frame(0x88, (1001).to_bytes(2, "big"))))
                    continue
                life.ended = time.monotonic()
                selector.unregister(life.stream)
                life.stream.close()
                if self.reconnect:
                    away.append(key.data)
            for lives in away[:]:
                if stream := quietly(self.connect):
                    lives.append(Life(stream))
                    watch(lives)
                    away.remove(lives)

    def connect(self):
        stream = socket.create_connection(self.address, 5)
        stream.sendall(handshake("/ws/bystanders"))
        answer = b""
        while b"\r\n\r\n" not in answer:
            # Byte by byte: the first messages follow the 101 directly.
            if not (piece := stream.recv(1)):
                raise ConnectionError("no answer to a handshake")
            answer += piece
        if b" 101 " not in answer:
            raise ConnectionError("rejected")
        return stream

    def stop(self):
        self.stopping = True
        self.thread.join()
        for lives in self.lives:
            lives[-1].stream.close()


def publish_until_rejected(server, name, result):
    """Publishes 16 messages at a time until one is rejected. Sends the accepted messages and the
    last other statuses to `result`."""
    server.cores.attack()
    accepted, number, given = [], 0, []
    stream = server.connect()

    def batch():
        nonlocal given
        wire, given = b"", []
        stream.sendall(b"".join(post("bystanders", b"%d %d" % (name, each)) for each in range(number, number + 16)))
        while len(given) < 16:
            if not (piece := stream.recv(1 << 16)):
                break
            wire += piece
            given = statuses(wire)

    while len(given) == 16 or not number:
        quietly(batch)
        accepted += [b"%d %d" % (name, number + index) for index, status in enumerate(given) if status == 202]
        number += 16
        if set(given) != {202}:
            break
    result.send((accepted, sorted(set(given) - {202})))


def ask_for_websockets(server, answers):
    """Sends handshakes until the port is closed, and keeps the answers."""
    while (answer := quietly(lambda: greeted(server, handshake("/ws/new")))) is not None:
        answers.append(answer)
        time.sleep(0.002)


def sigterm(binary, cores):
    server = Server(binary, ["--outbox-bytes", "64MiB", "--drain-rate", "100", "--drain-timeout", "30s"], cores=cores)
    subscribers, publishers, wrong = Subscribers(server, reconnect=False), [], []
    for name in range(3):
        result, sender = FORK.Pipe(duplex=False)
        publisher = FORK.Process(target=publish_until_rejected, args=(server, name, sender))
        publisher.start()
        sender.close()
        publishers.append((publisher, result))
    time.sleep(1)
    began, answers = time.monotonic(), []
    server.process.send_signal(signal.SIGTERM)
    asking = threading.Thread(target=ask_for_websockets, args=(server, answers))
    asking.start()
    accepted, last = set(), set()
    for publisher, result in publishers:
        theirs, status = result.recv()
        accepted |= set(theirs)
        last |= set(status)
        publisher.join()
    published = len(accepted)
    code = quietly(lambda: server.process.wait(40))
    asking.join()
    wait_until(lambda: all(lives[-1].ended for lives in subscribers.lives), 5)
    subscribers.stop()
    lives = [lives[-1] for lives in subscribers.lives]
    got = lives[0].messages()
    lost = sum(len(accepted - set(life.messages())) for life in lives)
    if lost:
        wrong.append(f"{lost} deliveries of accepted messages are lost")
    if len(set(got)) != len(got) or any(life.messages() != got for life in lives):
        wrong.append("bystanders got different messages, or one twice")
    if codes := {life.close_code() for life in lives} - {1001}:
        wrong.append(f"bystanders were closed with {codes}")
    if not last <= {503}:
        wrong.append(f"publishers were rejected with {last}")
    rejected = [answer for answer in answers if statuses(answer) == [503]]
    late = [answer for answer in answers[answers.index(rejected[0]) :] if statuses(answer) not in ([503], [])] if rejected else []
    if not rejected or late or not all(b"retry-after: 1" in answer.lower() for answer in rejected):
        wrong.append(f"of {len(answers)} new clients {len(rejected)} got 503 with Retry-After, {len(late)} later ones did not")
    if code != 0:
        wrong.append(f"exit code {code}")
    report = re.search(r"drained aborted=(\d+) closed=(\d+) rejected=(\d+)", server.said())
    if not report or int(report[1]) or int(report[2]) < CLIENTS or int(report[3]) < len(rejected):
        wrong.append(f"the drain's report: {report and report[0]}")
    closed = (max(life.ended or 0 for life in lives) - began) * 1000
    return {
        "name": "SIGTERM under load", "lost": lost, "wrong": wrong, "heap": None, "p99": None,
        "did": f"{published:,} messages accepted from 3 publishers at full rate, {CLIENTS} bystanders, SIGTERM after a second",
        "waited": f"all closed with 1001 within {closed:.0f} ms, with --drain-rate 100",
        "told": f"{report and report[0]}; 503 with Retry-After to {len(rejected)} new clients, {len(got) - published} messages delivered whose 202 was lost",
    }  # fmt: skip


class Pacer:
    """Publishes a number every 2 ms, whatever the answers are, and keeps the result of each."""

    def __init__(self, address):
        self.address, self.stopping, self.stream = address, False, None
        # For each message: the time, and "accepted", "unconnected" or "unanswered".
        self.results = []
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        while not self.stopping:
            self.results.append((time.monotonic(), self.publish(b"%d" % len(self.results))))
            time.sleep(0.002)

    def publish(self, message):
        try:
            self.stream = self.stream or socket.create_connection(self.address, 5)
        except OSError:
            return "unconnected"
        try:
            self.stream.sendall(post("bystanders", message))
            answer = self.stream.recv(4096)
        except OSError:
            answer = b""
        if statuses(answer) == [202]:
            return "accepted"
        self.stream.close()
        self.stream = None
        return "unanswered"

    def stop(self):
        self.stopping = True
        self.thread.join()


def sigkill(binary, cores, times=3):
    server, wrong, waited = Server(binary, [], cores=cores), [], []
    subscribers = Subscribers(server, reconnect=True)
    pacer = Pacer(server.address)
    for life in range(2, times + 2):
        time.sleep(0.5)
        killed = time.monotonic()
        server.process.kill()
        if server.process.wait() != -signal.SIGKILL:
            wrong.append("the server had ended before it was killed")
        server = Server(binary, [], cores=cores, port=server.address[1])
        baseline = server.memory()["baseline"]["allocated_bytes"]
        if not wait_until(lambda: all(len(lives) == life and lives[-1].first for lives in subscribers.lives)):
            wrong.append("not every client has reconnected")
        waited.append(max(lives[-1].first or 0 for lives in subscribers.lives) - killed)
    time.sleep(0.5)
    pacer.stop()
    results = {b"%d" % number: result for number, result in enumerate(pacer.results)}
    accepted = [name for name, (_, result) in results.items() if result == "accepted"]
    wait_until(lambda: all(lives[-1].messages()[-1:] == accepted[-1:] for lives in subscribers.lives), 5)
    subscribers.stop()
    lost = 0
    for lives in subscribers.lives:
        for life in lives:
            got = life.messages()
            until = life.ended or time.monotonic()
            due = [name for name in accepted if life.began <= results[name][0] < until]
            missing = [name for name in due if name not in set(got)]
            lost += len(missing)
            # A kill may lose the last accepted messages, and none from the middle.
            if missing and (life is lives[-1] or due[-len(missing) :] != missing):
                wrong.append(f"{len(missing)} messages are missing that no kill explains")
            if got != sorted(set(got), key=int):
                wrong.append("messages were repeated or reordered")
            if any(results[name][1] == "unconnected" for name in got):
                wrong.append("a message was delivered whose publisher had no connection")
    unconnected, unanswered = (sum(result == which for _, result in pacer.results) for which in ("unconnected", "unanswered"))
    if not unconnected:
        wrong.append("no publisher noticed that the server was down")
    heap = lambda: server.memory()["allocated_bytes"] - baseline
    if not wait_until(lambda: server.metrics()["hydrant_connections"] == 0):
        wrong.append("connections are left")
    left, code = heap(), server.end()
    if code != 0:
        wrong.append(f"exit code {code}")
    return {
        "name": "SIGKILL and restart", "lost": lost, "wrong": wrong[:3], "heap": left, "p99": None,
        "did": f"killed {times} times and restarted at once on the same port, {CLIENTS} bystanders, {len(results) / (time.monotonic() - pacer.results[0][0]):,.0f} messages per second",
        "waited": f"first message at most {max(waited) * 1000:.0f} ms after the kill",
        "told": f"{len(accepted):,} messages accepted, {unconnected} without a connection, {unanswered} without an answer",
    }  # fmt: skip
