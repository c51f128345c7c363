"""Requests as curl and by hand: paths, parameters, bodies, events, limits."""

import gzip
import http.client
import json
import socket
import subprocess

from harness import LIMIT, Server, Subscriber, wired
from websockets.sync.client import connect


def fixed_paths(row):
    """What load balancers and people ask of the clients' port, and of the admin port."""
    with Server() as server:
        for method in ("GET", "HEAD", "OPTIONS"):
            code, _, body = server.request(method, "/", port=server.clients)
            row.equal(
                "answers",
                code,
                200,
                f"{method} / ({body[:80]!r})",
                f"curl -iX {method} http://{server.clients}/",
            )
        for path in ("/healthz", "/readyz", "/healthz/", "//healthz"):
            row.equal("answers", server.request("GET", path, port=server.clients)[0], 200, f"GET {path}")
        code, _, body = server.request("GET", "/ws", port=server.clients)
        row.check(
            "answers", code == 426 and "WebSocket" in body, f"GET /ws without an upgrade: {code} {body!r}"
        )
        for path in ("/publish", "/publish/room", "/metrics", "/debug/mem", "/debug/pprof/profile"):
            for method in ("GET", "POST"):
                code, _, body = server.request(
                    method, path, "x" if method == "POST" else None, port=server.clients
                )
                good = code == 404 and f"http://{server.admin}{path}" in body
                row.check(
                    "answers",
                    good,
                    f"{method} {path} on the clients' port: 404 with http://{server.admin}{path}, got {code} {body!r}",
                )
        for path in ("/metrics", "/debug/mem", "/healthz", "/readyz"):
            row.equal("answers", server.request("GET", path)[0], 200, f"GET {path} on the admin port")
        code, _, body = server.request("GET", "/nothing", port=server.clients)
        row.check("answers", code == 404 and "/ws" in body, f"GET /nothing: {code} {body!r}")
        # The log's two URLs and a line to copy, as the start prints them.
        for part in (f"http://{server.admin}", "curl", f"ws://{server.clients}/ws"):
            row.check(
                "answers",
                server.logged(part),
                f"the start does not print {part}: {server.log.read_text()[:600]}",
            )


def parameters(row):
    """A parameter that nobody knows, and the name that was meant."""
    with Server() as server:
        subscriber = Subscriber(server, "a")
        for query, right in (
            ("channels=a", "channel"),
            ("channel[]=a", "channel"),
            ("room=a", "channel"),
            ("Channel=a", "channel"),
        ):
            for path, port, method in (
                ("/publish", server.admin, "POST"),
                ("/publish/a", server.admin, "POST"),
            ):
                code, _, body = server.request(method, f"{path}?{query}", "rejected", port=port)
                good = code == 400 and right in body
                row.check(
                    "answers",
                    good,
                    f"{method} {path}?{query}: 400 with {right!r} expected, got {code} {body!r}",
                )
        code, _, body = server.request("POST", "/publish/a?receipt=true", "rejected")
        row.check("answers", code == 400 and "receipt=1" in body, f"receipt=true: {code} {body!r}")
        for path in ("/healthz?probe=1", "/metrics?name[]=x", "/readyz?x=y"):
            row.equal("answers", server.request("GET", path)[0], 200, f"GET {path}")
        server.publish("a", "the end")
        row.equal("answers", subscriber.until("the end"), ["the end"], "what rejected publications delivered")
        subscriber.close()


BODIES = [
    # content type, body, what a subscriber gets (None: rejected)
    ("application/x-protobuf", b"\x0a\x03abc", b"\x0a\x03abc"),
    ("application/octet-stream", b"text", b"text"),
    ("application/msgpack", b"\x81\xa1a\x01", b"\x81\xa1a\x01"),
    ("image/png", b"png", b"png"),
    ("text/plain", "grüße".encode(), "grüße"),
    ("text/html; charset=utf-8", b"<p>", "<p>"),
    ("application/json", b'{"a":1}', '{"a":1}'),
    ("application/problem+json", b'{"a":1}', '{"a":1}'),
    ("application/x-www-form-urlencoded", b"a=1", "a=1"),
    (None, "grüße".encode(), "grüße"),
    (None, b"\xff\xfe", b"\xff\xfe"),
    ("application/x-ndjson", b'{"a":1}\n', None),
]


def bodies(row):
    """What kind of message each type of body becomes, in the words of a real subscriber."""
    with Server() as server:
        subscriber = Subscriber(server, "room")
        wanted = []
        for kind, body, message in BODIES:
            headers = {"Content-Type": kind} if kind else {}
            code, _, text = server.request("POST", "/publish/room", body, headers)
            row.equal("answers", code, 415 if message is None else 202, f"a body of {kind} ({text!r})")
            if message is not None:
                wanted.append(message)
        for encoding in ("gzip", "br", "deflate"):
            headers = {"Content-Type": "text/plain", "Content-Encoding": encoding}
            code, _, text = server.request("POST", "/publish/room", gzip.compress(b"x"), headers)
            row.equal("answers", code, 415, f"Content-Encoding: {encoding} ({text!r})")
        headers = {"Content-Type": "text/plain", "Content-Encoding": "identity"}
        row.equal(
            "answers",
            server.request("POST", "/publish/room", b"plain", headers)[0],
            202,
            "Content-Encoding: identity",
        )
        # Text that is not UTF-8 is rejected, or goes as binary: never as broken text.
        server.publish("room", "the end")
        got = subscriber.until("the end")
        row.equal("answers", got, [*wanted, "plain", "the end"], "what a subscriber gets")
        subscriber.close()


def channels(row):
    """Where `POST /publish?channel=…` goes."""
    with Server() as server:
        one, two, all_ = (Subscriber(server, name) for name in ("a", "b", "all"))
        row.equal("answers", server.request("POST", "/publish?channel=a", "to a")[0], 202, "?channel=a")
        row.equal(
            "answers", server.request("POST", "/publish?channel=a&channel=b", "to both")[0], 202, "two channels"
        )
        row.equal("answers", server.request("POST", "/publish", "to all")[0], 202, "no channel")
        code, _, body = server.request("POST", "/publish/a?channel=b", "to a and b, or rejected")
        for name in ("a", "b", "all"):
            server.publish(name, "the end")
        got = [each.until("the end") for each in (one, two, all_)]
        if code == 202:
            row.equal(
                "answers",
                [got[0].count("to a and b, or rejected"), got[1].count("to a and b, or rejected")],
                [1, 1],
                "/publish/a?channel=b",
            )
            got = [[text for text in each if "rejected" not in text] for each in got]
        else:
            row.equal("answers", code, 400, f"/publish/a?channel=b ({body!r})")
        row.equal(
            "answers",
            got,
            [["to a", "to both", "the end"], ["to both", "the end"], ["to all", "the end"]],
            "who gets what",
        )
        for each in (one, two, all_):
            each.close()


def events(row):
    """SUBSCRIBE and UNSUBSCRIBE are acknowledged; a message in two rooms comes once for each, with
    the room in it."""
    with Server() as server:
        listener = connect(server.url("/ws?channel=a&channel=b"), proxy=None)
        sender = connect(server.url("/ws?channel=a&channel=b"), proxy=None)

        def send(socket, event):
            socket.send(json.dumps(event))

        def receive(socket):
            return json.loads(socket.recv(LIMIT))

        send(sender, {"event": "SUBSCRIBE", "channel": "c"})
        answer = receive(sender)
        row.check(
            "answers",
            "SUBSCRIBE" in str(answer.get("event")) and answer.get("channel") == "c",
            f"SUBSCRIBE: {answer}",
        )
        send(sender, {"event": "UNSUBSCRIBE", "channel": "c"})
        answer = receive(sender)
        row.check(
            "answers",
            "UNSUBSCRIBE" in str(answer.get("event")) and answer.get("channel") == "c",
            f"UNSUBSCRIBE: {answer}",
        )
        send(sender, {"event": "SAY", "message": "to both"})
        rooms = sorted(message.get("channel") for message in (receive(listener), receive(listener)))
        row.equal("answers", rooms, ["a", "b"], "the rooms of a message to both")
        send(sender, {"event": "SAY", "channel": "b", "message": "to b"})
        message = receive(listener)
        row.equal(
            "answers", (message.get("channel"), message.get("message")), ("b", "to b"), "SAY with a channel"
        )
        listener.close()
        sender.close()


def kept_connections(row):
    """What an answer says of its connection, and when one is closed."""
    with Server("--keep-alive-timeout", "7s") as server:
        headers = server.request("POST", "/publish/room", "x")[1]
        row.equal(
            "answers", headers.get("Keep-Alive"), "timeout=7", f"the answer's Keep-Alive ({dict(headers)})"
        )
        # A body that the server does not read to its end.
        too_long = b"x" * 300_000
        text = wired(
            server,
            b"POST /publish/room HTTP/1.1\r\nHost: localhost\r\nContent-Length: 300000\r\n\r\n" + too_long,
            server.admin,
        )
        head = text.split(b"\r\n\r\n")[0].lower()
        row.check(
            "answers",
            head.startswith(b"http/1.1 413") and b"connection: close" in head,
            f"a body beyond the bound: {text[:300]!r}",
        )
        text = wired(server, b"GET /healthz HTTP/1.0\r\n\r\n", half_close=True)
        row.check("answers", text.startswith(b"HTTP/1.") and b" 200 " in text[:20], f"HTTP/1.0: {text[:200]!r}")
        publish = b"POST /publish/room HTTP/1.1\r\nHost: localhost\r\n"
        for half in (
            publish + b"Content-Length: 10\r\n\r\nhalf",
            publish + b"Transfer-Encoding: chunked\r\n\r\n9\r\nhalf",
        ):
            text = wired(server, half, server.admin, half_close=True)
            good = text.startswith(b"HTTP/1.1 400 ")
            row.check("answers", good, f"a request that ends in its body: {text[:200]!r}")
        # Before the end of its head it is no request yet: hyper ends the connection in silence.
        text = wired(server, publish, server.admin, half_close=True)
        row.equal("answers", text, b"", "the answer to a request that ends in its head")
        subscriber = Subscriber(server, "room")
        server.publish("room", "the end")
        row.equal("answers", subscriber.until("the end"), ["the end"], "nothing of half a request")
        subscriber.close()
    with Server("--max-handshakes", "8", "--keep-alive-timeout", "60s") as server:
        # More kept connections than places: each publisher gets its answer, or is told before that
        # its connection ends.
        kept = [http.client.HTTPConnection(*server.admin.split(":"), timeout=LIMIT) for _ in range(24)]
        lost, answered = [], 0
        for step in range(3):
            for number, connection in enumerate(kept):
                try:
                    connection.request("POST", "/publish/room", f"{step} {number}")
                    answer = connection.getresponse()
                    answer.read()
                    answered += answer.status in (202, 503)
                except (OSError, http.client.HTTPException) as error:
                    # A connection that the server ended while it was idle: the next request opens
                    # another.
                    if step == 0 or not isinstance(
                        error, (http.client.RemoteDisconnected, ConnectionResetError, BrokenPipeError)
                    ):
                        lost.append(f"{step} {number}: {type(error).__name__}")
                    connection.close()
        row.check("answers", not lost, f"publications without an answer: {lost[:5]}")
        row.check("answers", answered > 24, f"only {answered} answers")


def limits(row):
    """Half requests that take all files: /healthz still answers."""
    with Server("--max-handshakes", "100000", open_files=1024) as server:
        held = []
        host, port = server.clients.split(":")
        try:
            for _ in range(1500):
                each = socket.create_connection((host, int(port)), timeout=LIMIT)
                each.sendall(b"GET /ws HTTP/1.1\r\nHost: localhost\r\n")
                held.append(each)
            for name, address in (("admin", server.admin), ("clients'", server.clients)):
                command = [
                    "curl",
                    "-s",
                    "-m",
                    "5",
                    "-o",
                    "/dev/null",
                    "-w",
                    "%{http_code}",
                    f"http://{address}/healthz",
                ]
                said = subprocess.run(command, capture_output=True, text=True).stdout
                row.equal(
                    "answers",
                    said,
                    "200",
                    f"/healthz of the {name} port within 5 s, beside 1,500 half requests and 1,024 files",
                    " ".join(command),
                )
        finally:
            for each in held:
                each.close()
    with Server() as server:
        before = server.counters()
        big = {f"X-{n}": "x" * 900 for n in range(100)}
        row.equal(
            "answers",
            server.request("GET", "/healthz", headers=big, port=server.clients)[0],
            431,
            "90 kB of headers",
        )
        wired(server, b"nonsense\r\n\r\n")
        server.request("POST", "/publish/room", b"x" * 70_000)
        grown = [key for key, value in server.counters().items() if value > before.get(key, 0)]
        for code in ("400", "413", "431"):
            row.check("answers", any(code in key for key in grown), f"no counter of {code} has grown: {grown}")
        row.check(
            "answers",
            server.logged("open files") or server.logged("open_files"),
            "the start does not say how many clients the open files allow",
        )


def addresses(row):
    """Forms of `--listen`, each on a free port."""
    from harness import WORK, free_port

    port = free_port()
    path = WORK / "hydrant.sock"
    for value, family, target in (
        (f"localhost:{port}", socket.AF_INET, ("127.0.0.1", port)),
        (f":{port}", socket.AF_INET, ("127.0.0.1", port)),
        (str(port), socket.AF_INET, ("127.0.0.1", port)),
        (f"unix:{path}", socket.AF_UNIX, str(path)),
    ):
        with Server("--listen", value):
            with socket.socket(family) as raw:
                raw.settimeout(LIMIT)
                raw.connect(target)
                raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                said = raw.recv(100)
            row.check("answers", said.startswith(b"HTTP/1.1 200"), f"--listen {value}: {said!r}")


ROWS = [
    ("fixed paths", fixed_paths),
    ("unknown parameters", parameters),
    ("types of bodies", bodies),
    ("channels in the query", channels),
    ("events", events),
    ("kept connections", kept_connections),
    ("limits", limits),
    ("forms of --listen", addresses),
]
