"""What every row uses: the server under test, drivers, a subscriber, and the record of checks.

A driver is a program, or a page in a browser, that gets attempts as lines and answers with lines.
Servers listen on free ports. A wait ends when something has happened, or fails after LIMIT.
"""

import contextlib
import http.client
import http.server
import itertools
import os
import queue
import re
import resource
import shlex
import signal
import socket
import subprocess
import threading
import time
import traceback
import urllib.parse
from pathlib import Path

from websockets.sync.client import connect

HERE = Path(__file__).resolve().parent
TARGET = HERE.parent.parent / "target"
WORK = TARGET / "clients" / "run"
# How long anything may take before it counts as failed; far beyond all that the tests wait for.
LIMIT = 30
# Where the harness's own connections come from: an address that no server takes for a proxy's.
OWN = ("127.0.0.9", 0)

_numbers = itertools.count(1)


class Failed(Exception):
    """A row cannot go on."""


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def until(happened, what):
    """Waits until `happened` returns something true, and returns it."""
    end = time.monotonic() + LIMIT
    while time.monotonic() < end:
        value = happened()
        if value:
            return value
        time.sleep(0.02)
    raise Failed(f"{what}: not within {LIMIT} s")


class Row:
    """One line of a table: checks by column. `note` fills a cell that is not judged."""

    def __init__(self, table, name):
        self.table, self.name = table, name
        self.cells = {}
        self.failures = []
        self.checks = 0
        self.missing = None

    def check(self, column, good, what, reproduce=""):
        self.checks += 1
        passed, failed, _ = self.cells.get(column, (0, 0, None))
        self.cells[column] = (passed + bool(good), failed + (not good), None)
        if not good:
            self.failures.append((column, what, reproduce))
        return good

    def equal(self, column, got, wanted, what, reproduce=""):
        return self.check(column, got == wanted, f"{what}: {wanted!r} expected, got {got!r}", reproduce)

    @contextlib.contextmanager
    def part(self):
        """A part of the row; if it cannot go on, the others still run."""
        try:
            yield
        except Exception as error:
            what = str(error) if isinstance(error, Failed) else traceback.format_exc()
            self.failures.append(("", f"stopped: {what}", ""))

    def note(self, column, text):
        self.cells[column] = (0, 0, text)

    def cell(self, column):
        if self.missing:
            return "not installed here"
        passed, failed, text = self.cells.get(column, (0, 0, None))
        if text is not None:
            return text
        if passed + failed == 0:
            return "–"
        return f"{passed} of {passed}" if failed == 0 else f"**{passed} of {passed + failed}**"


class Server:
    """A hydrant of its own, with its clients' and its admin address on free ports."""

    binary = None

    def __init__(self, *flags, open_files=None):
        self.flags = list(flags)
        self.log = WORK / f"hydrant-{next(_numbers)}.log"
        for _ in range(3):
            self.clients, self.admin = (f"127.0.0.1:{free_port()}" for _ in range(2))
            self.command = [
                str(self.binary),
                "--listen",
                self.clients,
                "--admin-listen",
                self.admin,
                *self.flags,
            ]
            if "--tick" not in flags:
                self.command += ["--tick", "0"]
            environment = {k: v for k, v in os.environ.items() if not k.startswith("HYDRANT_")}
            files = (open_files, open_files)
            limit = (lambda: resource.setrlimit(resource.RLIMIT_NOFILE, files)) if open_files else None
            with open(self.log, "w") as log:
                self.process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    preexec_fn=limit,
                )
            # Another program may have taken a port in between.
            if self._listens():
                return
        raise Failed(f"the server does not start: {' '.join(self.command)}\n{self.log.read_text()}")

    def _listens(self):
        def ready():
            if self.process.poll() is not None:
                return "ended"
            try:
                return self.request("GET", "/healthz", port=self.admin)[0] == 200 and "ready"
            except OSError:
                return None

        return until(ready, "the server is ready") == "ready"

    def __enter__(self):
        return self

    def __exit__(self, kind, *_):
        code = self.stop()
        if kind is None and code != 0:
            raise Failed(f"exit code {code} of {' '.join(self.command)}\n{self.log.read_text()[-2000:]}")

    def terminate(self):
        self.process.send_signal(signal.SIGTERM)

    def stop(self):
        if self.process.poll() is None:
            self.terminate()
            try:
                self.process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                self.process.kill()
        return self.process.wait()

    def request(self, method, path, body=None, headers=None, port=None):
        """One request over a connection of its own: status, headers, body as text."""
        host, number = (port or self.admin).split(":")
        connection = http.client.HTTPConnection(host, int(number), timeout=LIMIT, source_address=OWN)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read().decode(errors="replace")
        except http.client.HTTPException as error:
            return f"{type(error).__name__}: {error}", {}, ""
        finally:
            connection.close()

    def publish(self, channel, body, headers=None):
        headers = {
            "Content-Type": "text/plain" if isinstance(body, str) else "application/octet-stream",
            **(headers or {}),
        }
        status, _, text = self.request(
            "POST", f"/publish/{channel}", body.encode() if isinstance(body, str) else body, headers
        )
        if status != 202:
            raise Failed(f"a publication to {channel} got {status}: {text}")

    def counters(self):
        text = self.request("GET", "/metrics", headers=self.bearer())[2]
        return {m[1]: int(m[2]) for m in re.finditer(r"^(\S+) (\d+)$", text, re.M)}

    def bearer(self):
        if "--token" in self.flags:
            return {"Authorization": "Bearer " + self.flags[self.flags.index("--token") + 1]}
        return {}

    def logged(self, *parts):
        """Whether one line of the log has all parts, or soon will."""

        def found():
            return any(all(part in line for part in parts) for line in self.log.read_text().splitlines())

        for _ in range(50):
            if found():
                return True
            time.sleep(0.02)
        return False

    def url(self, path, scheme="ws"):
        return f"{scheme}://{self.clients}{path}"


class Subscriber:
    """Reads a channel in a thread; `texts` is what came, in order."""

    def __init__(self, server, channel, **options):
        options = {"proxy": None, "compression": None, "max_size": None, "source_address": OWN, **options}
        self.socket = connect(server.url(f"/ws/{channel}"), **options)
        self.texts = []
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        with contextlib.suppress(Exception):
            for message in self.socket:
                self.texts.append(message)

    def until(self, last):
        until(lambda: last in self.texts, f"the subscriber gets {last!r}")
        return self.texts

    def close(self):
        self.socket.close()


def silent_client(server):
    """Connects, answers no ping, and returns when the server has closed it for that."""
    host, port = server.clients.split(":")
    with socket.create_connection((host, int(port)), timeout=LIMIT) as raw:
        raw.sendall(
            f"GET /ws/silent HTTP/1.1\r\nHost: {server.clients}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        with contextlib.suppress(ConnectionResetError):
            while raw.recv(4096):
                pass


def wired(server, data, port=None, half_close=False):
    """Sends `data` on a connection of its own and returns all that comes back until the end."""
    host, number = (port or server.clients).split(":")
    with socket.create_connection((host, int(number)), timeout=LIMIT) as raw:
        raw.sendall(data)
        if half_close:
            raw.shutdown(socket.SHUT_WR)
        parts = []
        with contextlib.suppress(ConnectionResetError):
            while part := raw.recv(65536):
                parts.append(part)
        return b"".join(parts)


class Recorder:
    """Takes one handshake, keeps its head, and rejects it: what does a client send by itself?"""

    def __init__(self):
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.address = "127.0.0.1:%d" % self.socket.getsockname()[1]
        self.head = ""
        threading.Thread(target=self._take, daemon=True).start()

    def _take(self):
        with contextlib.suppress(OSError):
            while True:
                peer = self.socket.accept()[0]
                with peer:
                    peer.settimeout(LIMIT)
                    while "\r\n\r\n" not in self.head:
                        part = peer.recv(65536)
                        if not part:
                            break
                        self.head += part.decode("latin-1")
                    peer.sendall(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")

    def header(self, name):
        found = re.search(rf"^{name}: *([^\r]*)\r$", self.head, re.M | re.I)
        return found[1] if found else None


class Answer(dict):
    """What a driver says of one attempt; `text` is the line to run again."""

    attempt = ""


class Driver:
    """A program that reads attempts from its standard input and writes `ready` and `result` lines.

    An attempt is a line of name, URL, action, argument, protocols and headers, separated by tabs.
    Commas separate protocols, `|` separates headers. Actions: `open`; `echo`; `receive` (argument:
    the number of messages); `say` (argument: the text, or `@N` for N letters), which waits for the
    server's close.
    """

    def __init__(self, command, environment=None, merge=False):
        self.command = [str(part) for part in command]
        self.log = WORK / f"driver-{next(_numbers)}.log"
        self.errors = open(self.log, "w")
        self.process = subprocess.Popen(
            self.command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT if merge else self.errors,
            env={**os.environ, **(environment or {})},
            text=True,
            bufsize=1,
        )
        self.lines = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.errors.write(line)
            self.lines.put(line.rstrip("\n"))
        self.lines.put(None)

    def send(self, line):
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ask(self, url, action="open", argument="", protocols=(), headers=None, ready=None):
        name = f"a{next(_numbers)}"
        fields = [
            name,
            url,
            action,
            str(argument),
            ",".join(protocols),
            "|".join(f"{k}: {v}" for k, v in (headers or {}).items()),
        ]
        line = "\t".join(fields)
        self.send(line)
        answer = Answer()
        # An attempt that can be typed in again.
        answer.attempt = f"{' '.join(self.command)} <<< {shlex.quote(line)}".replace("\t", "\\t").replace(
            "<<< '", "<<< $'"
        )
        while True:
            try:
                said = self.lines.get(timeout=LIMIT)
            except queue.Empty:
                raise Failed(f"no answer within {LIMIT} s: {answer.attempt}") from None
            if said is None:
                self.errors.flush()
                raise Failed(f"the driver ended: {answer.attempt}\n{self.log.read_text()[-2000:]}")
            kind, *rest = said.split("\t")
            if kind not in ("ready", "result") or rest[:1] != [name]:
                continue
            if kind == "ready":
                if ready:
                    ready()
                continue
            answer.update(part.split("=", 1) for part in rest[1:] if "=" in part)
            return answer

    def close(self):
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.errors.close()


class PageServer:
    """Serves `page.html` on loopback and carries lines to and from the pages: GET /next?id=…,
    POST /said?id=…."""

    def __init__(self):
        self.pages = {}
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer(self, status, body, kind="text/plain; charset=utf-8"):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(body)))
                self.send_header("Access-Control-Allow-Origin", "*")
                self.send_header("Cache-Control", "no-store")
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                target = urllib.parse.urlsplit(self.path)
                if target.path == "/next":
                    page = outer.pages.get(urllib.parse.parse_qs(target.query)["id"][0])
                    try:
                        line = page.attempts.get(timeout=5) if page else "end"
                    except queue.Empty:
                        line = ""
                    self.answer(200, line.encode())
                elif target.path == "/page":
                    self.answer(200, (HERE / "drivers" / "page.html").read_bytes(), "text/html; charset=utf-8")
                else:
                    self.answer(404, b"")

            def do_POST(self):
                target = urllib.parse.urlsplit(self.path)
                said = self.rfile.read(int(self.headers["Content-Length"])).decode()
                page = outer.pages.get(urllib.parse.parse_qs(target.query)["id"][0])
                if page:
                    page.lines.put(said)
                self.answer(200, b"")

            def log_message(self, *_):
                pass

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_):
                pass

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def page(self, origin=None, path="/page"):
        return Page(self, origin or f"http://127.0.0.1:{self.port}", path)


class Page(Driver):
    """The same for a page in a browser, or for a program that only speaks HTTP."""

    def __init__(self, server, origin, path):
        self.id = f"p{next(_numbers)}"
        self.base = f"http://127.0.0.1:{server.port}"
        self.url = f"{origin}{path}?id={self.id}&base={self.base}"
        self.command = [f"(page {origin})"]
        self.attempts, self.lines = queue.Queue(), queue.Queue()
        self.server = server
        self.log = WORK / "page.log"
        server.pages[self.id] = self

    def send(self, line):
        self.attempts.put(line)

    def close(self):
        self.attempts.put("end")
