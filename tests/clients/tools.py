"""Which programs are here, and how each is started; a missing program is None, with a reason."""

import functools
import re
import shutil
import subprocess
import sys

from harness import HERE, TARGET, Driver

DIR = TARGET / "clients"
DRIVERS = HERE / "drivers"
NODE_PACKAGES = {"NODE_PATH": str(DIR / "npm" / "node_modules")}


@functools.cache
def version(*command):
    """What a program says of its version, short."""
    said = subprocess.run(command, capture_output=True, text=True, timeout=60)
    found = re.search(r"\d+(\.\d+)+", said.stdout + said.stderr)
    return found[0] if found else "?"


def package(name):
    import importlib.metadata

    return importlib.metadata.version(name)


def node_package(name):
    path = DIR / "npm" / "node_modules" / name / "package.json"
    return re.search(r'"version": "([^"]+)"', path.read_text())[1] if path.exists() else None


@functools.cache
def bun():
    """The package's set-up moves the program, where npm lets it."""
    modules = DIR / "npm" / "node_modules"
    for path in [*modules.glob("@oven/*/bin/bun"), modules / "bun" / "bin" / "bun.exe"]:
        if path.exists() and subprocess.run([path, "--version"], capture_output=True).returncode == 0:
            return path
    return shutil.which("bun")


def _module(file):
    """Modules find their packages beside themselves: a copy lies beside what npm has installed."""
    beside = DIR / "npm" / "drivers"
    beside.mkdir(parents=True, exist_ok=True)
    for each in ("lines.mjs", file):
        (beside / each).write_bytes((DRIVERS / each).read_bytes())
    return beside / file


def node_has_websocket():
    """Node 22 has it, Node 20 with a flag; the flags to start with, or None."""
    for flags in ([], ["--experimental-websocket"]):
        code = "process.exit(typeof WebSocket === 'function' ? 0 : 1)"
        if subprocess.run(["node", *flags, "-e", code], capture_output=True).returncode == 0:
            return flags
    return None


def library_clients():
    """(name, starts a driver or None, what it can) of every client that is driven by lines."""
    python, node = sys.executable, shutil.which("node")
    found = []

    def add(name, here, command, can=("headers", "status", "ping"), **options):
        found.append((name, (lambda: Driver(command(), **options)) if here else None, set(can)))

    for name, module in [
        ("websockets", "websockets"),
        ("aiohttp", "aiohttp"),
        ("websocket-client", "websocket_client"),
    ]:
        file = DRIVERS / f"python_{module}.py"
        add(f"Python {name} {package(name)}", True, lambda file=file: [python, "-u", file])
    add(
        f"Node ws {node_package('ws') or ''}".strip(),
        node and node_package("ws"),
        lambda: [node, _module("node_ws.mjs")],
    )
    undici = node_package("undici")
    add(
        f"undici {undici or ''}".strip(),
        node and undici,
        lambda: [node, _module("standard_websocket.mjs"), "undici"],
        can=("headers",),
    )
    flags = node_has_websocket() if node else None
    add(
        f"Node {version('node', '--version')}, its own WebSocket" if node else "Node's own WebSocket",
        flags is not None,
        lambda: [node, *flags, _module("standard_websocket.mjs")],
        can=(),
    )
    add(
        f"Bun {node_package('bun') or ''}".strip(),
        bun(),
        lambda: [bun(), _module("standard_websocket.mjs")],
        can=("headers",),
    )
    for name, each, can in [
        ("Go gorilla/websocket", "gorilla", ("headers", "status", "ping")),
        ("Go x/net/websocket", "net", ("headers", "no close code", "offer kept")),
    ]:
        add(name, (DIR / f"go_{each}").exists(), lambda each=each: [DIR / f"go_{each}"], can=can)
    tungstenite = DIR / "cargo" / "release" / "tungstenite-driver"
    add("tokio-tungstenite 0.28", tungstenite.exists(), lambda: [tungstenite])
    java = shutil.which("java")
    add(
        f"Java {version('java', '-version') if java else ''}, java.net.http".strip(),
        java and (DIR / "java" / "JavaDriver.class").exists(),
        lambda: [
            java,
            "-XX:TieredStopAtLevel=1",
            "-XX:+UseSerialGC",
            "-Xshare:auto",
            "-cp",
            DIR / "java",
            "JavaDriver",
        ],
    )
    return found
