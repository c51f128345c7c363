"""What hostile clients and full machines do to bystanders: run.py SERVER_BINARY [--seconds N] [--only NAME] [--table].

For each fault a server of its own is started, and `hydrant load` connects bystanders that receive a message twenty times a second:
first alone, then with the fault beside them from the moment they are connected. A fault passes when no bystander lost, repeated or reordered anything, the
conservation law holds, the heap is back at its baseline, and the server drains with exit code 0. How long a bystander
waited is told beside the quiet run; it is no pass or fail, for a machine with two cores has the fault's own programs on them.

Standard library only. Ends only processes that it started. Load goes to loopback only.
"""

import argparse
import json
import os
import re
import resource
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

MASK = bytes(4)
# What the threads of the server keep for their next allocations; a leak of the smallest of these faults is several times that.
HEAP_SLACK = 1024 * 1024
BYSTANDERS = 500


def handshake(path="/ws/room"):
    return (
        f"GET {path} HTTP/1.1\r\nHost: h\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    ).encode()


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


class Server:
    def __init__(self, binary, flags, files=None):
        self.log = tempfile.TemporaryFile("w+")
        limit = lambda: files and resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
        command = [binary, "--listen", "127.0.0.1:0", "--tick", "0", "--shards", "2", *flags]
        self.process = subprocess.Popen(command, stderr=self.log, stdin=subprocess.DEVNULL, preexec_fn=limit)
        deadline = time.monotonic() + 10
        while not (found := re.search(r"listening on 127\.0\.0\.1:(\d+) ", self.said())):
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"faults: the server does not listen: {self.said()}")
            time.sleep(0.02)
        self.address = ("127.0.0.1", int(found[1]))

    def said(self):
        self.log.seek(0)
        return self.log.read()

    def get(self, path, method="GET"):
        request = urllib.request.Request(f"http://127.0.0.1:{self.address[1]}{path}", method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()

    def ledger(self):
        return json.loads(self.get("/debug/mem/purge", "POST"))

    def metrics(self):
        lines = (line.rsplit(" ", 1) for line in self.get("/metrics").splitlines() if not line.startswith("#"))
        return {name: int(value) for name, value in lines}

    def connect(self, path=None, receive_bytes=None):
        stream = socket.socket()
        if receive_bytes:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        stream.settimeout(5)
        stream.connect(self.address)
        if path:
            stream.sendall(handshake(path))
            answer = b""
            while b"\r\n\r\n" not in answer:
                if not (piece := stream.recv(1)):
                    raise ConnectionError("no answer to a handshake")
                answer += piece
        return stream

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return "no end within 20 s of SIGTERM"


def quietly(action):
    """A client's call, which the server may have answered by ending the connection."""
    try:
        return action()
    except OSError:
        return None


def loop(stop, body, pause=0.0):
    while not stop.is_set():
        body()
        if pause:
            stop.wait(pause)


# The faults: each does its worst until told to stop, and says what it did.


def slowloris(server, stop):
    streams = [server.connect() for _ in range(500)]
    loop(stop, lambda: [quietly(lambda: stream.send(b"G")) for stream in streams], 0.2)
    return "500 connections, a byte of a request head every 0.2 s on each"


def half_open(server, stop):
    streams = [server.connect() for _ in range(5000)]
    for stream in streams:
        quietly(lambda: stream.send(b"GET /ws/room HTTP/1.1\r\nHost: h\r\n"))
    stop.wait()
    return "5,000 handshakes that never end"


def cut_frames(server, stop):
    wire, sent = frame(0x81, b'{"event":"SAY","message":"hello"}'), [0]

    def once():
        for cut in range(len(wire)):
            stream = quietly(lambda: server.connect("/ws/room"))
            if stream:
                quietly(lambda: stream.send(wire[:cut]))
                stream.close()
                sent[0] += 1

    loop(stop, once)
    return f"{sent[0]:,} frames, cut at every byte"


def tiny_fragments(server, stop):
    sent = [0]

    def once():
        stream = quietly(lambda: server.connect("/ws/room"))
        if stream:
            pieces = [frame(0x01, b"x"), *[frame(0x00, b"x")] * 2000]
            quietly(lambda: [stream.send(piece) for piece in pieces])
            sent[0] += len(pieces)
            stream.close()

    loop(stop, once)
    return f"{sent[0]:,} fragments of one byte, a thousand more in a message than may be"


def lying_lengths(server, stop):
    lies = [bytes([0x81, 0xFF]) + struct.pack(">Q", size) + MASK for size in (1 << 62, (1 << 63) + 1, 70_000, 126, 65_536)]
    sent = [0]

    def once():
        streams = [quietly(lambda: server.connect("/ws/room")) for _ in lies]
        for stream, lie in zip(streams, lies):
            if stream:
                quietly(lambda: stream.send(lie + b"x" * 100))
                sent[0] += 1
        for stream in filter(None, streams):
            stream.close()

    loop(stop, once)
    return f"{sent[0]:,} headers that claim up to 2^63 bytes"


def ping_flood(server, stop):
    streams, sent = [server.connect("/ws/room") for _ in range(5)], [0]
    burst = frame(0x89, b"x") * 500

    def once():
        for index, stream in enumerate(streams):
            stream.setblocking(False)
            if quietly(lambda: stream.send(burst)) is None and quietly(lambda: stream.recv(1 << 16)) in (None, b""):
                stream.close()
                streams[index] = server.connect("/ws/room")
            quietly(lambda: stream.recv(1 << 16))
            sent[0] += 500

    loop(stop, once, 0.005)
    return f"{sent[0]:,} pings"


def never_reading(number):
    def fault(server, stop):
        streams = [server.connect("/ws/bystanders", 2048) for _ in range(number)]
        stop.wait()
        [stream.close() for stream in streams]
        return f"{number} clients in the bystanders' room that never read"

    return fault


def mass_disconnect(server, stop):
    command = [server.process.args[0], "load", "idle", "--connections", "5000", "--duration", "1h", "--quiet"]
    command += ["--url", f"ws://127.0.0.1:{server.address[1]}/ws/bystanders"]
    crowd = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while server.metrics()["hydrant_connections"] < 5000 and not stop.wait(0.1):
        pass
    crowd.kill()
    crowd.wait()
    stop.wait()
    return "5,000 of the bystanders' room gone in the same instant"


def storm(server, stop):
    command = [server.process.args[0], "load", "churn", "--connections", "1000", "--churn-rate", "2000", "--duration", "1h"]
    command += ["--url", f"ws://127.0.0.1:{server.address[1]}/ws/storm", "--quiet", "--rate", "1"]
    crowd = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    stop.wait()
    crowd.kill()
    crowd.wait()
    return "2,000 leave and join in a second"


def too_many(server, stop):
    streams = []

    def once():
        stream = quietly(lambda: server.connect())
        if stream:
            streams.append(stream)
        if len(streams) > 1500:
            stop.wait(0.1)

    loop(stop, once)
    [stream.close() for stream in streams]
    return f"{len(streams):,} connections where 1,000 files may be open"


def memory_eaters(server, stop):
    slow = [server.connect(f"/ws/eater{room}", 2048) for room in range(20)]
    body, sent = b"x" * 15_000, [0]

    def once():
        stream = server.connect()
        for room in range(20):
            stream.sendall(f"POST /publish/eater{room} HTTP/1.1\r\nHost: h\r\nContent-Length: 15000\r\n\r\n".encode() + body)
            quietly(lambda: stream.recv(4096))
            sent[0] += 1
        stream.close()
        # Whoever comes while the heap is full is told so.
        quietly(lambda: server.connect("/ws/newcomers").close())

    loop(stop, once, 0.05)
    [stream.close() for stream in slow]
    return f"{sent[0]:,} messages of 15 kB for 20 clients that never read, in a room each"


def everything_at_once(server, stop):
    others = [slowloris, cut_frames, tiny_fragments, lying_lengths, ping_flood]
    threads = [threading.Thread(target=other, args=(server, stop)) for other in others]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    return "the slow, the cut, the tiny, the lying and the pinging together"


# Name, fault, flags of the server, its open files, and what has to be counted for it to have happened.
FAULTS = [
    ("slowloris", slowloris, [], None, []),
    ("half-open handshakes", half_open, [], None, ['hydrant_refused_total{reason="handshakes"}']),
    ("frames cut at every byte", cut_frames, [], None, ['hydrant_closed_total{reason="vanished"}']),
    ("fragments of one byte", tiny_fragments, [], None, ['hydrant_closed_total{reason="too_many_fragments"}']),
    ("lengths that lie", lying_lengths, [], None, ['hydrant_closed_total{reason="too_big"}', 'hydrant_closed_total{reason="bad_length"}']),
    ("ping flood", ping_flood, ["--client-messages", "1000"], None, ['hydrant_closed_total{reason="too_fast"}']),
    ("a tenth never reads", never_reading(BYSTANDERS // 9), [], None, []),
    ("half never read", never_reading(BYSTANDERS), [], None, []),
    ("mass disconnect", mass_disconnect, [], None, ['hydrant_closed_total{reason="vanished"}']),
    ("join and leave storm", storm, [], None, ['hydrant_closed_total{reason="by_client"}']),
    ("open files used up", too_many, ["--max-connections", "700"], 1000, []),
    ("memory used up", memory_eaters, ["--memory-max", "3MiB", "--kernel-bytes", "4KiB"], None, ['hydrant_refused_total{reason="memory"}']),
    ("everything at once", everything_at_once, ["--client-messages", "1000"], None, []),
]


def bystand(server, seconds):
    """The load generator's report of the bystanders."""
    command = [server.process.args[0], "load", "fanout", "--connections", str(BYSTANDERS), "--rate", "20", "--json", "--quiet"]
    command += ["--messages", str(20 * seconds), "--payload", "200", "--publishers", "4"]
    command += ["--url", f"ws://127.0.0.1:{server.address[1]}/ws/bystanders", "--patience", "20s"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 90)
    if not result.stdout:
        return {"passed": False, "complaint": result.stderr.strip(), "lost_unexplained": None, "last_subscriber_us": None}
    return json.loads(result.stdout)


def settled(look, seconds=10):
    deadline = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def run(binary, seconds, name, fault, flags, files, counted):
    server = Server(binary, flags, files)
    baseline = server.ledger()["baseline"]["allocated_bytes"]
    quiet = bystand(server, seconds)
    stop, did, reports = threading.Event(), [], []
    bystanders = threading.Thread(target=lambda: reports.append(bystand(server, seconds)))
    bystanders.start()
    settled(lambda: server.metrics()["hydrant_connections"] >= BYSTANDERS)
    attack = threading.Thread(target=lambda: did.append(quietly(lambda: fault(server, stop))))
    attack.start()
    bystanders.join()
    stop.set()
    attack.join(60)
    during = reports[0]
    empty = lambda: server.metrics()["hydrant_connections"] == 0
    heap = lambda: server.ledger()["allocated_bytes"] - baseline
    wrong = []
    if not settled(empty):
        wrong.append("connections are left")
    # What threads and tables keep for a while is given back in time; a leak is not.
    settled(lambda: heap() < HEAP_SLACK // 2)
    if heap() > HEAP_SLACK:
        wrong.append(f"{heap() // 1024} KiB of heap are left")
    metrics, left = server.metrics(), heap()
    of = lambda name: sum(value for key, value in metrics.items() if key.startswith(name))
    law = of("hydrant_frames_matched_total") - of("hydrant_frames_delivered_total") - of("hydrant_frames_dropped_total")
    if law != of("hydrant_frames_pending"):
        wrong.append(f"the conservation law is off by {law}")
    for report, when in ((quiet, "before"), (during, "during")):
        if not report["passed"]:
            wrong.append(f"bystanders {when}: {report.get('complaint') or report['lost_unexplained']}")
    wrong += [f"{name} is 0" for name in counted if not metrics.get(name)]
    code = server.end()
    if code != 0:
        wrong.append(f"exit code {code}")
    p99 = lambda report: report["last_subscriber_us"] and report["last_subscriber_us"]["p99"] / 1000
    events = {key: value for key, value in metrics.items() if re.match(r"hydrant_(closed|refused)_total", key) and value}
    told = ", ".join(f"{re.search(chr(34) + '(.*)' + chr(34), key)[1]} {value:,}" for key, value in events.items())
    return {
        "name": name, "did": did[0] if did else None, "lost": during["lost_unexplained"],
        "p99": (p99(quiet), p99(during)), "heap": left, "told": told, "wrong": wrong,
    }  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--seconds", type=int, default=5, help="how long bystanders receive, without and with the fault")
    parser.add_argument("--only", help="faults whose name has this in it")
    parser.add_argument("--table", action="store_true", help="print the table of tests/README.md")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rows = []
    for fault in FAULTS:
        if options.only and options.only not in fault[0]:
            continue
        row = run(os.path.abspath(options.binary), options.seconds, *fault)
        rows.append(row)
        figures = f"p99 {row['p99'][0]:.1f} → {row['p99'][1] or float('nan'):.1f} ms, lost {row['lost']}, heap {row['heap'] // 1024} KiB"
        print(f"{row['name']}: {'; '.join(row['wrong']) or 'ok'} ({figures})", file=sys.stderr, flush=True)
    if options.table:
        print("| fault | what was sent | lost by bystanders | p99 of the last bystander, quiet → during | heap afterwards, over the baseline | what the server counted |")
        print("|---|---|---|---|---|---|")
        for row in rows:
            quiet, during = row["p99"]
            print(f"| {row['name']} | {row['did']} | {row['lost']} | {quiet:.1f} → {during:.1f} ms | {row['heap'] / 1024:.0f} KiB | {row['told']} |")
    failed = sum(bool(row["wrong"]) for row in rows)
    print(f"faults: {len(rows) - failed} passed, {failed} failed")
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
