"""One row for each client library: everything that is tried with it."""

import base64
import hashlib
import hmac
import json
import time

from harness import Recorder, Server, silent_client, until

SECRET = "a secret of the tests, longer than 32 bytes"
TEXT, BINARY = "grüße ☃", bytes([0, 255, 128, 13, 10])
GOT_BOTH = f"text:{TEXT.encode().hex()},binary:{BINARY.hex()}"


def token(**claims):
    """A subscriber's token, HS256."""
    part = lambda data: base64.urlsafe_b64encode(data).rstrip(b"=")  # noqa: E731
    head = part(json.dumps({"alg": "HS256", "typ": "JWT"}).encode())
    body = part(json.dumps({"sub": "tester", "exp": int(time.time()) + 600, **claims}).encode())
    return (
        head + b"." + body + b"." + part(hmac.digest(SECRET.encode(), head + b"." + body, hashlib.sha256))
    ).decode()


class Tried:
    """The attempts of one row, in words of what should come of them."""

    def __init__(self, row, driver, can):
        self.row, self.driver, self.can = row, driver, can

    def opens(self, column, url, what, **options):
        answer = self.driver.ask(url, **options)
        self.row.check(column, answer.get("open") == "1", f"{what}: not open, {dict(answer)}", answer.attempt)
        return answer

    def rejected(self, column, url, what, status, **options):
        answer = self.driver.ask(url, **options)
        told = "status" in self.can
        good = answer.get("open") != "1" and (not told or answer.get("status") == str(status))
        self.row.check(column, good, f"{what}: {status} expected, got {dict(answer)}", answer.attempt)
        return answer

    def receives(self, column, server, path, channel, **options):
        """A text and a binary publication to `channel` come to a client of `path`."""

        def publish():
            server.publish(channel, TEXT)
            server.publish(channel, BINARY)

        answer = self.driver.ask(server.url(path), "receive", 2, ready=publish, **options)
        self.row.equal(
            column,
            answer.get("got"),
            GOT_BOTH,
            f"what a client of {path} receives ({dict(answer)})",
            answer.attempt,
        )
        self.closed(column, answer, 1000, f"closing {path}")
        return answer

    def closed(self, column, answer, code, what):
        if "no close code" not in self.can:
            self.row.equal(
                column,
                answer.get("close"),
                str(code),
                f"{what}, the close code ({dict(answer)})",
                answer.attempt,
            )


def origin_sent(recorder):
    sent = recorder.header("Origin")
    if not sent:
        return "none"
    if sent == f"http://{recorder.address}":
        return "`http://host:port`"
    return "its page's" if sent.startswith("http://127.0.0.1:") else f"`{sent}`"


def one_client(row, driver, can):
    """All of it with one client, which ends with the server's end."""
    tried = Tried(row, driver, can)
    recorder = Recorder()
    driver.ask(f"ws://{recorder.address}/ws")
    row.note("Origin it sends", origin_sent(recorder))

    with row.part(), Server("--subprotocol", "hydrant.v2,superchat", "--jwt-secret", SECRET) as server:
        subprotocols_listed(tried, server)
        tokens(tried, server)
    with row.part(), Server("--ping-interval", "1s", "--idle-timeout", "1s") as server:
        paths(tried, server)
        echoes(tried, server)
        subprotocols(tried, server)
        parameters(tried, server)
        if "headers" in can:
            origins(tried, server)
        pings(tried, server)
        closes(tried, server)
    if "headers" in can:
        allowed = "null,file://,https://app.example,http://localhost:*"
        with row.part(), Server("--allow-origin", allowed) as server:
            origins_allowed(tried, server)


def paths(tried, server):
    for path, channel in [
        ("/ws", "all"),
        ("/ws/", "all"),
        ("//ws", "all"),
        ("/", "all"),
        ("/ws/room", "room"),
        ("/ws?channel=room", "room"),
        ("/ws/?channel=a&channel=b", "b"),
    ]:
        tried.receives("paths, messages", server, path, channel)


def echoes(tried, server):
    for path in ("/echo", "/echo/"):
        answer = tried.driver.ask(server.url(path), "echo")
        wanted = "text,large,binary"
        tried.row.equal("echo, 64 KiB", answer.get("echo"), wanted, f"{path} ({dict(answer)})", answer.attempt)
        tried.closed("echo, 64 KiB", answer, 1000, f"closing {path}")
        if "ping" in tried.can:
            tried.row.equal(
                "ping, pong", answer.get("pong"), "1", f"a pong from {path} ({dict(answer)})", answer.attempt
            )


def subprotocols(tried, server):
    for path in ("/ws", "/echo"):
        answer = tried.opens(
            "subprotocols", server.url(path), f"{path}, offering two", protocols=["chat", "superchat"]
        )
        tried.row.equal(
            "subprotocols", answer.get("protocol"), "chat", "the first offered is chosen", answer.attempt
        )
    answer = tried.opens("subprotocols", server.url("/ws"), "/ws, offering none")
    tried.row.equal("subprotocols", answer.get("protocol"), "", "none is chosen", answer.attempt)


def subprotocols_listed(tried, server):
    answer = tried.opens(
        "subprotocols",
        server.url("/echo"),
        "one of the listed",
        protocols=["chat", "superchat", "bearer", token()],
    )
    tried.row.equal("subprotocols", answer.get("protocol"), "superchat", "the listed is chosen", answer.attempt)


def tokens(tried, server):
    good, late = token(), token(exp=int(time.time()) - 600)
    tried.rejected("tokens", server.url("/ws"), "no token", 401)
    tried.rejected("tokens", server.url(f"/ws?token={late}"), "an expired token", 401)
    tried.rejected(
        "tokens", server.url("/ws/b?token=" + token(channels=["a"])), "a token for another channel", 403
    )
    tried.receives("tokens", server, f"/ws?token={good}", "all")
    answer = tried.receives("tokens", server, "/ws", "all", protocols=["bearer", good])
    tried.row.equal(
        "tokens", answer.get("protocol"), "bearer", "`bearer` is chosen, not the token", answer.attempt
    )
    if "headers" in tried.can:
        tried.receives("tokens", server, "/ws", "all", headers={"Authorization": f"Bearer {good}"})
    tried.row.check("tokens", good not in server.log.read_text(), "the token is in the log")


def parameters(tried, server):
    for query in ("channels=a", "room=a", "channel[]=a", "receipt=true"):
        for path in ("/ws", "/echo"):
            tried.rejected("bad parameters", server.url(f"{path}?{query}"), f"{path}?{query}", 400)


def origins(tried, server):
    own = server.clients
    port = own.rsplit(":", 1)[1]
    for origin in (
        f"http://{own}",
        f"http://{own}/",
        f"http://{own}/some/page",
        f"ws://{own}",
        f"wss://{own}",
        f"http://localhost:{port}",
        "http://localhost:5173",
        "http://127.0.0.1:8080",
        "http://[::1]:8080",
        "http://localhost/",
    ):
        tried.opens("Origin", server.url("/ws"), f"Origin {origin}", headers={"Origin": origin})
    if "offer kept" not in tried.can:
        # A bare host is not a URL, and x/net/websocket takes only URLs.
        tried.opens("Origin", server.url("/ws"), f"Origin {own}", headers={"Origin": own})
    for origin in ("http://foreign.example", "https://127.0.0.1.foreign.example", "null", "file://"):
        tried.rejected("Origin", server.url("/ws"), f"Origin {origin}", 403, headers={"Origin": origin})
    tried.row.check(
        "Origin",
        server.logged("foreign.example", "allow-origin"),
        f"no line of the log names the rejected origin and --allow-origin: {server.log}",
    )


def origins_allowed(tried, server):
    allowed = ("null", "file://", "https://app.example", "https://app.example/", "https://app.example:443")
    for origin in allowed[2:] if "offer kept" in tried.can else allowed:
        tried.opens("Origin", server.url("/ws"), f"Origin {origin}, allowed", headers={"Origin": origin})
    headers = {"Origin": "https://b.example"}
    tried.rejected("Origin", server.url("/ws"), "another Origin", 403, headers=headers)


def pings(tried, server):
    def after_pings():
        silent_client(server)
        server.publish("room", "still here")

    answer = tried.driver.ask(server.url("/ws/room"), "receive", 1, ready=after_pings)
    wanted = "text:" + b"still here".hex()
    tried.row.equal(
        "ping, pong", answer.get("got"), wanted, f"after the server's pings ({dict(answer)})", answer.attempt
    )


def closes(tried, server):
    answer = tried.driver.ask(server.url("/ws"), "say", '{"event":"LEAVE"}')
    tried.closed("close codes", answer, 1000, "LEAVE")
    answer = tried.driver.ask(server.url("/ws"), "say", "@65537")
    tried.closed("close codes", answer, 1009, "a message of 64 KiB and 1")
    answer = tried.driver.ask(server.url("/ws"), "say", "", ready=server.terminate)
    tried.closed("close codes", answer, 1001, "SIGTERM")
    until(lambda: server.process.poll() is not None, "the server ends after SIGTERM")


def library_row(row, start, can):
    driver = start()
    try:
        one_client(row, driver, can)
    finally:
        driver.close()
