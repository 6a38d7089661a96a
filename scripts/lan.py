"""A LAN of network namespaces: every PC is one, with cables to one or two switches (bridges).

A cable has a speed if it is given one: a token bucket at each of its ends, so that a PC's
sending and receiving are limited apart, as with a network card. A cable is pulled by taking
its port off the bridge (`nomaster`): nothing arrives any more and nobody is told, as with a
real one behind a switch. Everything lies in namespaces made here, and goes with them; nothing
reaches the network outside. Needs root, iproute2, and a kernel that allows it.

`scripts/lan` is the command; tests and benchmarks use `lan_of`.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TypeVar

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_numbers = itertools.count()
_MEGABIT = 1_000_000 // 8
#: Seconds of traffic that may pass at once, and that wait at a cable's end before some is lost;
#: bytes below which it does not go: fewer than a few packets would throttle by themselves.
_BURST_S, _BURST_MIN = 0.001, 32 * 1024
_QUEUE_S, _QUEUE_MIN = 0.008, 256 * 1024


class NotAllowed(Exception):
    """There are no network namespaces for us here; says why."""


class Lan:
    """`switches`: each is a network 10.213.N.0/24 of its own; PCs are made by their first use.
    `mark`: what the namespaces' names begin with; by default one of this process.

    Raises NotAllowed.
    """

    def __init__(self, switches: Sequence[str] = ("lan",), mark: str | None = None) -> None:
        if os.geteuid() != 0:
            raise NotAllowed("not root")
        if shutil.which("ip") is None or shutil.which("tc") is None:
            raise NotAllowed("the commands ip and tc (iproute2) are missing")
        self._mark = mark or f"zc{os.getpid()}-{next(_numbers)}"
        self._networks = {switch: number for number, switch in enumerate(switches, 1)}
        self._hosts: dict[str, int] = {}
        #: PC -> number of its ports; its first address ends with it
        self._pcs: dict[str, int] = {}
        self._namespaces: list[str] = []
        try:
            self._switch = self._namespace("switches")
            for number in self._networks.values():
                _ip("link", "add", f"br{number}", "type", "bridge", namespace=self._switch)
                _ip("link", "set", f"br{number}", "up", namespace=self._switch)
        except subprocess.CalledProcessError as error:
            self.close()
            raise NotAllowed(error.stderr.strip()) from error

    def prefix(self, pc: str) -> tuple[str, ...]:
        """The words that run a command on that PC."""
        return ("ip", "netns", "exec", self._made(pc))

    def address(self, pc: str, switch: str = "lan") -> str:
        self._made(pc)
        return f"10.213.{self._networks[switch]}.{self._hosts[pc]}"

    def move(self, pc: str, switch: str = "lan") -> str:
        """Gives the PC another address, and takes the old one; returns the new one."""
        namespace, device = self._made(pc), self._device(switch)
        _ip("addr", "del", f"{self.address(pc, switch)}/24", "dev", device, namespace=namespace)
        self._hosts[pc] = self._pcs[pc] + 100
        _ip("addr", "add", f"{self.address(pc, switch)}/24", "dev", device, namespace=namespace)
        return self.address(pc, switch)

    def pull(self, pc: str, switch: str = "lan") -> None:
        """The PC's cable out of the switch."""
        _ip("link", "set", self._port(pc, switch), "nomaster", namespace=self._switch)

    def plug(self, pc: str, switch: str = "lan") -> None:
        bridge = f"br{self._networks[switch]}"
        _ip("link", "set", self._port(pc, switch), "master", bridge, namespace=self._switch)

    def limit(self, pc: str, megabits: float, switch: str = "lan") -> None:
        """From now on the PC's cable carries so much each way, headers of all layers counted."""
        namespace = self._made(pc)
        _token_bucket(self._device(switch), megabits, namespace)
        _token_bucket(self._port(pc, switch), megabits, self._switch)

    def packets_sent(self, pc: str, switch: str = "lan") -> int:
        """By that PC into that network, ARP and all, since it was made."""
        return self._counter(pc, "tx_packets", switch)

    def bytes_sent(self, pc: str, switch: str = "lan") -> int:
        """Likewise, with the headers of all layers but Ethernet's own check."""
        return self._counter(pc, "tx_bytes", switch)

    def on(self, pc: str, make: Callable[[], T]) -> T:
        """`make()` in a thread of that PC: sockets of threads that it starts are the PC's, too."""
        made: list[T] = []
        problems: list[BaseException] = []

        def work() -> None:
            try:
                with open(f"/run/netns/{self._made(pc)}") as namespace:
                    if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                        raise OSError(ctypes.get_errno(), "setns")
                made.append(make())
            except BaseException as error:  # noqa: BLE001 - raised below, in the caller's thread
                problems.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        if problems:
            raise problems[0]
        return made[0]

    def close(self) -> None:
        """What runs inside must have ended. A second call does nothing."""
        namespaces, self._namespaces = self._namespaces, []
        _remove(reversed(namespaces))

    # -- inside -------------------------------------------------------------------------

    def _namespace(self, name: str) -> str:
        namespace = f"{self._mark}-{name}"
        _ip("netns", "add", namespace)
        self._namespaces.append(namespace)
        _ip("link", "set", "lo", "up", namespace=namespace)
        return namespace

    def _device(self, switch: str) -> str:
        """The PC's end of its cable."""
        return f"eth{self._networks[switch]}"

    def _port(self, pc: str, switch: str) -> str:
        """The switch's end of it."""
        return f"p{self._pcs[pc]}n{self._networks[switch]}"

    def _made(self, pc: str) -> str:
        if pc not in self._pcs:
            namespace = self._namespace(pc)
            self._pcs[pc] = self._hosts[pc] = len(self._pcs) + 1
            for switch in self._networks:
                self._lay_cable(pc, switch, namespace)
        return f"{self._mark}-{pc}"

    def _lay_cable(self, pc: str, switch: str, namespace: str) -> None:
        port, device = self._port(pc, switch), self._device(switch)
        far = ("peer", "name", device, "netns", namespace)
        _ip("link", "add", port, "type", "veth", *far, namespace=self._switch)
        _ip("addr", "add", f"{self.address(pc, switch)}/24", "dev", device, namespace=namespace)
        _ip("link", "set", device, "up", namespace=namespace)
        _ip("link", "set", port, "up", namespace=self._switch)
        self.plug(pc, switch)

    def _counter(self, pc: str, name: str, switch: str) -> int:
        path = f"/sys/class/net/{self._device(switch)}/statistics/{name}"
        done = subprocess.run([*self.prefix(pc), "cat", path], check=True, capture_output=True)
        return int(done.stdout)


@contextmanager
def lan_of(*switches: str) -> Iterator[Lan]:
    """Raises NotAllowed."""
    lan = Lan(switches or ("lan",))
    try:
        yield lan
    finally:
        lan.close()


def _ip(*words: str, namespace: str | None = None) -> str:
    return _run("ip", *(("-n", namespace) if namespace else ()), *words)


def _run(*words: str) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def _token_bucket(device: str, megabits: float, namespace: str) -> None:
    """What leaves there. The kernel cuts what is larger than the burst."""
    per_second = megabits * _MEGABIT
    burst, queue = (
        max(low, int(seconds * per_second))
        for seconds, low in ((_BURST_S, _BURST_MIN), (_QUEUE_S, _QUEUE_MIN))
    )
    sizes = ("rate", f"{round(megabits * 1000)}kbit", "burst", str(burst), "limit", str(queue))
    _run("tc", "-n", namespace, "qdisc", "replace", "dev", device, "root", "tbf", *sizes)


def _remove(namespaces: Iterator[str]) -> None:
    for namespace in namespaces:
        with suppress(subprocess.CalledProcessError):
            _ip("netns", "del", namespace)


# -- the command ------------------------------------------------------------------------


def _standing(mark: str) -> list[str]:
    """The namespaces of the LAN of that name, PCs before switches."""
    if shutil.which("ip") is None:
        return []
    names = [line.split()[0] for line in _ip("netns", "list").splitlines() if line]
    ours = [name for name in names if name.startswith(f"{mark}-")]
    return sorted(ours, key=lambda name: name.endswith("-switches"))


def _up(options: argparse.Namespace) -> str:
    if _standing(options.lan):
        return "a LAN is already up; `scripts/lan down` removes it"
    lan = Lan(mark=options.lan)
    try:
        for name, megabits in options.pcs:
            lan.prefix(name)
            if megabits:
                lan.limit(name, megabits)
            print(f"{name}\t{lan.address(name)}\t{f'{megabits:g} Mbit/s' if megabits else 'no limit'}")
    except subprocess.CalledProcessError as error:
        lan.close()
        return str(error.stderr.strip())
    return ""


def _exec(options: argparse.Namespace) -> str:
    namespace = f"{options.lan}-{options.pc}"
    if namespace not in _standing(options.lan):
        return f"no PC has the name {options.pc!r}; `scripts/lan up` creates PCs"
    os.execvp("ip", ["ip", "netns", "exec", namespace, *options.command])


def _down(options: argparse.Namespace) -> str:
    _remove(iter(_standing(options.lan)))
    return ""


def _pc(text: str) -> tuple[str, float]:
    """NAME or NAME=MBIT."""
    match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9_.-]{0,60})(?:=([0-9]+(?:\.[0-9]+)?))?", text)
    if match is None or match[1] == "switches" or (match[2] and float(match[2]) < 0.1):
        raise argparse.ArgumentTypeError(f"{text!r}: a PC is NAME or NAME=MBIT, with 0.1 Mbit/s or more")
    return match[1], float(match[2] or 0)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/lan", description="A LAN of network namespaces.")
    parser.add_argument("--lan", default="zlan", metavar="WORD", help="name of the LAN, if there are several")
    commands = parser.add_subparsers(dest="name", required=True)
    up = commands.add_parser("up", help="create PCs with cables to one switch")
    up.add_argument("pcs", nargs="+", type=_pc, metavar="NAME[=MBIT]", help="a PC, its speed in Mbit/s")
    inside = commands.add_parser("exec", help="run a command on a PC")
    inside.add_argument("pc", metavar="NAME")
    inside.add_argument("command", nargs=argparse.REMAINDER, metavar="CMD")
    commands.add_parser("down", help="remove them all")
    options = parser.parse_args()
    if options.name == "exec" and not options.command:
        parser.error("which command?")
    try:
        problem = {"up": _up, "exec": _exec, "down": _down}[options.name](options)
    except (NotAllowed, OSError) as error:
        problem = f"no network namespaces here ({error})" if isinstance(error, NotAllowed) else str(error)
    if problem:
        print(f"scripts/lan: {problem}", file=sys.stderr)
    return 1 if problem else 0


if __name__ == "__main__":
    sys.exit(main())
