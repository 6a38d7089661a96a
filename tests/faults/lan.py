"""A LAN of network namespaces: every member on a PC of its own, with cables to one or two switches.

A cable is pulled by taking its port off the bridge (`nomaster`): nothing arrives any more and
nobody is told, as with a real one behind a switch. Everything lies in namespaces made here,
and goes with them. Root only.
"""

from __future__ import annotations

import ctypes
import itertools
import os
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

import zchunk
from tests.integration.cluster import Cluster
from zchunk.config import Settings

T = TypeVar("T")
_CLONE_NEWNET = 0x40000000
_numbers = itertools.count()


def _ip(*words: str, namespace: str | None = None) -> None:
    at = ["-n", namespace] if namespace else []
    subprocess.run(["ip", *at, *words], check=True, capture_output=True, text=True)


class Lan:
    """`switches`: each is a network 10.213.N.0/24 of its own; PCs are made by their first use."""

    def __init__(self, switches: Sequence[str] = ("lan",)) -> None:
        self._mark = f"zc{os.getpid()}-{next(_numbers)}"
        self._networks = {switch: number for number, switch in enumerate(switches, 1)}
        self._pcs: dict[str, int] = {}
        self._namespaces: list[str] = []
        self._switch = self._namespace("switches")
        for number in self._networks.values():
            _ip("link", "add", f"br{number}", "type", "bridge", namespace=self._switch)
            _ip("link", "set", f"br{number}", "up", namespace=self._switch)

    def prefix(self, pc: str) -> tuple[str, ...]:
        """The words that run a command on that PC."""
        return ("ip", "netns", "exec", self._made(pc))

    def address(self, pc: str, switch: str = "lan") -> str:
        self._made(pc)
        return f"10.213.{self._networks[switch]}.{self._pcs[pc]}"

    def pull(self, pc: str, switch: str = "lan") -> None:
        """The PC's cable out of the switch."""
        _ip("link", "set", self._port(pc, switch), "nomaster", namespace=self._switch)

    def plug(self, pc: str, switch: str = "lan") -> None:
        bridge = f"br{self._networks[switch]}"
        _ip("link", "set", self._port(pc, switch), "master", bridge, namespace=self._switch)

    def packets_sent(self, pc: str, switch: str = "lan") -> int:
        """By that PC into that network, ARP and all, since it was made."""
        statistics = f"/sys/class/net/eth{self._networks[switch]}/statistics/tx_packets"
        done = subprocess.run([*self.prefix(pc), "cat", statistics], check=True, capture_output=True)
        return int(done.stdout)

    def on(self, pc: str, make: Callable[[], T]) -> T:
        """`make()` in a thread of that PC: sockets of threads that it starts are the PC's, too."""
        made: list[T] = []

        def work() -> None:
            with open(f"/run/netns/{self._made(pc)}") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), "setns")
            made.append(make())

        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        return made[0]

    def close(self) -> None:
        """What runs inside must have ended. A second call does nothing."""
        namespaces, self._namespaces = self._namespaces, []
        for namespace in reversed(namespaces):
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "del", namespace)

    # -- inside -------------------------------------------------------------------------

    def _namespace(self, name: str) -> str:
        namespace = f"{self._mark}-{name}"
        _ip("netns", "add", namespace)
        self._namespaces.append(namespace)
        _ip("link", "set", "lo", "up", namespace=namespace)
        return namespace

    def _port(self, pc: str, switch: str) -> str:
        return f"p{self._pcs[pc]}n{self._networks[switch]}"

    def _made(self, pc: str) -> str:
        if pc not in self._pcs:
            self._pcs[pc] = len(self._pcs) + 1
            namespace = self._namespace(pc)
            for switch, number in self._networks.items():
                self._lay_cable(pc, switch, f"eth{number}", namespace)
        return f"{self._mark}-{pc}"

    def _lay_cable(self, pc: str, switch: str, device: str, namespace: str) -> None:
        port = self._port(pc, switch)
        far = ("peer", "name", device, "netns", namespace)
        _ip("link", "add", port, "type", "veth", *far, namespace=self._switch)
        _ip("addr", "add", f"{self.address(pc, switch)}/24", "dev", device, namespace=namespace)
        _ip("link", "set", device, "up", namespace=namespace)
        _ip("link", "set", port, "up", namespace=self._switch)
        self.plug(pc, switch)


@contextmanager
def lan_of(*switches: str) -> Iterator[Lan]:
    """Skips where namespaces are not allowed."""
    if os.geteuid() != 0:
        pytest.skip("needs network namespaces (not root)")
    try:
        lan = Lan(switches or ("lan",))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"needs network namespaces ({error})")
    try:
        yield lan
    finally:
        lan.close()


class LanCluster(Cluster):
    """Each member on its PC; the tracker's is "tracker"."""

    def __init__(self, root: Path, lan: Lan, settings: Mapping[str, Any], switch: str = "lan") -> None:
        super().__init__(root, settings)
        self.lan = lan
        self._switch = switch

    def place(self, name: str) -> tuple[tuple[str, ...], str]:
        return self.lan.prefix(name), self.lan.address(name, self._switch)

    def watcher(self) -> zchunk.Client:
        return self.lan.on("watcher", lambda: zchunk.Client(self.client.home, Settings()))
