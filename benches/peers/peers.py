"""Drives every candidate with `hydrant load fanout` and prints the cost of one delivery for each.

A *cell* is a number of messages in flight and a payload. In each round each cell runs every
candidate once, one directly after the other, in an order that changes from round to round. A
candidate is a fresh server process on the first core that this process may use; the client runs on
the second. Absolute times drift, so quote the ratio to Hydrant in the same round. All figures are
kept in target/peers/results.json.

It ends only the processes that it started, by their ids, also on Ctrl-C.
"""

import argparse
import ctypes
import json
import os
import platform
import re
import resource
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

PREFIX = Path("target/peers")
RESULTS = PREFIX / "results.json"
HERE = Path("benches/peers")
LISTENING = re.compile(r"listening on (127\.0\.0\.1:[1-9]\d*)")
START_TIMEOUT = 10.0
# A client that hangs is ended. --duration and the client's own timeouts end well before this.
CLIENT_SECONDS_MAX = 300.0
# Above these shares of time, in percent, a figure needs a note.
WAITED_PERCENT_MAX = 2.0
PR_SET_PDEATHSIG = 1


def main():
    options = read_options()
    raise_open_files(options.connections)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    cores = sorted(os.sched_getaffinity(0))
    core_of_server, core_of_client = cores[0], cores[min(1, len(cores) - 1)]
    conditions = describe_conditions(options, cores)
    samples = []
    for round_number in range(options.rounds):
        for in_flight, payload in options.cells:
            first = round_number % len(options.candidates)
            for candidate in options.candidates[first:] + options.candidates[:first]:
                cell = {"round": round_number, "in_flight": in_flight, "payload": payload, "candidate": candidate}
                try:
                    with Server(candidate, options, payload, core_of_server) as server:
                        cell["load"] = load(server, options, in_flight, payload, core_of_client)
                except CellError as error:
                    cell["error"] = str(error)
                print_cell(cell)
                samples.append(cell)
                save(conditions, samples)
    print_report(options, conditions, samples)
    if any("error" in cell for cell in samples):
        sys.exit("peers.py: not every cell could be measured; the errors are above")


class CellError(Exception):
    """A cell that could not be measured."""


def read_options():
    parser = argparse.ArgumentParser(prog="benches/peers.sh", description="Compares Hydrant with its peers in one run.")
    add = parser.add_argument
    add("--test", action="store_true", help="50 connections, one round, short cells: checks that everything works")
    add("--connections", type=int, help="subscribers in every cell [default: 10000, with --test 50]")
    add("--rounds", type=int, help="rounds; each measures every cell once [default: 5, with --test 1]")
    add("--duration", help="publishing time of every cell [default: 4s, with --test 500ms]")
    cells = "list of messages in flight:payload in bytes [default: %(default)s]"
    add("--cells", default="1:100,16:100,256:100,256:1024", help=cells)
    add("--candidates", default="floor,hydrant,bun,ws", help="the servers to compare [default: %(default)s]")
    add("--fanout", default="direct", help="Hydrant's strategy [default: %(default)s]")
    add("--hydrant", default="target/release/hydrant", help="server and client binary [default: %(default)s]")
    options = parser.parse_args()
    options.connections = options.connections or (50 if options.test else 10_000)
    options.rounds = options.rounds or (1 if options.test else 5)
    options.duration = options.duration or ("500ms" if options.test else "4s")
    options.candidates = options.candidates.split(",")
    unknown = set(options.candidates) - {"floor", "hydrant", "bun", "ws"}
    if unknown:
        parser.error(f"unknown candidates: {', '.join(sorted(unknown))}")
    try:
        options.cells = [tuple(int(number) for number in cell.split(":")) for cell in options.cells.split(",")]
        assert all(len(cell) == 2 for cell in options.cells)
    except (ValueError, AssertionError):
        parser.error("--cells is a list such as 1:100,256:1024")
    options.floor = floor_executable() if "floor" in options.candidates else None
    return options


def floor_executable():
    """The executable of the bench `delivery`, which can act as the floor; cargo prints its path."""
    command = ["cargo", "bench", "--quiet", "--bench", "delivery", "--no-run", "--message-format=json"]
    built = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    for line in built.stdout.splitlines():
        message = json.loads(line)
        if message.get("executable") and message["target"]["name"] == "delivery":
            return message["executable"]
    sys.exit("peers.py: cargo built no bench named delivery")


def bun_executable():
    """The binary itself: the package's own entry is a stub until its install script has run."""
    found = sorted(PREFIX.glob("node_modules/@oven/bun-*/bin/bun"))
    if not found:
        sys.exit("peers.py: npm installed no bun for this machine")
    return str(found[0])


def command_of(candidate, options, payload):
    """Each sends from one thread: one shard, one event loop. No tick: it is not in the load."""
    if candidate == "floor":
        task = json.dumps({"subscribers": options.connections, "payload": payload})
        return [options.floor, "role:floor", task]
    if candidate == "hydrant":
        # One port for clients and publishing, as the peers have: the same text is one socket.
        flags = ["--listen", "127.0.0.1:0", "--admin-listen", "127.0.0.1:0", "--open"]
        return [options.hydrant, *flags, "--shards", "1", "--tick", "0", "--fanout", options.fanout]
    if candidate == "bun":
        return [bun_executable(), str(HERE / "bun.js"), "0"]
    return ["node", str(HERE / "ws.js"), "0"]


def start(command, core, **streams):
    """A child on one core, outside the terminal's process group. Ctrl-C reaches this process alone,
    which ends its children. If this process is killed, the kernel ends them."""
    libc = ctypes.CDLL(None)

    def enter():
        os.sched_setaffinity(0, {core})
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)

    environment = os.environ | {"NODE_PATH": str((PREFIX / "node_modules").resolve())}
    try:
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, preexec_fn=enter, start_new_session=True, env=environment, **streams
        )
    except OSError as error:
        raise CellError(f"{command[0]} does not start: {error}") from error


def end(child):
    if child.poll() is None:
        child.kill()
    child.wait()


class Server:
    """A running candidate. Its output goes to a file; the address is read from there."""

    def __init__(self, candidate, options, payload, core):
        self.log = PREFIX / f"{candidate}.log"
        with self.log.open("wb") as log:
            self.child = start(command_of(candidate, options, payload), core, stdout=log, stderr=log)

    def __enter__(self):
        try:
            deadline = time.monotonic() + START_TIMEOUT
            while not (found := LISTENING.search(self.log.read_text(errors="replace"))):
                if self.child.poll() is not None or time.monotonic() > deadline:
                    raise CellError(f"it did not print its address: {self.last_output()}")
                time.sleep(0.02)
            self.address = found[1]
            return self
        except BaseException:
            end(self.child)
            raise

    def __exit__(self, *_):
        end(self.child)

    def last_output(self):
        return " | ".join(self.log.read_text(errors="replace").splitlines()[-5:]) or "it printed nothing"


def load(server, options, in_flight, payload, core):
    """The client's figures of one cell."""
    command = [
        options.hydrant, "load", "fanout",
        "--url", f"ws://{server.address}/ws/bench", "--publish-url", f"http://{server.address}/publish/bench",
        "--connections", str(options.connections), "--in-flight", str(in_flight), "--payload", str(payload),
        "--duration", options.duration, "--pid", str(server.child.pid), "--json", "--quiet",
    ]  # fmt: skip
    client = start(command, core, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        out, errors = client.communicate(timeout=CLIENT_SECONDS_MAX)
    except subprocess.TimeoutExpired as error:
        raise CellError(f"the client did not finish within {CLIENT_SECONDS_MAX:.0f} s") from error
    finally:
        end(client)
    # Exit code 1: deliveries are missing. That is a figure, not a failure.
    if client.returncode not in (0, 1):
        raise CellError(f"the client ended with {client.returncode}: {errors.strip()[-500:]} ({server.last_output()})")
    try:
        figures = json.loads(out)
        if not figures["server"]["cpu_ns_per_delivery"] or not figures["last_subscriber_us"]:
            raise CellError("no message reached all subscribers")
        return figures
    except (ValueError, KeyError, TypeError) as error:
        raise CellError(f"the client's JSON cannot be read ({error!r}): {errors.strip()[-500:]}") from error


# The report.


def cpu_ns(cell):
    return cell["load"]["server"]["cpu_ns_per_delivery"]


def rss_bytes_per_connection(cell, options):
    server = cell["load"]["server"]
    return (server["rss_bytes_connected"] - server["rss_bytes_before"]) / options.connections


def last_subscriber_ms(cell, share):
    return cell["load"]["last_subscriber_us"][share] / 1000


def received_share(cells):
    received, expected = (sum(cell["load"][key] for cell in cells) for key in ("received", "expected"))
    return "1" if received == expected else f"{received / expected:.6f}"


def print_cell(cell):
    head = f"round {cell['round'] + 1}, {cell['in_flight']} in flight, {cell['payload']} B, {cell['candidate']}"
    if "error" in cell:
        print(f"{head}: {cell['error']}", file=sys.stderr)
    else:
        print(f"{head}: {cpu_ns(cell):.0f} ns, received {received_share([cell])}", file=sys.stderr)


def print_report(options, conditions, samples):
    for name, value in conditions.items():
        print(f"{name}: {value}")
    print(
        "\nServer CPU per delivery in ns, median of the rounds; its ratio to Hydrant's in the same round, median and"
        " range;\nlatency from a publication until its last subscriber has it.\n"
    )
    head = ["in flight", "payload", "server", "ns per delivery", "÷ hydrant", "range", "frames per write", "received"]
    head += ["p50 ms", "p99 ms", "RSS per idle connection", ""]
    print(f"| {' | '.join(head)} |")
    print("|" + "---|" * len(head))
    for in_flight, payload in options.cells:
        cells = [cell for cell in samples if (cell["in_flight"], cell["payload"]) == (in_flight, payload)]
        for candidate in options.candidates:
            print(f"| {in_flight} | {payload} B | {' | '.join(row(candidate, cells, options))} |")
    print(f"\nAll figures: {RESULTS}")


def row(candidate, cells, options):
    mine = [cell for cell in cells if cell["candidate"] == candidate and "load" in cell]
    if not mine:
        return [candidate, *["–"] * 8, "could not be measured"]
    hydrant = {cell["round"]: cpu_ns(cell) for cell in cells if cell["candidate"] == "hydrant" and "load" in cell}
    ratios = [cpu_ns(cell) / hydrant[cell["round"]] for cell in mine if cell["round"] in hydrant]

    def median(figure):
        return statistics.median(figure(cell) for cell in mine)

    notes = []
    if not all(cell["load"]["passed"] for cell in mine):
        notes.append("lost messages or connections")
    if any(cell["load"]["client"]["saturated"] for cell in mine):
        notes.append("client saturated")
    if median(lambda cell: cell["load"]["server"]["waited_percent"]) > WAITED_PERCENT_MAX:
        notes.append("server waited for its core")
    return [
        candidate,
        f"{median(cpu_ns):,.0f}",
        f"{statistics.median(ratios):.2f}" if ratios else "–",
        f"{min(ratios):.2f}–{max(ratios):.2f}" if ratios else "–",
        f"{median(lambda cell: cell['load']['frames_per_read']):.1f}",
        received_share(mine),
        f"{median(lambda cell: last_subscriber_ms(cell, 'p50')):.1f}",
        f"{median(lambda cell: last_subscriber_ms(cell, 'p99')):.1f}",
        f"{median(lambda cell: rss_bytes_per_connection(cell, options)):,.0f} B",
        ", ".join(notes),
    ]


def describe_conditions(options, cores):
    """The conditions of the run, printed above the figures."""

    def output(*command):
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=False)
        return result.stdout.strip() or "unknown"

    processor = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    versions = {
        "bun": lambda: output(bun_executable(), "--version"),
        "ws": lambda: f"{ws_version()} on Node {output('node', '--version')}",
    }
    return {
        "command": " ".join(["bash benches/peers.sh", *sys.argv[1:]]),
        "commit": output("git", "describe", "--always", "--dirty", "--exclude", "*"),
        "machine": f"{processor[1] if processor else 'unknown'}, {len(cores)} cores, Linux {platform.release()}",
        "peers": ", ".join(f"{name} {versions[name]()}" for name in options.candidates if name in versions),
        "connections": options.connections,
        "rounds": options.rounds,
    }


def ws_version():
    return json.loads((PREFIX / "node_modules/ws/package.json").read_text())["version"]


def save(conditions, samples):
    """Called after every cell, so that an interrupted run keeps its figures."""
    RESULTS.write_text(json.dumps({"conditions": conditions, "samples": samples}, indent=1))


def raise_open_files(connections):
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < connections + 500:
        sys.exit(f"peers.py: {connections} connections need {connections + 500} open files, the hard limit is {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
