"""Runs kosoku's WebSocket conformance cases against one server and judges them strictly.

    run.py ws://HOST:PORT/PATH REPORT_DIRECTORY

../conformance.sh starts this program after it has set up kosoku and the server.
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

# permessage-deflate, an extension that the server does not offer.
EXCLUDED = {"12", "13"}
# Number of all other cases: a suite that runs fewer fails.
EXPECTED_CASES = 301
PASSES = {"OK", "INFORMATIONAL"}
# Limit for one case: some wait for ever if the server does not answer. The longest valid one takes
# 100 s.
CASE_SECONDS = 120
# The run ends after this many cases without an end.
MAX_HANGS = 3


def send_utf8_vectors_as_they_are():
    """Corrects the valid texts of cases 6.5 to 6.23; returns their number.

    kosoku keeps their octets in a str, one character for each octet, and encodes them again when it
    sends them. Then only two-octet sequences would reach the server. Decoded here, the texts are
    sent as intended: sequences of up to four octets, with their first and last code points."""
    changed = 0
    for name, case in CASES.items():
        if name.startswith("6.") and getattr(case, "isValid", False):
            case.PAYLOAD = case.PAYLOAD.encode("latin-1").decode("utf-8")
            changed += 1
    return changed


def compare_large_echoes():
    """Makes cases 9.* compare the content of an echo, not only its type and length; returns their
    number."""
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
    # An orderly exit would wait for the thread of a case that hangs.
    os._exit(0 if passed else 1)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: run.py ws://HOST:PORT/PATH REPORT_DIRECTORY")
    main(sys.argv[1], sys.argv[2])
