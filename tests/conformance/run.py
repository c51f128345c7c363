"""Runs kosoku's WebSocket conformance cases against one server and judges them strictly.

    run.py ws://HOST:PORT/PATH REPORT_DIRECTORY

Started by ../conformance.sh, which sets up kosoku and the server.
"""

import asyncio
import os
import shutil
import sys
import time
from collections import Counter

from kosoku import FailureError, run_fuzzingclient
from kosoku._report import write_reports
from kosoku.cases import CASES

# permessage-deflate, an extension that the server does not offer
EXCLUDED = {"12", "13"}
# how many cases remain, so that a suite that ran nothing cannot look green
EXPECTED_CASES = 301
PASSES = {"OK", "INFORMATIONAL"}
# Some cases wait without end for a server that answers nothing. The slowest legitimate wait is 100 s.
CASE_SECONDS = 120
# A server that hangs this often is not worth waiting for any longer.
MAX_HANGS = 3


def send_utf8_vectors_as_they_are():
    """6.5 to 6.23: kosoku keeps the octets of the valid texts in a str, one character for each, and encodes them
    once more on sending, so that nothing but two-octet sequences would reach the server. Decoded here, they are
    sent as they are meant to be: sequences of up to four octets, with their first and last code points."""
    changed = 0
    for name, case in CASES.items():
        if name.startswith("6.") and getattr(case, "isValid", False):
            case.PAYLOAD = case.PAYLOAD.encode("latin-1").decode("utf-8")
            changed += 1
    return changed


def compare_large_echoes():
    """9.*: the cases check only type and length of an echo. Here the content must be the same, too."""
    changed = 0
    for name, case in CASES.items():
        if name.startswith("9."):
            case.onMessage = comparing(case.onMessage)
            changed += 1
    return changed


def comparing(original):
    def on_message(self, message, binary):
        if hasattr(self, "PAYLOAD"):
            length, unit = self.DATALEN, self.PAYLOAD
        else:
            length, unit = self.LEN, "\xfe" if self.BINARY else "*"
        if len(message) == length and message != (unit * (length // len(unit) + 1))[:length]:
            self.behavior = self.FAILED
            self.result = "The echo has the right length, but not the content that was sent."
            self.p.sendClose(self.p.CLOSE_STATUS_CODE_NORMAL)
        else:
            original(self, message, binary)

    return on_message


async def run_case(url, name):
    try:
        return (await run_fuzzingclient(url, [name]))[0]
    except FailureError as failure:
        return failure.results[0]


async def run_all(url, names):
    results, hung = {}, []
    for name in names:
        try:
            results[name] = await asyncio.wait_for(run_case(url, name), CASE_SECONDS)
        except asyncio.TimeoutError:
            hung.append(name)
            print(f"  {name}: no end within {CASE_SECONDS} s", flush=True)
            if len(hung) == MAX_HANGS:
                print(f"  giving up after {MAX_HANGS} such cases", flush=True)
                break
    return results, hung


def main(url, report):
    vectors, echoes = send_utf8_vectors_as_they_are(), compare_large_echoes()
    names = [name for name in CASES if name.split(".")[0] not in EXCLUDED]
    print(f"conformance: {len(names)} cases against {url}", flush=True)
    began = time.monotonic()
    results, hung = asyncio.run(run_all(url, names))
    seconds = time.monotonic() - began

    shutil.rmtree(report, ignore_errors=True)
    write_reports(results.values(), report)

    verdicts, failures = Counter(), []
    for name, result in results.items():
        behavior, close = result.behavior.value, result.behavior_close.value
        verdicts[behavior, close] += 1
        if behavior not in PASSES or close not in PASSES:
            failures.append(
                f"  {name}: {behavior}, close {close} ({result.remote_close_code}): "
                f"{result.result} {result.result_close}".rstrip()
            )

    print(f"ran {len(results)} of {EXPECTED_CASES} cases in {seconds:.0f} s")
    for (behavior, close), count in sorted(verdicts.items(), key=lambda item: -item[1]):
        print(f"  {count:4} {behavior}, close {close}")
    if failures:
        print(f"{len(failures)} cases did not pass:")
        print("\n".join(failures))
    if hung:
        print(f"{len(hung)} cases did not end: {', '.join(hung)}")
    complete = True
    if vectors != 63 or echoes != 54:
        complete = False
        print(f"the suite is not the expected one: {vectors} valid UTF-8 vectors, {echoes} large echoes")
    if len(results) != EXPECTED_CASES or len(names) != EXPECTED_CASES:
        complete = False
        print(f"not the expected number of cases: {len(names)} chosen, {len(results)} run, {EXPECTED_CASES} expected")
    passed = complete and not failures and not hung
    print("conformance: passed" if passed else "conformance: FAILED", flush=True)
    # A case that hangs holds a thread of its own, which an orderly end would wait for.
    os._exit(0 if passed else 1)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: run.py ws://HOST:PORT/PATH REPORT_DIRECTORY")
    main(sys.argv[1], sys.argv[2])
