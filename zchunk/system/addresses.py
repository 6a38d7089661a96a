"""Addresses as people write them, and the ones a node or token announces. Pure.

Understands `host:port`, `[::1]:7700`, `*:7700` and `tcp://host:port`. Knows nothing
of sockets: who listens passes what it bound, `interfaces.py` what the PC has. Called
by the command line, the configuration, the tracker (announced addresses) and tokens.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from zchunk.errors import InvalidUsage

SCHEME = "tcp://"
WILDCARD = "*"
LOOPBACK = "127.0.0.1"
MAX_PORT = 65535
#: As many as a message may carry (`protocol.messages.Addresses`).
MAX_ANNOUNCED = 16

_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(\.[A-Za-z0-9_-]{1,63})*\.?")
_EXPECTED = "use host:port, e.g. 192.168.1.5:7700, [::1]:7700 or *:7700"


@dataclass(frozen=True)
class HostPort:
    """A host (name, IPv4, IPv6 without brackets, or `*`) and a TCP port; 0 is "any free one"."""

    host: str
    port: int

    @property
    def tcp(self) -> str:
        """The endpoint, `tcp://host:port`; IPv6 stands in brackets."""
        return f"{SCHEME}{self}"

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse(text: str, default_port: int | None = None) -> HostPort:
    """What a person wrote -> host and port; `default_port` serves where none is written.

    Raises InvalidUsage, in one line that says what is wrong and how to write it.
    """
    rest = text.strip()
    scheme, separator, after = rest.partition("://")
    if separator:
        if scheme.lower() != "tcp":
            raise _wrong(text, f"{scheme}:// is not supported, only tcp://")
        rest = after
    host, port = _split(text, rest)
    _check_host(text, host)
    if port is None:
        if default_port is None:
            raise _wrong(text, "the port is missing")
        return HostPort(host, default_port)
    if not (port.isascii() and port.isdigit() and int(port[:6]) <= MAX_PORT):
        raise _wrong(text, f"the port is not between 0 and {MAX_PORT}")
    return HostPort(host, int(port))


def _wrong(text: str, why: str) -> InvalidUsage:
    shown = repr(text)  # cut then: what cannot be shown is ten times as long in it
    if len(shown) > 62:
        shown = f"{shown[:58]}...{shown[0]}"
    return InvalidUsage(f"{shown} is not a valid address: {why}; {_EXPECTED}")


def _split(text: str, rest: str) -> tuple[str, str | None]:
    """(host without brackets, port text or None)."""
    if rest.startswith("["):
        host, bracket, after = rest[1:].partition("]")
        if not bracket or ":" not in host or (after and not after.startswith(":")):
            raise _wrong(text, "brackets may enclose only an IPv6 address")
        return host, after[1:] if after else None
    if rest.count(":") > 1:
        if _ip(rest) is None:
            raise _wrong(text, "an IPv6 address with a port needs brackets")
        return rest, None
    host, colon, port = rest.partition(":")
    return host, port if colon else None


def _check_host(text: str, host: str) -> None:
    if not host:
        raise _wrong(text, "the host is missing (* means all addresses of this PC)")
    if host == WILDCARD or _ip(host) is not None:
        return
    if not _HOST_NAME.fullmatch(host):
        raise _wrong(text, "the host is neither an IP address nor a host name")
    # "192.168.1" or "10.0.0.300": some resolvers take these for addresses nobody meant.
    if host.rstrip(".").rpartition(".")[2].isdigit():
        raise _wrong(text, "the host is not a complete IPv4 address")


def _ip(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def unmapped(host: str) -> str:
    """`::ffff:192.168.1.5`, as a dual-stack socket names an IPv4 peer, -> `192.168.1.5`."""
    ip = _ip(host)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return host if mapped is None else str(mapped)


def is_wildcard(host: str) -> bool:
    """Whether `host` stands for all addresses of a PC."""
    ip = _ip(unmapped(host))
    return host == WILDCARD or (ip is not None and ip.is_unspecified)


def is_loopback(host: str) -> bool:
    """Whether only the same PC can reach `host`."""
    ip = _ip(unmapped(host))
    return host.lower() == "localhost" or (ip is not None and ip.is_loopback)


def announced(
    *, bound: str, port: int, advertise: Sequence[str], seen_from: str | None, interfaces: Sequence[str]
) -> tuple[str, ...]:
    """The `tcp://` endpoints others try in order to reach who listens here; never empty.

    `bound` is the host it is bound to, `port` the real port, `advertise` what its owner
    wants told (`host` or `host:port`), `seen_from` the host the tracker sees it by, and
    `interfaces` the PC's addresses. What is advertised wins; a bind to one address is
    that address; else the address seen, the interfaces', and loopback if there is no other.

    Raises InvalidUsage for an `advertise` entry nobody could connect to.
    """
    if advertise:
        return _endpoints(advertised(entry, port) for entry in advertise)
    if not is_wildcard(bound):
        return _endpoints([HostPort(unmapped(bound), port)])
    seen = [] if seen_from is None else [seen_from]
    hosts = [unmapped(host) for host in (*seen, *interfaces)]
    usable = [host for host in hosts if _others_reach(host, bound)]
    return _endpoints(HostPort(host, port) for host in usable or [LOOPBACK])


def for_token(bound: str, port: int, advertise: Sequence[str], interfaces: Sequence[str]) -> tuple[str, ...]:
    """The endpoints a join token carries: no wildcard, and loopback only where there is no other.

    Loopback stays where the bind is loopback itself, where nothing else is advertised
    (a tunnel, say), and on a PC without a network. Raises InvalidUsage as `announced` does.
    """
    outward = [entry for entry in advertise if not is_loopback(advertised(entry, port).host)]
    return announced(
        bound=bound, port=port, advertise=outward or advertise, seen_from=None, interfaces=interfaces
    )


def advertised(entry: str, port: int) -> HostPort:
    """One `advertise` entry, with the bound port where it names none.

    Raises InvalidUsage for a wildcard and for port 0: nobody can connect to these.
    """
    address = parse(entry, default_port=port)
    if is_wildcard(address.host) or (address.port == 0 and port != 0):
        raise InvalidUsage(f"{entry!r} cannot be advertised: give a host and port that others can connect to")
    return address


def _others_reach(host: str, bound: str) -> bool:
    """Whether another PC can use `host` to reach a socket bound to the wildcard `bound`."""
    ip = _ip(host)
    if is_loopback(host) or is_wildcard(host):
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        # A link-local address counts on one PC's interface only; 0.0.0.0 takes no IPv6.
        return not ip.is_link_local and bound != "0.0.0.0"
    return True


def _endpoints(addresses: Iterable[HostPort]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(address.tcp for address in addresses))[:MAX_ANNOUNCED]
