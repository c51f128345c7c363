"""Tests the effect of hostile clients and exhausted resources on other clients:

    run.py SERVER_BINARY [--seconds N] [--only NAME] [--judge-time] [--table]

Each fault gets a new server. `hydrant load` connects bystanders that receive 100 messages per
second, and the fault starts as soon as they are connected. A fault passes when no bystander lost,
repeated or reordered a message, the attackers got the expected answers, the conservation law
holds, the heap is back at its baseline, no channel is left, and the server drains with exit code 0.

With --judge-time the delay of bystanders is measured too, without and with the fault, and judged.
The server then has cores of its own. On a machine with other work these times mean nothing.

Standard library only. Ends only processes that it started. Sends to loopback only.
"""

import argparse
import json
import os
import re
import resource
import subprocess
import sys
from typing import Callable, NamedTuple

import clients
import ends
import over_http
import over_tls
from clients import HEAP_SLACK, Attack
from server import Cores, Server, wait_until

# Not used here: other suites import these from this module.
from wire import frame, handshake, loop, quietly  # noqa: F401

BYSTANDERS = 500
RATE = 100
# Delay allowed in addition to twice the quiet run's: a pass may wait for a timer of the server or
# for the kernel's scheduler, and both count in milliseconds.
ALLOWANCE_MS = 2


class Fault(NamedTuple):
    name: str
    act: Callable
    # Counters that must rise, in addition to the attackers' own checks.
    counted: tuple = ()
    flags: tuple = ()
    files: int | None = None


def closed(*reasons):
    return tuple(f'hydrant_closed_total{{reason="{reason}"}}' for reason in reasons)


def everything_at_once(server, stop):
    """Several attacks, each in its own process."""
    acts = [clients.slowloris, clients.truncated_frames, clients.tiny_fragments, clients.false_lengths, PINGS, over_http.invalid_requests]
    attacks = [Attack(server, act) for act in acts]
    stop.wait()
    wrong = [sentence for attack in attacks for sentence in attack.stop()[1]]
    clients.expect(not wrong, "; ".join(wrong))
    return "slowloris, truncated frames, tiny fragments, false lengths, pings and invalid requests together"


NARROW = ("--kernel-bytes", "4KiB", "--outbox-bytes", "80KiB", "--close-timeout", "300ms")
INVALID_EVENTS = [clients.frame(0x81, text) for text in (b"{", b'{"event":"NO"}', b'{"event":"SAY"}', b"[]")]
PINGS = clients.flood([frame(0x89, b"x")], "pings")
FAULTS = [
    Fault("nothing", clients.nothing),
    Fault("slowloris", clients.slowloris),
    Fault("half-open handshakes", clients.half_open, ('hydrant_rejected_total{reason="handshakes"}',)),
    Fault("TLS handshakes abandoned", over_tls.abandoned, ('hydrant_rejected_total{reason="handshakes"}',), over_tls.FLAGS),
    Fault("handshake garbage", over_http.invalid_requests, closed("disconnected")),
    Fault("request smuggling", over_http.smuggling),
    Fault("idle HTTP connections kept", over_http.idle_connections, ('hydrant_rejected_total{reason="handshakes"}',), ("--max-handshakes", "256", "--shards", "1")),
    Fault("missing bodies", over_http.missing_bodies, (), ("--handshake-timeout", "1s")),
    # The watcher of this fault answers no pings.
    Fault("truncated bodies", over_http.truncated_bodies, (), ("--ping-interval", "0")),
    Fault("truncated frames", clients.truncated_frames, closed("disconnected")),
    Fault("fragments of one byte", clients.tiny_fragments, closed("too_many_fragments")),
    Fault("false frame lengths", clients.false_lengths, closed("too_big", "bad_length")),
    Fault("ping flood, with a limit", PINGS, closed("too_fast"), ("--client-message-rate", "1000")),
    Fault("ping flood, without", PINGS),
    Fault("pongs never read", clients.flood([frame(0x89, b"x" * 125)], "pings", 50, False, HEAP_SLACK), (), NARROW),
    Fault("answers never read", clients.flood(INVALID_EVENTS, "invalid events", 50, False, HEAP_SLACK + 50 * 80 * 1024), closed("slow"), NARROW),
    Fault("sending after a close frame", clients.sends_after_close, closed("by_client")),
    Fault("closing handshakes never completed", clients.never_closes, closed("left", "reserved_bit"), ("--close-timeout", "1s")),
    Fault("a tenth never reads", clients.never_reading(BYSTANDERS // 9), closed("slow"), NARROW),
    Fault("half never read", clients.never_reading(BYSTANDERS), ('hydrant_frames_dropped_total{reason="slow"}',), (*NARROW, "--slow", "drop-newest")),
    Fault("mass disconnect", clients.mass_disconnect, closed("disconnected")),
    Fault("join and leave storm", clients.storm, closed("by_client")),
    Fault("many channels per client", clients.many_channels),
    Fault("open files used up", clients.too_many, ('hydrant_rejected_total{reason="handshakes"}',), ("--max-connections", "700"), 1000),
    Fault("memory used up", clients.memory_hogs, ('hydrant_rejected_total{reason="memory"}',), ("--max-memory", "3MiB", "--kernel-bytes", "4KiB")),
    Fault("everything at once", everything_at_once, closed("too_fast"), ("--client-message-rate", "1000")),
]  # fmt: skip


class Bystanders:
    """A load generator that is running."""

    def __init__(self, server, seconds):
        self.seconds = seconds
        words = ["fanout", "--connections", str(BYSTANDERS), "--rate", str(RATE), "--json", "--messages", str(RATE * seconds)]
        # One publisher, connected before the fault begins: later the server may have no open file
        # left.
        words += ["--payload", "200", "--publishers", "1", "--url", server.url("bystanders"), "--patience", "20s", "--sleep"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(server.command(*words), preexec_fn=server.cores.bystand, **pipes)

    def report(self):
        try:
            out, error = self.process.communicate(timeout=self.seconds + 90)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, error = "", "they do not end" + self.process.communicate()[1]
        if not out:
            return {"passed": False, "first_error": error.strip(), "lost_unexplained": None, "last_subscriber_us": None}
        return json.loads(out)


def bystand(server, seconds):
    """Runs bystanders to their end; returns the report of the load generator."""
    return Bystanders(server, seconds).report()


def run(binary, seconds, fault, cores, measured):
    server = Server(binary, list(fault.flags), fault.files, cores)
    try:
        return judge(server, seconds, fault, measured)
    except OSError as error:
        wrong = [f"the server does not answer: {error}; it said: {server.said()[-500:]}"]
        return {"name": fault.name, "did": None, "lost": None, "p99": None, "heap": None, "told": "", "wrong": wrong}
    finally:
        if server.process.poll() is None:
            server.end()


def judge(server, seconds, fault, measured):
    baseline = server.memory()["baseline"]["allocated_bytes"]
    quiet = bystand(server, seconds) if measured else None
    bystanders = Bystanders(server, seconds)
    wait_until(lambda: server.metrics()["hydrant_connections"] >= BYSTANDERS)
    attack = Attack(server, fault.act)
    during = bystanders.report()
    did, wrong = attack.stop()
    empty = lambda: server.metrics()["hydrant_connections"] == 0
    heap = lambda: server.memory()["allocated_bytes"] - baseline
    if not wait_until(empty):
        wrong.append("connections are left")
    # Threads and tables keep some memory for a while (a closing handshake for --close-timeout) and
    # then free it. A leak stays.
    wait_until(lambda: heap() < HEAP_SLACK // 2)
    if heap() > HEAP_SLACK:
        wrong.append(f"{heap() // 1024} KiB of heap are left")
    metrics, left = server.metrics(), heap()
    of = lambda name: sum(value for key, value in metrics.items() if key.startswith(name))
    law = of("hydrant_frames_matched_total") - of("hydrant_frames_delivered_total") - of("hydrant_frames_dropped_total")
    if law != of("hydrant_frames_pending"):
        wrong.append(f"the conservation law is off by {law}")
    if channels := [name for name in metrics if name.startswith("hydrant_channel_")]:
        wrong.append(f"channels are left: {channels[:3]}")
    for report, when in ((quiet, "before"), (during, "during")):
        if report and not report["passed"]:
            wrong.append(f"bystanders {when}: {report.get('first_error') or report['lost_unexplained']}")
    wrong += [f"{name} is 0" for name in fault.counted if not metrics.get(name)]
    code = server.end()
    if code != 0:
        wrong.append(f"exit code {code}")
    times = lambda report: [report["last_subscriber_us"][part] / 1000 for part in ("p99", "max")] if report and report["last_subscriber_us"] else None
    events = {key: value for key, value in metrics.items() if re.match(r"hydrant_(closed|rejected)_total", key) and value}
    told = ", ".join(f"{re.search(chr(34) + '(.*)' + chr(34), key)[1]} {value:,}" for key, value in events.items())
    return {
        "name": fault.name, "did": did, "lost": during["lost_unexplained"], "p99": (times(quiet), times(during)),
        "heap": left, "told": told, "wrong": wrong,
    }  # fmt: skip


def in_time(row):
    """Whether the delay of bystanders is within its limit; None if it was not measured."""
    quiet, during = row["p99"] or (None, None)
    return quiet and during and during[0] <= 2 * quiet[0] + ALLOWANCE_MS


def ratio(row):
    """Delay of bystanders with the fault, divided by their delay without it; None if not
    measured."""
    quiet, during = row["p99"] or (None, None)
    return quiet and during and during[0] / quiet[0]


def waited(row):
    quiet, during = row["p99"] or (None, None)
    if not during:
        return row.get("waited", "not measured")
    before = f"{quiet[0]:.1f} → " if quiet else ""
    return f"{before}{during[0]:.1f} ms (max {during[1]:.0f})"


def table(rows, seconds, cores):
    print(f"{RATE * seconds} messages for each time, {BYSTANDERS} bystanders; {cores}\n")
    print("| fault | what the attackers did | lost by bystanders | p99 of the last bystander, quiet → during | during ÷ quiet | heap afterwards, over the baseline | what the server counted |")
    print("|---|---|---|---|---|---|---|")
    for row in rows:
        times = ratio(row)
        judged = "–" if times is None else f"**{times:.1f}**" if times > 2 else f"{times:.1f}"
        heap = "–" if row["heap"] is None else f"{row['heap'] / 1024:.0f} KiB"
        print(f"| {row['name']} | {row['did']} | {row['lost']} | {waited(row)} | {judged} | {heap} | {row['told']} |")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--seconds", type=int, default=5, help="how long bystanders receive")
    parser.add_argument("--only", help="run the faults whose name contains this")
    parser.add_argument("--judge-time", action="store_true", help="measure the delay of bystanders without and with the fault, and fail a fault that exceeds the limit")
    parser.add_argument("--table", action="store_true", help="print the table of tests/README.md")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    binary, cores, rows = os.path.abspath(options.binary), Cores(options.judge_time), []
    # This process stays off the server's cores.
    cores.attack()
    runs = [(fault.name, lambda fault=fault: run(binary, options.seconds, fault, cores, options.judge_time)) for fault in FAULTS]
    runs += [("SIGTERM under load", lambda: ends.sigterm(binary, cores)), ("SIGKILL and restart", lambda: ends.sigkill(binary, cores))]
    for name, result in runs:
        if options.only and options.only not in name:
            continue
        row = result()
        if options.judge_time and in_time(row) is False:
            row["wrong"].append("bystanders waited too long")
        rows.append(row)
        heap = "" if row["heap"] is None else f", heap {row['heap'] // 1024} KiB"
        print(f"{name}: {'; '.join(row['wrong']) or 'ok'} ({waited(row)}, lost {row['lost']}{heap}) {row['did']}", file=sys.stderr, flush=True)
    if options.table:
        table(rows, options.seconds, cores)
    failed = sum(bool(row["wrong"]) for row in rows)
    print(f"faults: {len(rows) - failed} passed, {failed} failed")
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
