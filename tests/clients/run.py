"""Real clients, browsers, proxies and publishers against one binary.

    run.py SERVER_BINARY [--table FILE] [WORD…]

../clients.sh installs the programs and starts this. It prints a line when a row ends, then what
failed with the command that repeats it, then the tables. A WORD selects the rows that contain it.
"""

import argparse
import concurrent.futures
import shutil
import sys
import time
from pathlib import Path

import browsers
import harness
import libraries
import load_testers
import proxies
import publishers
import requests_by_hand
import tools
from harness import Row

ROWS = []


def add(table, name, function, missing=None):
    ROWS.append((Row(table, name), function, missing))


def add_libraries():
    for name, start, can in tools.library_clients():
        run = lambda row, start=start, can=can: libraries.library_row(row, start, can)  # noqa: E731
        add("clients", name, run, None if start else "its package or compiler is not here")


def add_load_testers():
    for name, run, here in load_testers.rows():
        add("clients", name, run, None if here else "its package is not here")


def add_browsers():
    for name, program, start in browsers.installed():
        run = lambda row, program=program, start=start: browsers.browser_row(row, program, start)  # noqa: E731
        add("clients", name, run, None if program else "apt has no such package, or may not install")


def add_publishers():
    for name, run, program in publishers.ROWS:
        add("publishers", name, run, None if not program or shutil.which(program) else f"{program} is not here")


def add_proxies():
    for name, options in proxies.ROWS:
        run = lambda row, options=options: proxies.one_proxy(row, **options)  # noqa: E731
        add("proxies", name, run, None if shutil.which(options["kind"]) else f"{options['kind']} is not here")


def add_requests():
    for name, run in requests_by_hand.ROWS:
        add("requests", name, run)


def run_row(entry):
    row, function, missing = entry
    begin = time.monotonic()
    if missing:
        row.missing = missing
        print(f"NOT INSTALLED HERE  {row.table}: {row.name}: {missing}", flush=True)
        return row
    with row.part():
        function(row)
    word = "FAILED" if row.failures else "ok"
    print(
        f"{word:6} {row.table}: {row.name}: {row.checks} checks, {len(row.failures)} failed, "
        f"{time.monotonic() - begin:.1f} s",
        flush=True,
    )
    return row


def tables():
    text = []
    for table in dict.fromkeys(row.table for row, *_ in ROWS):
        rows = [row for row, *_ in ROWS if row.table == table]
        columns = list(dict.fromkeys(column for row in rows for column in row.cells))
        text.append("| " + " | ".join([table, *columns]) + " |")
        text.append("|---" * (len(columns) + 1) + "|")
        text += [
            "| " + " | ".join([row.name, *(row.cell(column) for column in columns)]) + " |" for row in rows
        ]
        text.append("")
    return "\n".join(text)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("binary", type=Path)
    parser.add_argument("--table", type=Path, help="write the tables here as well")
    parser.add_argument("--failures", type=int, default=20, help="how many failures of a row are described")
    parser.add_argument("words", nargs="*")
    options = parser.parse_intermixed_args()
    harness.Server.binary = options.binary.resolve()
    shutil.rmtree(harness.WORK, ignore_errors=True)
    harness.WORK.mkdir(parents=True)
    add_browsers()
    add_libraries()
    add_load_testers()
    add_publishers()
    add_proxies()
    add_requests()
    if options.words:
        ROWS[:] = [
            entry
            for entry in ROWS
            if any(word.lower() in f"{entry[0].table} {entry[0].name}".lower() for word in options.words)
        ]
    begin = time.monotonic()
    # A row waits most of its time.
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(run_row, ROWS))
    proxies.CHROMIUM.stack.close()
    for row in rows:
        for column, what, reproduce in row.failures[: options.failures]:
            print(
                f"\nFAILED {row.table}: {row.name}{', ' + column if column else ''}: {what}"
                + (f"\n    {reproduce}" if reproduce else "")
            )
    text = tables()
    print("\n" + text)
    if options.table:
        options.table.write_text(text)
    failed = sum(bool(row.failures) for row in rows)
    missing = [row.name for row in rows if row.missing]
    absent = f", NOT INSTALLED HERE: {', '.join(missing)}" if missing else ""
    checks, seconds = sum(row.checks for row in rows), time.monotonic() - begin
    print(f"logs in {harness.WORK}")
    print(
        f"clients: {len(rows) - failed - len(missing)} of {len(rows)} rows passed, {failed} failed, "
        f"{checks} checks in {seconds:.0f} s{absent}"
    )
    sys.exit(bool(failed) or not rows)


main()
