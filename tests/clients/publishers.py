"""200 publications over each kind of publisher, at intervals around every timeout.

None fails, none comes twice, and everything that was answered with 202 comes.
"""

import http.client
import random
import shutil
import subprocess
import sys
from collections import Counter

import tools
from harness import LIMIT, WORK, Failed, Server, Subscriber, until, wired
from harness import _numbers as numbers

# The server's timeouts in milliseconds. It keeps a connection for GRACE longer than it announces.
KEEP_ALIVE, GRACE, HANDSHAKE = 2000, 2000, 1000
FLAGS = ("--keep-alive-timeout", f"{KEEP_ALIVE}ms", "--handshake-timeout", f"{HANDSHAKE}ms")
SESSIONS, STEPS = 40, 5
# Milliseconds between two publications of a connection, around each timeout. A request that crosses
# the end of the stream on its way is lost on any server: so not at the very end of the grace, which
# only clients reach that do not heed `Keep-Alive`.
AROUND = (-100, -20, -5, -2, -1, 0, 1, 2, 5, 20, 100)
PAUSES = [0, 5, 500, *(timeout + d for timeout in (HANDSHAKE, KEEP_ALIVE) for d in AROUND)]
PAUSES += [KEEP_ALIVE + GRACE + d for d in (-500, -200, -100, 100, 200, 500)]


def plan(seed):
    """Every pause several times, in an order of its own for each publisher."""
    choose = random.Random(seed)
    pauses = [PAUSES[i % len(PAUSES)] + choose.random() for i in range(SESSIONS * STEPS)]
    choose.shuffle(pauses)
    return "\n".join(" ".join(f"{p:.1f}" for p in pauses[i::SESSIONS]) for i in range(SESSIONS))


def publish(row, server, library, url, channel):
    """Runs one publisher's program, and compares what the subscriber got."""
    subscriber = Subscriber(server, channel)
    drivers = tools.DRIVERS
    if library in ("http", "fetch"):
        command = [shutil.which("node"), drivers / "publish.mjs", library, url]
    else:
        command = [sys.executable, drivers / "publish.py", library, url]
    given = plan(row.name)
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=4 * LIMIT)
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    failures = [rest for kind, *rest in lines if kind == "failed"]
    finished = [rest for kind, *rest in lines if kind == "done"]
    if not finished:
        raise Failed(f"the publisher ended: {done.stderr[-2000:]}")
    server.publish(channel, "the end", server.bearer())
    got = Counter(subscriber.until("the end"))
    del got["the end"]
    subscriber.close()
    judge(row, failures, got, {f"{s}-{n}" for s in range(SESSIONS) for n in range(STEPS)})
    row.note("sent again", finished[0][1])
    file = WORK / f"plan-{next(numbers)}.txt"
    file.write_text(given)
    if row.failures:
        row.failures[0] = (
            *row.failures[0][:2],
            f"{' '.join(map(str, command))} < {file}    # {' '.join(server.command)}",
        )


def judge(row, failures, got, wanted):
    row.note("publications", str(len(wanted)))
    row.note("failed", str(len(failures)))
    doubled = [body for body, times in got.items() if times > 1]
    row.note("doubled", str(len(doubled)))
    row.check("checks", not failures, f"{len(failures)} publications failed, for example {failures[:4]}")
    row.check("checks", not doubled, f"{len(doubled)} publications came twice, for example {doubled[:4]}")
    missing = wanted - got.keys() - {body for body, *_ in failures}
    row.check(
        "checks",
        not missing,
        f"{len(missing)} publications were answered and did not come, for example {sorted(missing)[:4]}",
    )
    unknown = got.keys() - wanted
    row.check("checks", not unknown, f"came without being sent: {sorted(unknown)[:4]}")


def direct(library):
    def run(row):
        with Server(*FLAGS) as server:
            publish(row, server, library, f"http://{server.admin}/publish/room", "room")

    return run


def each_once(row, send, count=50):
    """Publications that a program sends one by one; `send(server, body)` returns whether it got a
    202."""
    with Server(*FLAGS) as server:
        subscriber = Subscriber(server, "room")
        bodies = [f"body {n}" for n in range(count)]
        failures = [(body, why) for body in bodies if (why := send(server, body))]
        server.publish("room", "the end")
        got = Counter(subscriber.until("the end"))
        del got["the end"]
        subscriber.close()
        judge(row, failures, got, set(bodies))


def curl(row):
    def send(server, body):
        url = f"http://{server.admin}/publish/room"
        command = ["curl", "-s", "-o", "/dev/null", "-w", "%{http_code}", "-d", body, url]
        said = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT).stdout
        return None if said == "202" else said

    each_once(row, send)


def request(server, body, version="1.1"):
    return (
        f"POST /publish/room HTTP/{version}\r\nHost: {server.admin}\r\nContent-Type: text/plain\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    )


def netcat(row):
    """`printf … | nc -N`: the request's end is the end of what the client sends."""

    def send(server, body):
        command = ["nc", "-N", *server.admin.split(":")]
        said = subprocess.run(
            command, input=request(server, body), capture_output=True, text=True, timeout=LIMIT
        ).stdout
        return None if said.startswith("HTTP/1.1 202 ") else repr(said[:100])

    each_once(row, send)


def half_closed(row):
    """The same by a socket, so that request and end may arrive together."""

    def send(server, body):
        said = wired(server, request(server, body).encode(), server.admin, half_close=True)
        return None if said.startswith(b"HTTP/1.1 202 ") else repr(said[:100])

    each_once(row, send)


def pipelined(row):
    """Ten requests in one write, and the end of the stream behind them."""
    with Server(*FLAGS) as server:
        subscriber = Subscriber(server, "room")
        bodies = [f"body {n}" for n in range(10)]
        said = wired(
            server, "".join(request(server, body) for body in bodies).encode(), server.admin, half_close=True
        )
        accepted = said.count(b"HTTP/1.1 202 ")
        server.publish("room", "the end")
        got = Counter(subscriber.until("the end"))
        del got["the end"]
        subscriber.close()
        judge(
            row,
            [] if accepted == 10 else [("", f"{accepted} of 10 answered: {said[-300:]!r}")],
            got,
            set(bodies),
        )


def drained(row):
    """SIGTERM while a connection publishes: each request is answered, the last with a close.

    Head and body come in a segment each, so that the drain also begins between the two.
    """
    with Server("--drain-timeout", "5s", *FLAGS) as server:
        subscriber = Subscriber(server, "room")
        host, port = server.admin.split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=LIMIT)
        failures, accepted, last = [], [], None
        for number in range(100_000):
            body = str(number)
            if number == 50:
                server.terminate()
            try:
                connection.request("POST", "/publish/room", body, {"Content-Type": "text/plain"})
                answer = connection.getresponse()
                answer.read()
            except (OSError, http.client.HTTPException) as error:
                failures.append((body, f"{type(error).__name__}: {error}"))
                break
            if answer.status == 202:
                accepted.append(body)
            last = answer
            if answer.getheader("Connection", "").lower() == "close":
                break
        row.check(
            "checks",
            last is not None and last.getheader("Connection", "").lower() == "close",
            "no answer says `Connection: close`",
        )
        until(lambda: server.process.poll() is not None, "the server ends")
        got = Counter(subscriber.texts)
        # Those after the subscriber's own end have nobody to come to.
        wanted = set(accepted[: len(got)])
        judge(row, failures, got, wanted)


ROWS = [
    ("Python http.client", direct("http.client"), None),
    ("Python requests", direct("requests"), None),
    ("Python httpx", direct("httpx"), None),
    ("Python aiohttp", direct("aiohttp"), None),
    ("Node http", direct("http"), "node"),
    ("Node fetch", direct("fetch"), "node"),
    ("curl", curl, "curl"),
    ("`printf … \\| nc -N`", netcat, "nc"),
    ("half-closed socket", half_closed, None),
    ("ten requests at once, half-closed", pipelined, None),
    ("a kept connection at SIGTERM", drained, None),
]
