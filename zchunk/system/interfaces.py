"""The addresses of this PC's network interfaces. Asks the operating system.

Called by whoever announces an address or makes a token; what is done with the answer
stands in `addresses.py`.
"""

from __future__ import annotations

import ipaddress
import socket

import ifaddr

#: Interfaces of containers and virtual machines: rarely what other PCs reach, so last.
_VIRTUAL = ("docker", "br-", "veth", "virbr", "vmnet", "vboxnet", "lxc", "cni", "podman")


#: linux/rtnetlink.h: IPv4 and IPv6 addresses that come and go
_GROUPS = 0x10 | 0x100


def watch_interfaces() -> int | None:
    """A descriptor that can be read from once an address of this PC came or went (netlink). None
    where the system has no such thing."""
    if not hasattr(socket, "AF_NETLINK"):
        return None
    flags = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    try:
        with socket.socket(socket.AF_NETLINK, flags, socket.NETLINK_ROUTE) as watch:
            watch.bind((0, _GROUPS))
            return watch.detach()
    except OSError:
        return None


def interface_addresses() -> list[str]:
    """Addresses others may reach this PC by: IPv4 first, then IPv6; none is loopback or link-local.

    Within a family those of virtual interfaces come last. Raises OSError where the
    operating system does not answer.
    """
    found: list[tuple[int, bool, str]] = []
    for adapter in ifaddr.get_adapters():
        virtual = adapter.name.startswith(_VIRTUAL)
        for entry in adapter.ips:
            ip = ipaddress.ip_address(entry.ip if isinstance(entry.ip, str) else entry.ip[0])
            if not (ip.is_loopback or ip.is_link_local or ip.is_unspecified):
                found.append((ip.version, virtual, str(ip)))
    found.sort(key=lambda item: item[:2])
    return list(dict.fromkeys(address for _, _, address in found))
