"""The server as a child process, and the cores of the server, the bystanders and the attackers."""

import contextlib
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request

from wire import handshake


class Cores:
    """Assigns cores to processes.

    With `apart` the server alone has half of the cores, with a shard on each. Bystanders and
    attackers share the other cores, where bystanders take precedence. Without `apart` all processes
    share all cores, and the server has two shards, so that messages between shards are tested
    too."""

    def __init__(self, apart=False):
        self.all = sorted(os.sched_getaffinity(0))
        half = len(self.all) // 2
        self.apart = apart and half > 0
        self.server = self.all[:half] if self.apart else self.all
        rest = self.all[half:] if self.apart else self.all
        self.bystanders = rest[: (len(rest) + 1) // 2] if self.apart else rest
        self.attackers = rest[len(self.bystanders) :] or rest
        self.shards = len(self.server) if self.apart else 2

    # Each of these methods applies to the calling process and to all that it starts afterwards.

    def serve(self):
        os.sched_setaffinity(0, self.server)
        if self.apart:
            # As root: other programs of the machine get hardly any time on these cores. Where Linux
            # schedules by sessions first, the session needs the priority.
            with contextlib.suppress(OSError):
                os.setsid()
                os.setpriority(os.PRIO_PROCESS, 0, -20)
                with open("/proc/self/autogroup", "w") as autogroup:
                    autogroup.write("-20")

    def bystand(self):
        os.sched_setaffinity(0, self.bystanders)
        if self.apart:
            # Only root may do this. The bystanders sleep while they wait: if they polled, the
            # attackers would get no time at all.
            with contextlib.suppress(PermissionError):
                os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))

    def attack(self):
        os.sched_setaffinity(0, self.attackers)

    def __str__(self):
        if not self.apart:
            return f"{len(self.all)} cores, which the server ({self.shards} shards), the bystanders and the attackers share"
        rest = "for the bystanders, and for the attackers when no bystander runs"
        if self.attackers != self.bystanders:
            rest = f"for the bystanders, {len(self.attackers)} for the attackers"
        return f"of {len(self.all)} cores {len(self.server)} for the server, with a shard on each, {len(self.bystanders)} {rest}"


class Server:
    def __init__(self, binary, flags, files=None, cores=None, port=0):
        self.cores = cores or Cores()
        self.log = tempfile.TemporaryFile("w+")

        def prepare():
            self.cores.serve()
            if files:
                resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

        # Attackers reach everything at one port: what harms one kind of client must not harm the
        # others.
        address = f"127.0.0.1:{port}"
        command = [binary, "--listen", address, "--admin-listen", address, "--open", "--tick", "0"]
        command += ["--shards", str(self.cores.shards), *flags]
        self.process = subprocess.Popen(command, stderr=self.log, stdin=subprocess.DEVNULL, preexec_fn=prepare)
        deadline = time.monotonic() + 10
        while not (found := re.search(r"listening on 127\.0\.0\.1:(\d+) for everything", self.said())):
            if self.process.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"faults: the server does not listen: {self.said()}")
            time.sleep(0.005)
        self.address = ("127.0.0.1", int(found[1]))

    def said(self):
        # Server and test share the file's position, which the server writes at: reading must not
        # move it.
        return os.pread(self.log.fileno(), 1 << 24, 0).decode()

    def get(self, path, method="GET"):
        request = urllib.request.Request(f"http://127.0.0.1:{self.address[1]}{path}", method=method)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()

    def memory(self):
        return json.loads(self.get("/debug/mem/purge", "POST"))

    def heap(self):
        """Bytes in use, without a purge, so that a call during an attack changes nothing."""
        return json.loads(self.get("/debug/mem"))["allocated_bytes"]

    def metrics(self):
        lines = (line.rsplit(" ", 1) for line in self.get("/metrics").splitlines() if not line.startswith("#"))
        return {name: int(value) for name, value in lines}

    def connect(self, path=None, receive_bytes=None, request=None, address=None):
        """Returns a socket. With a path it sends a handshake, then `request`, and reads the 101 and
        no byte more."""
        stream = socket.socket()
        if receive_bytes:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        stream.settimeout(5)
        stream.connect(address or self.address)
        if path:
            stream.sendall(handshake(path) + (request or b""))
            answer = b""
            while b"\r\n\r\n" not in answer:
                if not (piece := stream.recv(1)):
                    raise ConnectionError("no answer to a handshake")
                answer += piece
        return stream

    def command(self, *words):
        """The command line of the load generator."""
        return [self.process.args[0], "load", *words, "--quiet"]

    def url(self, room):
        return f"ws://127.0.0.1:{self.address[1]}/ws/{room}"

    def end(self):
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            return "no end within 20 s of SIGTERM"


def wait_until(look, seconds=10):
    deadline = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found
