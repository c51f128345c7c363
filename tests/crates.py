"""Checks licence, source and known vulnerabilities of every crate that Hydrant uses.

Licences and sources come from Cargo.lock and the crates and are always checked. Vulnerabilities are
checked by `cargo audit`, if it is installed and reaches its database; otherwise the last line says
that they were not. Standard library only.
"""

import json
import re
import shutil
import subprocess
import sys

ALLOWED = {"MIT", "Apache-2.0"}
# Other permissive licences: (licence, crate) and what the crate is needed for.
REASONS = {
    ("ISC", "rustls-webpki"): "certificates, of rustls",
    ("ISC", "untrusted"): "input of rustls-webpki",
    ("ISC", "ring"): "cryptography, of rustls; ISC for what it has from BoringSSL",
    ("BSD-3-Clause", "matchit"): "routes, of axum; BSD for what it has from httprouter",
    ("BSD-3-Clause", "subtle"): "comparisons in constant time, of the cryptography",
    ("Unicode-3.0", "unicode-ident"): "tables of Unicode, in procedural macros",
    ("Zlib", "zlib-rs"): "compression, of flate2",
}
# Advisories about code that Hydrant does not call.
IGNORED = {}


def permitted(expression, name):
    """Whether an SPDX expression is satisfied by allowed licences only."""
    words = re.findall(r"\(|\)|[^\s()]+", expression.replace("/", " OR ").replace(" WITH LLVM-exception", ""))
    known = lambda word: word in ALLOWED or (word, name) in REASONS
    terms = [word.lower() if word in ("OR", "AND") else word if word in "()" else str(known(word)) for word in words]
    return eval(" ".join(terms), {"__builtins__": {}})


def main():
    assert permitted("Unlicense OR MIT", "x") and permitted("MIT/Apache-2.0", "x") and not permitted("MIT AND GPL-3.0", "x")
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", "x86_64-unknown-linux-gnu"]
    metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    used = {node["id"] for node in metadata["resolve"]["nodes"]} - set(metadata["workspace_members"])
    crates = [package for package in metadata["packages"] if package["id"] in used]
    wrong = []
    for crate in crates:
        name, licence = crate["name"], crate["license"]
        if not licence or not permitted(licence, name):
            wrong.append(f"{name} {crate['version']} is licensed under {licence}: neither MIT nor Apache-2.0, nor a reason in tests/crates.py")
        if not (crate["source"] or "").startswith("registry+"):
            wrong.append(f"{name} {crate['version']} comes from {crate['source']}, not from the registry")
    names = {crate["name"] for crate in crates}
    wrong += [f"tests/crates.py has a reason for {name}, which is not used" for _, name in REASONS if name not in names]
    vulnerabilities = "not checked: cargo audit is not installed"
    if shutil.which("cargo-audit"):
        command = ["cargo", "audit", "--quiet", *(word for name in IGNORED for word in ("--ignore", name))]
        audit = subprocess.run(command, capture_output=True, text=True)
        unreachable = re.search(r"couldn't fetch advisory database|error: .*fetch", audit.stderr)
        vulnerabilities = "not checked: its database cannot be reached" if unreachable else "none"
        if audit.returncode and not unreachable:
            wrong.append(f"cargo audit: {audit.stdout}{audit.stderr}")
    for sentence in wrong:
        print(f"crates: {sentence}", file=sys.stderr)
    print(f"crates: {len(crates)}, {len(wrong)} faults; known vulnerabilities: {vulnerabilities}")
    return 1 if wrong or len(crates) < 50 else 0


if __name__ == "__main__":
    sys.exit(main())
