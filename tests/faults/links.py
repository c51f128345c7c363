"""Links to network namespaces that can be made bad: nftables drops packets of them, tc holds bytes up.

`enter` executes the program again in a network namespace and a mount namespace of its own. Everything made here lives in those,
so that the kernel takes it away with the program's last process, however that ends.
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
    """Goes on in namespaces of its own, as their root; without root, in a user namespace too."""
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
        sys.exit(f"{os.path.basename(sys.argv[0])}: no namespaces of its own: run it as root, or where users may make namespaces")
    os.execvpe("unshare", [*unshare, sys.executable, *sys.argv], {**os.environ, INSIDE: "1"})


def die_with_parent():
    """For a process to be: it is killed when the suite ends, whichever way."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def call(command, text=None):
    """What a command says; the end of the program when it fails."""
    result = subprocess.run(command.split(), input=text, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{os.path.basename(sys.argv[0])}: {command}: {result.stderr.strip()}")
    return result.stdout


class Link:
    """A way to a namespace, through another one that forwards: what is lost or held up there, neither end hears of."""

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
            # A packet on this link is a packet: none of 64 KiB that is lost as one.
            call(f"{within} ip link set {interface} gso_max_segs 1 up")
        call(f"ip route add 10.9.{network}.4/30 via 10.9.{network}.2")
        call(f"{self.within} ip route add default via {there}")
        call(f"{self.way} tee /proc/sys/net/ipv4/ip_forward", "1")
        chain = "chain passing { type filter hook forward priority 0; }"
        call(f"{self.way} nft -f -", f"table inet way {{ counter down {{ }}\ncounter up {{ }}\n{chain}\n}}\n")

    def inside(self, action):
        """What `action` answers from within the namespace: the sockets that it opens stay there."""

        def there():
            with open(f"/run/netns/{self.name}") as namespace:
                if LIBC.setns(namespace.fileno(), CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns")
            return action()

        with concurrent.futures.ThreadPoolExecutor(1) as thread:
            return thread.submit(there).result()

    def lose(self, percent, down=True, up=True):
        """From now on so many packets do not arrive; `down` is towards the namespace."""
        share = "" if percent == 100 else f"numgen random mod 100 < {percent}"
        for interface, direction in [("near", "down")] * down + [("far", "up")] * up:
            call(f"{self.way} nft add rule inet way passing iifname {interface} {share} counter name {direction} drop")

    def slow(self, rate):
        """From now on bytes towards the namespace leave at this rate, and what more than fills a short queue is dropped."""
        call(f"{self.way} tc qdisc replace dev far root tbf rate {rate} burst 5kb limit 30kb")

    def heal(self):
        call(f"{self.way} nft flush chain inet way passing")

    def lost(self):
        """Packets dropped by nftables so far, down and up."""
        said = {direction: call(f"{self.way} nft list counter inet way {direction}") for direction in ("down", "up")}
        return [int(re.search(r"packets (\d+)", text)[1]) for text in said.values()]

    def held(self):
        """How often tc has held up a packet since the link is slow, and how many it has dropped."""
        [figures] = json.loads(call(f"{self.way} tc -s -j qdisc show dev far"))
        return figures["overlimits"], figures["drops"]

    def delete(self):
        # The namespaces go a while after their names: this end goes now.
        call(f"ip link delete {self.name}")
        for namespace in (self.name, f"{self.name}-way"):
            call(f"ip netns delete {namespace}")
