"""Chromium and Firefox, headless. Pages of several origins are driven by drivers/page.html."""

import contextlib
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import libraries
import tools
from harness import HERE, WORK, PageServer, Server, Subscriber

# The names of pages that are not of this machine, which the browsers resolve to it.
FOREIGN, APP = "foreign.example", "app.example"
FIREFOX_SETTINGS = {
    "network.dns.forceResolve": "127.0.0.1",
    "network.proxy.type": 0,
    "network.captive-portal-service.enabled": False,
    "network.connectivity-service.enabled": False,
    "browser.shell.checkDefaultBrowser": False,
    "browser.startup.homepage_override.mstone": "ignore",
    "browser.safebrowsing.malware.enabled": False,
    "browser.safebrowsing.phishing.enabled": False,
    "browser.safebrowsing.downloads.enabled": False,
    "datareporting.policy.dataSubmissionEnabled": False,
    "toolkit.telemetry.reportingpolicy.firstRun": False,
    "toolkit.telemetry.server": "",
    "app.normandy.enabled": False,
    "app.update.enabled": False,
    "extensions.getAddons.cache.enabled": False,
    "extensions.update.enabled": False,
    "services.settings.server": "data:,",
    "browser.aboutwelcome.enabled": False,
    "browser.tabs.remote.autostart": True,
    "network.lna.blocking": False,
    "network.lna.enabled": False,
}


def installed():
    """(name, the program or None, start) of both browsers."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    firefox = shutil.which("firefox-esr") or shutil.which("firefox")
    name = lambda word, program: f"{word} {tools.version(program, '--version')}" if program else word  # noqa: E731
    return [
        (name("Chromium", chromium), chromium, start_chromium),
        (name("Firefox", firefox), firefox, start_firefox),
    ]


def start_chromium(program, profile, url):
    return [
        program,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--no-proxy-server",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--disable-extensions",
        "--disable-background-timer-throttling",
        "--disable-features=LocalNetworkAccessChecks",
        "--host-resolver-rules=MAP *.example 127.0.0.1",
        f"--user-data-dir={profile}",
        "--remote-debugging-port=0",
        url,
    ]


def start_firefox(program, profile, url):
    as_text = lambda value: f'"{value}"' if isinstance(value, str) else str(value).lower()  # noqa: E731
    settings = "".join(f'user_pref("{key}", {as_text(value)});\n' for key, value in FIREFOX_SETTINGS.items())
    (Path(profile) / "user.js").write_text(settings)
    return [program, "--headless", "--no-remote", "--profile", profile, url]


@contextlib.contextmanager
def browser(program, start, pages, path=None):
    """A browser whose first page is a file; the page, which is driven."""
    with tempfile.TemporaryDirectory(prefix="hydrant-browser-") as profile:
        top = pages.page(f"file://{HERE / 'drivers' / 'page.html'}", "")
        log = open(WORK / f"browser-{top.id}.log", "w")
        process = subprocess.Popen(
            start(program, profile, top.url),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment(profile),
        )
        try:
            yield top
        finally:
            top.close()
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            log.close()
            # Its children may still write into the profile.
            for _ in range(50):
                with contextlib.suppress(OSError):
                    shutil.rmtree(profile)
                if not Path(profile).exists():
                    break
                time.sleep(0.1)
            Path(profile).mkdir(exist_ok=True)


def _environment(profile):
    import os

    return {**os.environ, "HOME": profile, "MOZ_CRASHREPORTER_DISABLE": "1"}


def frame(top, pages, origin, sandbox=False):
    """A page of `origin` within the first one."""
    page = pages.page(origin)
    top.ask(page.url, "frame", "sandbox" if sandbox else "")
    return page


def browser_row(row, program, start):
    pages = PageServer()
    with browser(program, start, pages) as top:
        # Everything that the libraries do, from a page of another port of this machine.
        libraries.one_client(row, frame(top, pages, None), set())
        with row.part():
            origins(row, top, pages)
        with row.part():
            publishing(row, top, pages)


def origins(row, top, pages):
    port = pages.port
    frames = {
        "another port of 127.0.0.1": (frame(top, pages, None), True),
        "localhost": (frame(top, pages, f"http://localhost:{port}"), True),
        "another site": (frame(top, pages, f"http://{FOREIGN}:{port}"), False),
        "a sandboxed frame (null)": (frame(top, pages, None, sandbox=True), False),
        "a file": (top, False),
    }
    with Server() as server:
        for name, (page, allowed) in frames.items():
            for url in (server.url("/ws"), server.url("/ws").replace("127.0.0.1", "localhost")):
                answer = page.ask(url)
                what = f"a page of {name} ({answer.get('origin')}), {url}: open={answer.get('open')}"
                row.check("pages' origins", (answer.get("open") == "1") == allowed, what)
        row.check(
            "pages' origins",
            server.logged(FOREIGN, "allow-origin"),
            f"no line of the log says what to set for {FOREIGN}",
        )
    with Server("--allow-origin", f"null,file://,http://{FOREIGN}:*") as server:
        for name, (page, _) in frames.items():
            answer = page.ask(server.url("/ws"))
            row.check("pages' origins", answer.get("open") == "1", f"a page of {name}, allowed: {dict(answer)}")


def publishing(row, top, pages):
    """A page's publication is delivered and the page can read that, or it is not delivered."""
    own, foreign = frame(top, pages, None), frame(top, pages, f"http://{FOREIGN}:{pages.port}")
    column = "pages publish"
    secret = {"Authorization": "Bearer letmein"}
    with Server() as server:
        subscriber = Subscriber(server, "room")
        for name, page in (("this machine", own), ("another site", foreign)):
            for mode in ("cors", "no-cors"):
                answer = page.ask(server_url(server, "/publish/room"), "fetch", f"POST {mode} rejected")
                row.check(
                    column,
                    answer.get("status") in (None, "0", "403"),
                    f"a page of {name} publishes without a token: {dict(answer)}",
                )
        nothing_came(row, column, server, subscriber)
    with Server("--token", "letmein", "--allow-origin", "*") as server:
        subscriber = Subscriber(server, "room")
        answer = foreign.ask(server_url(server, "/publish/room"), "fetch", "POST cors rejected")
        row.check(
            column, answer.get("status") in (None, "401"), f"--allow-origin * without the token: {dict(answer)}"
        )
        nothing_came(row, column, server, subscriber)
    with Server("--token", "letmein", "--allow-origin", f"http://127.0.0.1:{pages.port}") as server:
        subscriber = Subscriber(server, "room")
        answer = own.ask(server_url(server, "/publish/room"), "fetch", "POST cors allowed", headers=secret)
        row.equal(
            column,
            answer.get("status"),
            "202",
            f"an allowed page with the token reads its answer ({dict(answer)})",
        )
        subscriber.until("allowed")
        headers = {**secret, "Content-Type": "application/octet-stream"}
        answer = own.ask(
            server_url(server, "/publish/room?receipt=1"), "fetch", "POST cors binary", headers=headers
        )
        row.equal(column, answer.get("status"), "202", f"the same, binary and with a receipt ({dict(answer)})")
        subscriber.until(b"binary")
        answer = foreign.ask(server_url(server, "/publish/room"), "fetch", "POST cors rejected", headers=secret)
        row.check(
            column, answer.get("status") is None, f"a page of another site with the token: {dict(answer)}"
        )
        subscriber.texts.clear()
        nothing_came(row, column, server, subscriber, "letmein")


def server_url(server, path):
    return f"http://{server.admin}{path}"


def nothing_came(row, column, server, subscriber, token=None):
    server.publish("room", "the end", {"Authorization": f"Bearer {token}"} if token else server.bearer())
    came = subscriber.until("the end")
    row.equal(column, came, ["the end"], "what was delivered of rejected publications")
    subscriber.close()
