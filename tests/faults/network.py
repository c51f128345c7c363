"""Tests the effect of bad networks on the clients behind them and on all others:

    network.py SERVER_BINARY [--seconds N] [--only NAME] [--seed N] [--table]

A tenth of a channel's clients, the victims, are behind a link that loses or delays packets
(`links`), or behind a relay that delays, splits or ends connections (`relay`). The other clients,
the bystanders, are on loopback: the kernel's queue of 1,000 packets for each core would be too
short for their bursts on a link.

A fault passes when all of this holds:

- No bystander lost, repeated or reordered a message.
- Each victim got whole messages, in the order of a witness on loopback and none twice; each message
  that it lacks was counted as dropped, or its connection had ended.
- The conservation law holds, and each message counted as delivered was received.
- Heap and open files are back at their baseline, and the server drains with exit code 0.
- The counters of the network or the server show that the fault happened.

Standard library only. Ends only processes that it started. Sends to loopback and to namespaces of
its own only.
"""

import argparse
import concurrent.futures
import json
import os
import random
import re
import resource
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from functools import partial

import links
import relay
from listeners import Echo, Listener
from run import BYSTANDERS, HEAP_SLACK, Server, wait_until

VICTIMS = BYSTANDERS // 9
ECHOES = 10
PAYLOAD_BYTES = 1000
# Time for a client to catch up after its network has recovered: TCP doubles its wait after each
# failed retransmission, and the threads of clients and relays give way to all other programs.
RECOVERY_SECONDS = 60
TOKEN = secrets.token_hex(8)
# Backlogs that some of the messages fill. PATIENT leaves time for a close frame behind the bytes
# that the kernel holds.
NARROW = ["--message-bytes", "2048", "--outbox-bytes", "8KiB", "--kernel-bytes", "4KiB"]
PATIENT = [*NARROW, "--close-timeout", "30s"]
# A client whose packets are lost several times in a row is closed after `--write-timeout`; here it
# has to catch up instead.
LENIENT = ["--write-timeout", "60s"]
# Short timeouts for pings, answers, writes and closing handshakes: an unreachable client is closed
# within these.
IMPATIENT = ["--ping-interval", "1s", "--idle-timeout", "3s", "--write-timeout", "4s", "--close-timeout", "500ms"]
DISCONNECTED, PING_TIMEOUT, SLOW = (f'hydrant_closed_total{{reason="{reason}"}}' for reason in ("disconnected", "ping_timeout", "slow"))
DROPPED = 'hydrant_frames_dropped_total{reason="slow"}'


class Host(Server):
    """The server, listening on all addresses."""

    def __init__(self, binary, flags):
        self.log = tempfile.TemporaryFile("w+")
        command = [binary, "--listen", "0.0.0.0:0", "--admin-listen", "0.0.0.0:0", "--token", TOKEN, "--tick", "0", "--shards", "2", *flags]
        self.process = subprocess.Popen(command, stderr=self.log, stdin=subprocess.DEVNULL, preexec_fn=links.die_with_parent)
        listens = lambda: re.search(r"listening on 0\.0\.0\.0:(\d+) for everything", self.said())
        if not (found := wait_until(lambda: self.process.poll() is not None or listens())) or found is True:
            sys.exit(f"network.py: the server does not listen: {self.said()}")
        self.address = ("127.0.0.1", int(found[1]))

    def get(self, path, method="GET"):
        headers = {"Authorization": f"Bearer {TOKEN}"}
        request = urllib.request.Request(f"http://127.0.0.1:{self.address[1]}{path}", method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.read().decode()

    def open_files(self):
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def total(self, name):
        return sum(value for key, value in self.metrics().items() if key.split("{")[0] == name)


class Scene:
    """One fault: its server, links, clients, and the list of what went wrong."""

    def __init__(self, server, far, seconds):
        self.server, self.far, self.seconds = server, far, seconds
        self.wrong, self.victims, self.echoes, self.relays = [], [], [], []
        self.load = self.witness = None
        # Whether connections ended in a way that may have lost bytes which the kernel had accepted.
        self.severed = False
        # Whether the victims stay connected until the server drains.
        self.stay = False

    def bystand(self, seconds):
        """Runs the bystanders, which are on loopback; returns the report of the load generator."""
        command = [self.server.process.args[0], "load", "fanout", "--json", "--quiet", "--patience", "20s"]
        command += ["--connections", str(BYSTANDERS), "--rate", "20", "--messages", str(20 * seconds), "--payload", str(PAYLOAD_BYTES)]
        command += ["--publishers", "1", "--token", TOKEN]
        command += ["--url", f"ws://127.0.0.1:{self.server.address[1]}/ws/bystanders"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.load = subprocess.Popen(command, preexec_fn=links.die_with_parent, **pipes)
        said, error = self.load.communicate(timeout=seconds + 90)
        return json.loads(said or json.dumps({"passed": False, "first_error": error.strip(), "lost_unexplained": None, "last_subscriber_us": None}))

    def behind_link(self, count=VICTIMS, path="/ws/bystanders"):
        """Adds victims behind the link that will be bad."""
        address = (self.far.here, self.server.address[1])
        self.victims += self.far.inside(lambda: [Listener(address, path, PAYLOAD_BYTES) for _ in range(count)])

    def behind_relay(self, count=VICTIMS, again=False, **faults):
        bad = relay.Relay(self.server.address, **faults)
        self.relays.append(bad)
        # In parallel, as a handshake may take long here.
        with concurrent.futures.ThreadPoolExecutor(count) as threads:
            listen = lambda _: Listener(bad.address, "/ws/bystanders", PAYLOAD_BYTES, again)
            self.victims += threads.map(listen, range(count))
            self.echoes += threads.map(lambda _: Echo(bad.address, PAYLOAD_BYTES, again), range(ECHOES))
        return bad

    def begin(self, seconds=0):
        """Connects the witness and the bystanders, and waits for the first message."""
        self.witness = Listener(self.server.address, "/ws/bystanders", PAYLOAD_BYTES, nice=0)
        length = max(self.seconds, seconds)
        self.stream = threading.Thread(target=lambda: setattr(self, "report", self.bystand(length)), daemon=True)
        self.stream.start()
        wait_until(lambda: self.witness.got or not self.stream.is_alive(), 30)

    def pause(self):
        time.sleep(self.seconds / 2)

    def end(self):
        """Waits until the bystanders have received everything and left."""
        self.stream.join()

    def rose(self, name):
        return self.server.metrics()[name] - self.before[name]

    def expect(self, right, sentence):
        if not right:
            self.wrong.append(sentence)

    def has_everything(self, victim):
        return victim.is_alive() and victim.got == self.witness.got

    def are_behind(self):
        return all(len(victim.got) < len(self.witness.got) for victim in self.victims)

    def expect_everything(self):
        wait_until(lambda: all(map(self.has_everything, self.victims)), RECOVERY_SECONDS)
        short = [victim for victim in self.victims if not self.has_everything(victim)]
        state = lambda victim: f"{len(victim.got)} and {'connected' if victim.is_alive() else 'reset' if victim.reset else 'ended'}"
        told = ", ".join(map(state, short[:3]))
        self.expect(not short, f"{len(short)} victims have not got everything: of {len(self.witness.got)} messages {told}")

    def expect_everything_or_too_slow(self):
        """Each victim got everything, or was closed with 1013 after an unbroken series of
        messages."""
        over = lambda victim: not victim.is_alive() or self.has_everything(victim)
        wait_until(lambda: all(map(over, self.victims)), RECOVERY_SECONDS)
        ended = [victim for victim in self.victims if not victim.is_alive()]
        self.expect(all(map(over, self.victims)), "a victim lacks something and is connected")
        self.expect(all(victim.code == 1013 for victim in ended), "a victim ended without 1013")
        self.expect(len(ended) == self.rose(SLOW) > 0, f"{len(ended)} victims ended, {self.rose(SLOW)} were counted as slow")

    def expect_order(self, gaps):
        """Each victim got messages in the order of the witness. There are no gaps unless the policy
        drops messages, and the first message is there unless the victim has reconnected."""
        all_messages = self.witness.got
        position = {number: index for index, number in enumerate(all_messages)}
        complete = len(all_messages) >= 20 * self.seconds and sorted(all_messages) == list(range(len(all_messages)))
        self.expect(complete, "the witness lacks or repeats something")
        for victim in self.victims:
            positions = [[position.get(number, -1) for number in spell] for spell in victim.spells]
            flat = [index for spell in positions for index in spell]
            self.expect(all(a < b for a, b in zip([-1, *flat], flat)), "a victim got something twice, or in another order")
            first = lambda spell: spell[0] if victim.again else 0
            whole = all(spell == list(range(first(spell), first(spell) + len(spell))) for spell in positions if spell)
            self.expect(gaps or whole, "a victim lacks a message and got later ones")
        for client in [self.witness, *self.victims, *self.echoes]:
            self.wrong += client.wrong[:1]

    def expect_law(self):
        """The conservation law holds, and each message counted as delivered was received, unless it
        was lost with a connection."""
        of = lambda what: self.server.total(f"hydrant_frames_{what}")
        law = lambda: of("matched_total") - of("delivered_total") - of("dropped_total") - of("pending")
        self.expect(wait_until(lambda: law() == 0), f"the conservation law is off by {law()}")
        for echo in self.echoes:
            echo.enough = True
        good = (BYSTANDERS + 1) * len(self.witness.got)
        bad = lambda: sum(len(victim.got) for victim in self.victims) + sum(echo.returned for echo in self.echoes)
        missing = lambda: self.rose("hydrant_frames_delivered_total") - good - bad()
        wait_until(lambda: missing() == 0, 0.5 if self.severed else RECOVERY_SECONDS)
        self.expect(missing() == 0 or self.severed and missing() > 0, f"{missing()} more were counted as delivered than received")

    def leave(self):
        for client in filter(None, [self.witness, *self.victims, *self.echoes]):
            client.leave()
        for bad in self.relays:
            bad.close()

    def expect_nothing_left(self, baseline, files):
        """No client is connected, and heap and open files are at their baseline. Returns the heap's
        difference."""
        empty = lambda: self.server.metrics()["hydrant_connections"] == 0
        self.expect(wait_until(empty), "connections are left")
        heap = lambda: self.server.memory()["allocated_bytes"] - baseline
        # Threads and tables keep some memory for a while and then free it. A leak stays.
        wait_until(lambda: heap() < HEAP_SLACK // 2)
        self.expect(heap() <= HEAP_SLACK, f"{heap() // 1024} KiB of heap are left")
        self.expect(wait_until(lambda: self.server.open_files() <= files), f"{self.server.open_files() - files} files are left open")
        return heap()


# The faults. In each, victims connect, messages begin, the network becomes bad and perhaps
# recovers, messages end, and the victims' messages are judged. Each returns a sentence on what was
# done.


def lossy(percent, scene):
    scene.behind_link()
    scene.begin()
    scene.far.lose(percent)
    scene.end()
    down, up = scene.far.lost()
    scene.far.heal()
    scene.expect_everything()
    scene.expect(down and up, "no packet was lost")
    return f"{percent} % of all packets dropped, {down:,} to {VICTIMS} victims and {up:,} from them"


def slow_link(scene):
    scene.behind_link()
    scene.begin()
    scene.far.slow("1mbit")
    scene.end()
    delayed, lost = scene.far.delayed()
    scene.expect(delayed, "no packet was delayed")
    return f"1 Mbit/s for {VICTIMS} victims that need {VICTIMS * PAYLOAD_BYTES * 160 / 1e6:.1f}: {delayed:,} packets delayed, {lost:,} lost"


def slow_disconnect(scene):
    did = slow_link(scene)
    scene.expect_everything_or_too_slow()
    return did


def slow_drop(scene):
    did = slow_link(scene)
    lacking = lambda: sum(len(scene.witness.got) - len(victim.got) for victim in scene.victims)
    wait_until(lambda: lacking() == scene.rose(DROPPED), RECOVERY_SECONDS)
    scene.expect(lacking() == scene.rose(DROPPED) > 0, f"{lacking()} are lacking, {scene.rose(DROPPED)} were dropped")
    scene.expect(all(victim.is_alive() for victim in scene.victims), "a victim was disconnected")
    return did


def partition(scene):
    scene.behind_link()
    scene.begin()
    scene.far.lose(100)
    scene.pause()
    scene.expect(scene.are_behind(), "a victim has everything across the partition")
    scene.far.heal()
    scene.end()
    scene.expect_everything()
    scene.expect(sum(scene.far.lost()), "no packet was lost")
    return f"no packet passed to or from {VICTIMS} victims for {scene.seconds / 2:g} s"


def long_partition(scene):
    scene.behind_link()
    scene.begin()
    scene.far.lose(100)
    wait_until(lambda: scene.rose(SLOW) == VICTIMS)
    scene.expect(scene.are_behind(), "a victim has everything across the partition")
    scene.far.heal()
    scene.end()
    scene.expect_everything_or_too_slow()
    scene.expect(sum(scene.far.lost()), "no packet was lost")
    return f"no packet passed to or from {VICTIMS} victims until their backlogs were full"


def lost_acknowledgements(scene):
    scene.behind_link()
    scene.begin()
    scene.far.lose(100, down=False)
    scene.pause()
    scene.expect(scene.are_behind(), "the server sent everything without an acknowledgement")
    scene.far.heal()
    scene.end()
    scene.expect_everything()
    down, up = scene.far.lost()
    scene.expect(up and not down, "no packet was lost, or in the wrong direction")
    return f"no packet came from {VICTIMS} victims for {scene.seconds / 2:g} s, so no acknowledgement either"


def permanent_partition(scene):
    scene.severed = True
    scene.behind_link()
    scene.behind_link(path="/ws/silent")
    scene.begin(10)
    files = scene.server.open_files()
    since = time.monotonic()
    scene.far.lose(100)
    others = BYSTANDERS + 1
    closed = lambda: scene.server.open_files() <= files - 2 * VICTIMS
    freed = wait_until(lambda: scene.server.metrics()["hydrant_connections"] == others and closed(), 9)
    took = time.monotonic() - since
    scene.expect(freed, f"{scene.server.metrics()['hydrant_connections']} connections are left of {others}, or their sockets")
    found = scene.rose(PING_TIMEOUT) + scene.rose(DISCONNECTED)
    scene.expect(found == 2 * VICTIMS, f"{found} of {2 * VICTIMS} unreachable clients were closed")
    scene.expect(scene.stream.is_alive(), "the stream ended before the victims")
    scene.end()
    return f"{VICTIMS} victims in the bystanders' room and {VICTIMS} in a silent one unreachable for ever, closed within {took:.1f} s"


def drain_across_partition(scene):
    scene.severed = True
    scene.behind_link()
    scene.begin()
    scene.far.lose(100)
    scene.end()
    scene.stay = True
    scene.expect(scene.server.metrics()["hydrant_frames_pending"], "nothing waits for the victims")
    return f"SIGTERM while no packet passed to or from {VICTIMS} victims"


def delayed(scene):
    bad = scene.behind_relay(down=relay.delayed(0.05, 0.1), up=relay.delayed(0.05, 0.1))
    scene.begin()
    scene.end()
    scene.expect_everything()
    scene.expect(min(echo.quickest for echo in scene.echoes) >= 0.1, "an echo came too early")
    return f"{len(scene.victims)} victims and {ECHOES} echo clients, 50 to 150 ms of delay in each direction: {bad.pieces:,} segments"


def tiny_segments(scene):
    bad = scene.behind_relay(10, down=relay.split(50), up=relay.split(10))
    scene.begin()
    scene.end()
    scene.expect_everything()
    scene.expect(bad.pieces > 10 * len(scene.witness.got) * 10, "the segments were too large")
    return f"10 victims and {ECHOES} echo clients, segments of 1 to 50 bytes down and 1 to 10 up: {bad.pieces:,}"


def connections_end(reset, scene):
    scene.severed = True
    at = relay.cut(1, 20_000, reset)
    bad = scene.behind_relay(again=True, down=at, up=at)
    scene.begin()
    scene.end()
    scene.expect(any(victim.got for victim in scene.victims) and any(echo.returned for echo in scene.echoes), "the victims got nothing")
    inside = sum(client.partial for client in scene.victims + scene.echoes)
    scene.expect(bad.cuts and inside, "no connection ended in the middle of a frame")
    scene.expect(scene.rose(DISCONNECTED) > BYSTANDERS, "the server has not noticed an end")
    how = "a reset" if reset else "a FIN"
    return f"{bad.cuts:,} connections of {VICTIMS + ECHOES} victims ended by {how}, {inside:,} in the middle of a frame"


def stalled(scene):
    stall = relay.Stall()
    scene.behind_relay(down=stall, up=stall, buffer_bytes=4096)
    scene.begin()
    stall.begin()
    scene.pause()
    scene.expect(scene.are_behind(), "a victim has everything across the stall")
    stall.end()
    scene.end()
    scene.expect_everything()
    return f"{VICTIMS} victims and {ECHOES} echo clients without any traffic for {scene.seconds / 2:g} s, then all of it at once"


def half_closed(scene):
    scene.severed = True
    scene.behind_relay()
    scene.begin()
    scene.pause()
    for client in scene.victims + scene.echoes:
        client.stream.shutdown(socket.SHUT_WR)
    wait_until(lambda: not any(client.is_alive() for client in scene.victims + scene.echoes))
    scene.expect(not any(client.is_alive() for client in scene.victims + scene.echoes), "a victim was not disconnected")
    scene.expect(not any(client.reset or client.partial for client in scene.victims), "a victim's stream ended inside a frame")
    found = scene.rose(DISCONNECTED)
    scene.expect(found == VICTIMS + ECHOES, f"{found} of {VICTIMS + ECHOES} half-closed clients were closed")
    scene.end()
    return f"{VICTIMS + ECHOES} victims closed their sending half and went on reading"


# Name, fault, flags of the server, and whether its policy drops messages.
FAULTS = [
    ("1 % packet loss", partial(lossy, 1), LENIENT, False),
    ("10 % packet loss", partial(lossy, 10), LENIENT, False),
    ("slow link, disconnect", slow_disconnect, PATIENT, False),
    ("slow link, drop-oldest", slow_drop, [*NARROW, "--slow", "drop-oldest"], True),
    ("slow link, drop-newest", slow_drop, [*NARROW, "--slow", "drop-newest"], True),
    ("partition that heals", partition, [], False),
    ("partition until backlogs are full", long_partition, PATIENT, False),
    ("acknowledgements lost", lost_acknowledgements, [], False),
    ("permanent partition", permanent_partition, [*IMPATIENT, *NARROW, "--slow", "drop-oldest"], True),
    ("drain across a partition", drain_across_partition, ["--drain-timeout", "2s", *NARROW, "--slow", "drop-oldest"], True),
    ("delay and jitter", delayed, [], False),
    ("tiny segments", tiny_segments, [], False),
    ("connections reset", partial(connections_end, True), [], False),
    ("connections ended", partial(connections_end, False), [], False),
    ("stall", stalled, [], False),
    ("half-closed", half_closed, [], False),
]


def judge(server, scene, name, fault, gaps):
    baseline = server.memory()["baseline"]["allocated_bytes"]
    quiet = scene.bystand(scene.seconds)
    wait_until(lambda: server.metrics()["hydrant_connections"] == 0)
    server.memory()
    files = server.open_files()
    scene.before = server.metrics()
    did, heap = fault(scene), None
    scene.expect_order(gaps)
    scene.expect_law()
    events = {name: scene.rose(name) for name in scene.before if re.match(r"hydrant_(closed|rejected|frames_dropped)_total", name)}
    if not scene.stay:
        scene.leave()
        heap = scene.expect_nothing_left(baseline, files)
    during = scene.report
    for report, when in ((quiet, "before"), (during, "during")):
        scene.expect(report["passed"], f"bystanders {when}: {report.get('first_error') or report['lost_unexplained']}")
    code = server.end()
    scene.expect(code == 0, f"exit code {code}")
    scene.expect(not scene.stay or f" aborted={VICTIMS} " in server.said(), "the victims were not aborted by the drain")
    scene.leave()
    p99 = lambda report: report["last_subscriber_us"]["p99"] / 1000 if report["last_subscriber_us"] else float("nan")
    label = lambda name: name.split('"')[1]
    told = [f"{'dropped as ' * ('dropped' in name)}{label(name)} {count:,}" for name, count in events.items() if count]
    return {
        "name": name, "did": did, "lost": during["lost_unexplained"], "p99": (p99(quiet), p99(during)), "heap": heap, "told": ", ".join(told),
        "wrong": list(dict.fromkeys(scene.wrong)),
    }  # fmt: skip


def run(binary, seconds, name, fault, flags, gaps):
    far = links.Link("far", 1)
    server = Host(binary, flags)
    scene = Scene(server, far, seconds)
    try:
        return judge(server, scene, name, fault, gaps)
    finally:
        for process in (scene.load, server.process):
            if process and process.poll() is None:
                process.kill()
                process.wait()
        scene.leave()
        far.delete()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("binary")
    parser.add_argument("--seconds", type=int, default=5, help="how long bystanders receive, without and with the fault")
    parser.add_argument("--only", help="run the faults whose name contains this")
    parser.add_argument("--seed", type=int, default=secrets.randbits(32), help="seed of the relay's random numbers")
    parser.add_argument("--table", action="store_true", help="print the table of tests/README.md")
    options = parser.parse_args()
    links.enter()
    # Exits on SIGTERM, so that all that was started ends too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("network.py: told to end"))
    random.seed(options.seed)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    rows = []
    for fault in FAULTS:
        if options.only and options.only not in fault[0]:
            continue
        row = run(os.path.abspath(options.binary), options.seconds, *fault)
        row["heap_told"] = "–" if row["heap"] is None else f"{row['heap'] / 1024:.0f} KiB"
        rows.append(row)
        figures = f"{row['did']}; p99 {row['p99'][0]:.1f} → {row['p99'][1]:.1f} ms, lost {row['lost']}, heap {row['heap_told']}, {row['told']}"
        print(f"{row['name']}: {'; '.join(row['wrong'][:5]) or 'ok'} ({figures})", file=sys.stderr, flush=True)
    if options.table:
        print("| fault | what was done | lost by bystanders | p99 of the last bystander, quiet → during | heap afterwards, over the baseline | what the server counted |")
        print("|---|---|---|---|---|---|")
        for row in rows:
            quiet, during = row["p99"]
            print(f"| {row['name']} | {row['did']} | {row['lost']} | {quiet:.1f} → {during:.1f} ms | {row['heap_told']} | {row['told']} |")
    failed = sum(bool(row["wrong"]) for row in rows)
    print(f"network faults: {len(rows) - failed} passed, {failed} failed" + (f" (--seed {options.seed})" if failed else ""))
    return 1 if failed or not rows else 0


if __name__ == "__main__":
    sys.exit(main())
