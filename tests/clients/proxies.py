"""nginx and HAProxy in their common configurations: pages, publishers, and whose address counts."""

import contextlib
import functools
import shutil
import socket
import subprocess
import threading
from collections import Counter
from pathlib import Path

import browsers
import publishers
import tools
from harness import LIMIT, WORK, PageServer, Server, Subscriber, free_port, until
from harness import _numbers as numbers
from websockets.exceptions import InvalidStatus, WebSocketException
from websockets.sync.client import connect

TOKEN = "letmein"

# --- what nginx forwards, as its documentation and its users write it -----------------------------

UPGRADE = """
      proxy_http_version 1.1;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;"""
FORWARDED = """
      proxy_set_header X-Forwarded-Host $http_host;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"""
NGINX = """
daemon off; master_process off; pid {dir}/pid; error_log {dir}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/f; uwsgi_temp_path {dir}/u;
  scgi_temp_path {dir}/s;
  keepalive_timeout 60s;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' close; }}
  upstream clients {{ server {clients}; }}
  upstream admin {{ server {admin}; {keep} }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://{clients};{forward}
    }}
    location /page {{ proxy_pass http://127.0.0.1:{pages}; }}
    location /internal/ {{
      proxy_pass http://admin/;{publish}
    }}
  }}
}}
"""
HAPROXY = """
global
  maxconn 2000
  stats socket {dir}/stats mode 600
defaults
  mode {mode}
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout http-request 10s
  timeout http-keep-alive 60s
  timeout tunnel 1h
  {defaults}
frontend clients
  bind 127.0.0.1:{port}
  {routes}
  default_backend clients
frontend internal
  bind 127.0.0.1:{internal}
  default_backend admin
backend clients
  {check}
  server one {clients} {checked} {send}
backend admin
  {reuse}
  server one {admin} {checked}
{pages_backend}
"""


class Proxy:
    """nginx or HAProxy before one server, with the pages' server behind it, too."""

    def __init__(self, row, server, pages, kind, **options):
        self.server, self.kind = server, kind
        self.dir = WORK / f"{kind}-{next(numbers)}"
        self.dir.mkdir()
        self.port, self.internal = free_port(), free_port()
        fill = dict(
            dir=self.dir,
            port=self.port,
            internal=self.internal,
            pages=pages.port,
            clients=server.clients,
            admin=server.admin,
        )
        config = self.dir / "config"
        if kind == "nginx":
            forward, publish = options.get("forward", ""), options.get("publish", "")
            keep = "keepalive 16; keepalive_timeout 60s;" if options.get("keep") else ""
            config.write_text(NGINX.format(**fill, forward=forward, publish=publish, keep=keep))
            command = [shutil.which("nginx"), "-c", config, "-p", self.dir, "-e", self.dir / "error.log"]
        else:
            http = options.get("mode") == "http"
            config.write_text(
                HAPROXY.format(
                    **fill,
                    mode=options["mode"],
                    send=options.get("send", ""),
                    checked="check inter 200ms" if options.get("checked") else "",
                    defaults="option forwardfor" if http else "",
                    routes="use_backend pages if { path /page }" if http else "",
                    check="option httpchk GET /readyz" if http else "",
                    reuse="http-reuse always" if http else "",
                    pages_backend=f"backend pages\n  server one 127.0.0.1:{pages.port}" if http else "",
                )
            )
            command = [shutil.which("haproxy"), "-db", "-f", config]
        self.log = open(self.dir / "log", "w")
        self.command = [str(part) for part in command]
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.DEVNULL, stdout=self.log, stderr=self.log
        )
        until(self._listens, f"{' '.join(self.command)} listens ({self.dir})")

    def _listens(self):
        # Not by connecting: some proxies would open a connection to the server for it.
        return f":{self.port:04X} 00000000:0000 0A" in Path("/proc/net/tcp").read_text()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        try:
            self.process.wait(5)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self.log.close()

    def publishing(self):
        """The URL for publishers."""
        if self.kind == "nginx":
            return f"http://127.0.0.1:{self.port}/internal/publish/room"
        return f"http://127.0.0.1:{self.internal}/publish/room"

    def tell(self):
        return f"{' '.join(self.command)}    # {' '.join(self.server.command)}"

    def up(self):
        """Whether HAProxy's health checks have found both servers."""
        with socket.socket(socket.AF_UNIX) as stats:
            stats.connect(str(self.dir / "stats"))
            stats.sendall(b"show stat\n")
            text = b"".join(iter(lambda: stats.recv(65536), b"")).decode()
        states = [line.split(",")[17] for line in text.splitlines() if line.split(",")[1:2] == ["one"]]
        return len(states) >= 2 and all(state.startswith(("UP", "no check")) for state in states)


# --- a client of the proxy ------------------------------------------------------------------------


def status(proxy, origin=None, source=None, headers=None, path="/ws"):
    """101 and the open socket, or the status of the rejection."""
    host = f"{browsers.APP}:{proxy.port}"
    raw = socket.create_connection(("127.0.0.1", proxy.port), LIMIT, (source or "127.0.0.1", 0))
    try:
        return 101, connect(
            f"ws://{host}{path}",
            sock=raw,
            origin=origin,
            additional_headers=headers,
            proxy=None,
            compression=None,
        )
    except InvalidStatus as rejected:
        return rejected.response.status_code, None
    except (WebSocketException, EOFError, OSError) as error:
        return f"{type(error).__name__}: {error}", None


def through(proxy, path, **options):
    return proxy.server.request(
        "GET", path, port=f"127.0.0.1:{proxy.port}", headers={"Host": browsers.APP, **options}
    )


def the_admin_port_is_not_open(row, proxy):
    for path in ("/publish", "/publish/room", "/metrics", "/debug/mem", "/debug/pprof/heap"):
        code, _, body = through(proxy, path)
        good = code == 404 and f"http://{proxy.server.admin}{path}" in body
        row.check(
            "nothing else open",
            good,
            f"GET {path} on the clients' port: 404 with the right URL expected, got {code} {body!r}",
        )
    for path in ("/", "/healthz", "/readyz"):
        code = through(proxy, path)[0]
        row.equal("nothing else open", code, 200, f"GET {path}", proxy.tell())


def one_page(row, proxy, wanted, page=None):
    """A page that came from the proxy, as a scripted browser and as a real one."""
    origin = f"http://{browsers.APP}:{proxy.port}"
    got, open_socket = status(proxy, origin)
    row.equal("pages", got, wanted, f"a page of {origin} connects", proxy.tell())
    if open_socket:
        proxy.server.publish("all", "to the page", proxy.server.bearer())
        row.equal("pages", open_socket.recv(LIMIT), "to the page", "the page receives")
        open_socket.close()
    if page:
        answer = page(f"{origin}/page").ask(f"ws://{browsers.APP}:{proxy.port}/ws")
        row.equal(
            "pages in Chromium",
            answer.get("open") == "1",
            wanted == 101,
            f"Chromium's page of {origin} ({dict(answer)})",
            proxy.tell(),
        )


def whose_address(row, proxy, clients, spoofed="X-Forwarded-For"):
    """With `--max-per-address 2`, two connections of one address are admitted and a third is not;
    one of another address is."""
    sockets = []
    try:
        codes = []
        for source in ("127.0.0.2", "127.0.0.2", "127.0.0.2", "127.0.0.3"):
            code, each = status(proxy, source=source, headers={spoofed: "203.0.113.9"})
            codes.append(code)
            sockets.append(each)
        row.equal(
            "addresses",
            codes,
            [101, 101, 429, 101 if clients else 429],
            "2 of an address may connect",
            proxy.tell(),
        )
    finally:
        for each in filter(None, sockets):
            each.close()


def publications(row, proxy, library="http.client"):
    """200 publications through the proxy, over kept connections to it."""
    server = proxy.server
    subscriber = Subscriber(server, "room")
    given = publishers.plan(row.name)
    command = [tools.sys.executable, str(tools.DRIVERS / "publish.py"), library, proxy.publishing(), TOKEN]
    done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=4 * LIMIT)
    failures = [line.split("\t")[1:] for line in done.stdout.splitlines() if line.startswith("failed")]
    row.check("200 publications", "done\t" in done.stdout, f"the publisher ended: {done.stderr[-500:]}")
    server.publish("room", "the end", server.bearer())
    got = Counter(subscriber.until("the end"))
    del got["the end"]
    subscriber.close()
    wanted = {f"{s}-{n}" for s in range(publishers.SESSIONS) for n in range(publishers.STEPS)}
    row.check(
        "200 publications",
        not failures,
        f"{len(failures)} failed, for example {failures[:4]}",
        f"{' '.join(command)}    # {proxy.tell()}",
    )
    row.check(
        "200 publications",
        max(got.values(), default=1) == 1,
        f"doubled: {[b for b, n in got.items() if n > 1][:4]}",
    )
    missing = wanted - got.keys() - {body for body, *_ in failures}
    row.check("200 publications", not missing, f"answered, but not delivered: {sorted(missing)[:4]}")


# --- one real browser for all proxies -------------------------------------------------------------


class Chromium:
    """Started when it is first needed; frames of it are pages of any origin."""

    def __init__(self):
        self.pages = PageServer()
        self.stack = contextlib.ExitStack()
        self.lock = threading.Lock()
        self.program = shutil.which("chromium") or shutil.which("chromium-browser")

    @functools.cached_property
    def top(self):
        return self.stack.enter_context(browsers.browser(self.program, browsers.start_chromium, self.pages))

    def page(self, url):
        with self.lock:
            origin, path = url.rsplit("/", 1)
            page = self.pages.page(origin, f"/{path}")
            self.top.ask(page.url, "frame")
            return page


CHROMIUM = Chromium()


def one_proxy(
    row, kind, pages, trusted=False, addresses=None, publishes=True, unwanted=(), extra=(), **options
):
    """Tries one configuration. `pages`: the status that a page of the proxy's name gets;
    `addresses`: whether the client's own counts (None: not tried)."""
    trust = ("--trusted-proxy", "127.0.0.1/32") if trusted else ()
    frame = CHROMIUM.page if CHROMIUM.program and options.get("mode") != "tcp" else None
    before = lambda server, **more: Proxy(row, server, CHROMIUM.pages, kind, **options, **more)  # noqa: E731
    with row.part(), Server("--token", TOKEN, *publishers.FLAGS, *trust, *extra) as server:
        with before(server, checked=True) as proxy:
            if kind == "haproxy":
                until(proxy.up, f"HAProxy's health checks succeed ({proxy.tell()})")
                row.check("health checks", True, "")
            if options.get("mode") != "tcp":
                the_admin_port_is_not_open(row, proxy)
            one_page(row, proxy, pages, frame)
            if pages == 403:
                good = server.logged(f"{browsers.APP}:{proxy.port}", "allow-origin")
                row.check("pages", good, f"the log does not say what to set for {browsers.APP}: {server.log}")
            if publishes:
                publications(row, proxy)
    if pages == 403:
        with row.part(), Server("--allow-origin", f"http://{browsers.APP}:*", *extra) as server:
            with before(server) as proxy:
                one_page(row, proxy, 101, frame)
    if addresses is not None:
        with row.part(), Server("--max-per-address", "2", *trust, *extra) as server:
            # Without health checks, which are connections of the proxy's address.
            with before(server) as proxy:
                whose_address(row, proxy, addresses, options.get("spoofed", "X-Forwarded-For"))


PROXY_PROTOCOL = ("--proxy-protocol",)
ROWS = [
    ("nginx, `proxy_pass` alone (HTTP/1.0)", dict(kind="nginx", pages=426)),
    (
        "nginx, its WebSocket page (Host rewritten)",
        dict(kind="nginx", pages=403, addresses=False, forward=UPGRADE),
    ),
    (
        "nginx, X-Forwarded-Host, -Proto and -For",
        dict(kind="nginx", pages=101, trusted=True, addresses=True, forward=UPGRADE + FORWARDED),
    ),
    (
        "nginx, Host kept, X-Forwarded-For, not trusted",
        dict(
            kind="nginx",
            pages=101,
            addresses=False,
            publishes=False,
            forward=UPGRADE + "\n      proxy_set_header Host $http_host;" + FORWARDED,
        ),
    ),
    (
        "nginx, Host kept, Forwarded",
        dict(
            kind="nginx",
            pages=101,
            trusted=True,
            addresses=True,
            publishes=False,
            spoofed="Forwarded-By",
            forward=UPGRADE
            + '\n      proxy_set_header Host $http_host;\n      proxy_set_header Forwarded "for=$remote_addr";',
        ),
    ),
    (
        "nginx, upstream with keepalive",
        dict(
            kind="nginx",
            pages=101,
            trusted=True,
            addresses=True,
            keep=True,
            forward=UPGRADE + FORWARDED,
            publish='\n      proxy_http_version 1.1;\n      proxy_set_header Connection "";',
        ),
    ),
    (
        "HAProxy, HTTP, X-Forwarded-For",
        dict(kind="haproxy", pages=101, trusted=True, addresses=True, mode="http"),
    ),
    ("HAProxy, TCP", dict(kind="haproxy", pages=101, addresses=False, mode="tcp")),
    (
        "HAProxy, TCP, PROXY protocol v1",
        dict(
            kind="haproxy",
            pages=101,
            trusted=True,
            addresses=True,
            mode="tcp",
            send="send-proxy",
            extra=PROXY_PROTOCOL,
        ),
    ),
    (
        "HAProxy, TCP, PROXY protocol v2",
        dict(
            kind="haproxy",
            pages=101,
            trusted=True,
            addresses=True,
            mode="tcp",
            send="send-proxy-v2",
            extra=PROXY_PROTOCOL,
        ),
    ),
    (
        "HAProxy, HTTP, PROXY protocol v2",
        dict(
            kind="haproxy",
            pages=101,
            trusted=True,
            addresses=True,
            mode="http",
            send="send-proxy-v2",
            extra=PROXY_PROTOCOL,
        ),
    ),
]
