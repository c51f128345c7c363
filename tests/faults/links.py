"""Links to network namespaces: nftables drops their packets, tc limits their rate.

`enter` executes the program again in new network and mount namespaces. Everything made here lives
in those, so the kernel removes it with the last process of the program, however that ends.
"""

import concurrent.futures
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys

CLONE_NEWNET, PR_SET_PDEATHSIG = 0x40000000, 1
LIBC = ctypes.CDLL(None, use_errno=True)
PACKAGES = {"unshare": "util-linux", "nsenter": "util-linux", "mount": "mount", "ip": "iproute2", "tc": "iproute2", "nft": "nftables"}
INSIDE = "FAULTS_INSIDE"


def enter():
    """Executes the program again as root of new namespaces; a user without root gets a user
    namespace too."""
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if missing := [tool for tool in PACKAGES if not shutil.which(tool)]:
        packages = " ".join(sorted({PACKAGES[tool] for tool in missing}))
        sys.exit(f"{os.path.basename(sys.argv[0])}: {', '.join(missing)} missing: install {packages}")
    if os.environ.pop(INSIDE, None):
        call("mount -t tmpfs tmpfs /run")
        os.mkdir("/run/netns")
        call("ip link set lo up")
        return
    unshare = ["unshare", "--net", "--mount"] + ([] if os.geteuid() == 0 else ["--user", "--map-root-user"])
    if subprocess.run([*unshare, "true"], stderr=subprocess.DEVNULL).returncode:
        sys.exit(f"{os.path.basename(sys.argv[0])}: cannot create namespaces: run it as root, or allow users to create them")
    os.execvpe("unshare", [*unshare, sys.executable, *sys.argv], {**os.environ, INSIDE: "1"})


def die_with_parent():
    """Called in a new child process: the kernel kills it when the suite ends, in whatever way."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def call(command, text=None):
    """Runs a command and returns its output; ends the program if it fails."""
    result = subprocess.run(command.split(), input=text, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{os.path.basename(sys.argv[0])}: {command}: {result.stderr.strip()}")
    return result.stdout


class Link:
    """A route to a namespace through a second one that forwards packets.

    Packets are dropped and delayed in the second namespace, so neither end notices it directly."""

    def __init__(self, name, network):
        self.name, self.here, there = name, f"10.9.{network}.1", f"10.9.{network}.5"
        self.within, self.way = f"nsenter --net=/run/netns/{name}", f"nsenter --net=/run/netns/{name}-way"
        call(f"ip netns add {name}")
        call(f"ip netns add {name}-way")
        call(f"ip link add {name} type veth peer name near netns {name}-way")
        call(f"{self.way} ip link add far type veth peer name {name} netns {name}")
        ends = [("", name, self.here), (self.way, "near", f"10.9.{network}.2"), (self.way, "far", there), (self.within, name, f"10.9.{network}.6")]
        for within, interface, address in ends:
            call(f"{within} ip address add {address}/30 dev {interface}")
            # No segmentation offload: it would send 64 KiB as one packet, and lose them as one.
            call(f"{within} ip link set {interface} gso_max_segs 1 up")
        call(f"ip route add 10.9.{network}.4/30 via 10.9.{network}.2")
        call(f"{self.within} ip route add default via {there}")
        call(f"{self.way} tee /proc/sys/net/ipv4/ip_forward", "1")
        chain = "chain passing { type filter hook forward priority 0; }"
        call(f"{self.way} nft -f -", f"table inet way {{ counter down {{ }}\ncounter up {{ }}\n{chain}\n}}\n")

    def inside(self, action):
        """Runs `action` in the namespace and returns its result; the sockets that it opens stay
        there."""

        def there():
            with open(f"/run/netns/{self.name}") as namespace:
                if LIBC.setns(namespace.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            return action()

        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            return thread.submit(there).result()

    def lose(self, percent, down=True, up=True):
        """Drops `percent` of the packets from now on; `down` means towards the namespace."""
        share = "" if percent == 100 else f"numgen random mod 100 < {percent}"
        for interface, direction in [("near", "down")] * down + [("far", "up")] * up:
            call(f"{self.way} nft add rule inet way passing iifname {interface} {share} counter name {direction} drop")

    def slow(self, rate):
        """Limits the rate towards the namespace; packets that do not fit into a short queue are
        dropped."""
        call(f"{self.way} tc qdisc replace dev far root tbf rate {rate} burst 5kb limit 30kb")

    def heal(self):
        call(f"{self.way} nft flush chain inet way passing")

    def lost(self):
        """Number of packets dropped by nftables so far, down and up."""
        said = {direction: call(f"{self.way} nft list counter inet way {direction}") for direction in ("down", "up")}
        return [int(re.search(r"packets (\d+)", text)[1]) for text in said.values()]

    def delayed(self):
        """Number of packets delayed and dropped by tc since the link became slow."""
        [figures] = json.loads(call(f"{self.way} tc -s -j qdisc show dev far"))
        return figures["overlimits"], figures["drops"]

    def delete(self):
        # The kernel removes namespaces a while after their names; the link itself goes now.
        call(f"ip link delete {self.name}")
        for namespace in (self.name, f"{self.name}-way"):
            call(f"ip netns delete {namespace}")
