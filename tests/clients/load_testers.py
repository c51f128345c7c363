"""k6, which is driven as a page is, and tsung, which runs a session of its own."""

import contextlib
import os
import shutil
import signal
import subprocess
from pathlib import Path

import libraries
import tools
from harness import LIMIT, WORK, PageServer, Recorder, Server, Subscriber, free_port, until
from harness import _numbers as numbers

K6 = Path(tools.sys.executable).parent / "k6"
TSUNG = tools.DIR / "root" / "usr"


@contextlib.contextmanager
def program(command, log, **options):
    """A program and all that it starts, ended together."""
    with open(log, "w") as out:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
            **options,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def k6(row):
    page = PageServer().page()
    command = [
        K6,
        "run",
        "--quiet",
        "--no-usage-report",
        "--address",
        "",
        "-e",
        f"BASE={page.base}",
        "-e",
        f"ID={page.id}",
    ]
    with program([*command, tools.DRIVERS / "k6.js"], WORK / "k6.log"):
        libraries.one_client(row, page, {"headers", "status", "ping"})


def tsung_session(port, directory):
    """Starts tsung with 20 sessions against a port; its files are in `directory`."""
    directory.mkdir()
    text = (tools.DRIVERS / "tsung.xml").read_text()
    dtd = TSUNG / "share" / "tsung" / "tsung-1.0.dtd"
    (directory / "tsung.xml").write_text(text.replace("PORT", str(port)).replace("DTD", str(dtd)))
    environment = {**os.environ, "HOME": str(directory), "ERL_EPMD_PORT": str(free_port())}
    stack = contextlib.ExitStack()
    # The port mapper, which Erlang would leave behind.
    epmd = TSUNG / "bin" / "epmd"
    stack.enter_context(program([epmd], directory / "epmd.log", env=environment))
    names = [str(epmd), "-names"]
    until(lambda: not subprocess.run(names, env=environment, capture_output=True).returncode, "epmd listens")
    command = [
        TSUNG / "bin" / "tsung",
        "-i",
        f"_{next(numbers)}",
        "-n",
        "-w",
        "0",
        "-f",
        directory / "tsung.xml",
        "-l",
        directory / "log",
        "start",
    ]
    stack.process = stack.enter_context(program(command, directory / "out.log", env=environment))
    return stack


def tsung(row):
    recorder = Recorder()
    with tsung_session(recorder.address.split(":")[1], WORK / "tsung-recorded"):
        until(lambda: "\r\n\r\n" in recorder.head, "tsung connects")
    row.note("Origin it sends", libraries.origin_sent(recorder))
    with Server() as server:
        subscriber = Subscriber(server, "room")
        with tsung_session(server.clients.split(":")[1], WORK / "tsung") as session:
            session.process.wait(2 * LIMIT)
        counters = server.counters()
        row.equal(
            "paths, messages",
            counters.get("hydrant_says_total"),
            20,
            "messages that 20 users of tsung have sent",
        )
        server.publish("room", "the end")
        said = [text for text in subscriber.until("the end") if "tsung" in text and "hello" in text]
        row.equal("paths, messages", len(said), 20, "of which a subscriber got")
        counters = server.counters()
        ends = {
            key: value for key, value in counters.items() if key.startswith("hydrant_closed_total") and value
        }
        row.equal("close codes", ends, {'hydrant_closed_total{reason="by_client"}': 20}, "how they ended")
        subscriber.close()


def rows():
    """(name, function, whether it is here)"""
    name = f"k6 {tools.version(str(K6), 'version')}" if K6.exists() else "k6"
    return [
        (name, k6, K6.exists()),
        ("tsung 1.7.0", tsung, (TSUNG / "bin" / "tsung").exists() and shutil.which("bash")),
    ]
