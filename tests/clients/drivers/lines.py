"""The line protocol of Driver in ../harness.py, for the clients in Python."""

import sys

TEXT = "grüße ☃"
LARGE = "x" * 65536
BINARY = bytes(range(256))
ECHOES = [("text", TEXT), ("large", LARGE), ("binary", BINARY)]


class Attempt:
    def __init__(self, line):
        fields = (line.split("\t") + [""] * 6)[:6]
        self.name, self.url, self.action, self.argument, protocols, headers = fields
        self.protocols = [p for p in protocols.split(",") if p]
        self.headers = dict(h.split(": ", 1) for h in headers.split("|") if h)
        self.found = {"open": 0}

    def ready(self):
        print(f"ready\t{self.name}", flush=True)

    def text_to_say(self):
        return "x" * int(self.argument[1:]) if self.argument.startswith("@") else self.argument

    def got(self, messages):
        self.found["got"] = ",".join(
            f"text:{m.encode().hex()}" if isinstance(m, str) else f"binary:{bytes(m).hex()}" for m in messages
        )

    def result(self):
        told = "\t".join(f"{key}={str(value)[:300]}" for key, value in self.found.items())
        print(f"result\t{self.name}\t{' '.join(told.split(chr(10)))}", flush=True)


def attempts():
    for line in sys.stdin:
        if line.strip():
            yield Attempt(line.rstrip("\n"))
