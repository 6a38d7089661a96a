"""Addresses: what people write, what a node announces, what a token carries."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass

import ifaddr
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from zchunk.errors import InvalidUsage
from zchunk.system.addresses import HostPort, announced, for_token, is_loopback, is_wildcard, parse, unmapped
from zchunk.system.interfaces import interface_addresses

LAN = "192.168.1.5"
V6 = "2001:db8::5"

ips = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str)
ports = st.integers(0, 65535)
loopbacks = st.sampled_from(["127.0.0.1", "127.9.9.9", "::1", "localhost", "::ffff:127.0.0.1"])
wildcards = st.sampled_from(["*", "0.0.0.0", "::"])


# -- parse and format -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("192.168.1.5:7700", LAN, 7700),
        ("[::1]:7700", "::1", 7700),
        ("*:7700", "*", 7700),
        ("tcp://lab-pc3:7700", "lab-pc3", 7700),
        ("TCP://[2001:db8::5]:1", V6, 1),
        ("lab_pc.studio.lan:0", "lab_pc.studio.lan", 0),
        (" 10.0.0.1:65535 ", "10.0.0.1", 65535),
        ("[fe80::1%eth0]:7700", "fe80::1%eth0", 7700),
    ],
)
def test_forms_people_write(text: str, host: str, port: int) -> None:
    assert parse(text) == HostPort(host, port)


@pytest.mark.parametrize("text", ["lab-pc3", "[::1]", "::1", "*", "tcp://10.0.0.1"])
def test_the_default_port_serves_where_none_is_written(text: str) -> None:
    assert parse(text, 7700).port == 7700
    with pytest.raises(InvalidUsage):
        parse(text)


def test_a_written_port_wins_over_the_default() -> None:
    assert parse("a:1", 2).port == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "host is missing"),
        (":7700", "host is missing"),
        ("a", "port is missing"),
        ("a:", "port is not between"),
        ("a:x", "port is not between"),
        ("a:65536", "port is not between"),
        ("a:99999999999999999999", "port is not between"),
        ("a:-1", "port is not between"),
        ("a:٣", "port is not between"),
        ("::1:7700", "needs brackets|port is missing"),
        ("2001:db8::5:99999", "needs brackets"),
        ("[::1", "brackets"),
        ("[::1]7700", "brackets"),
        ("[lan]:7700", "brackets"),
        ("[1:2]:7700", "neither"),
        ("http://a:1", "only tcp://"),
        ("a b:1", "neither"),
        ("a/b:1", "neither"),
        ("-a:1", "neither"),
        ("10.0.0.300:1", "not a complete IPv4"),
        ("7700:1", "not a complete IPv4"),
    ],
)
def test_mistakes_say_what_is_wrong_and_how_to_write_it(text: str, says: str) -> None:
    with pytest.raises(InvalidUsage, match=says) as caught:
        parse(text)
    assert "use host:port" in caught.value.message
    assert len(caught.value.message.splitlines()) == 1


def test_ipv6_stands_in_brackets() -> None:
    assert HostPort(V6, 7700).tcp == "tcp://[2001:db8::5]:7700"
    assert HostPort("*", 7700).tcp == "tcp://*:7700"
    assert str(HostPort(LAN, 7700)) == "192.168.1.5:7700"


@given(host=st.one_of(ips, st.sampled_from(["*", "lab-pc3", "a.b"])), port=ports)
def test_what_is_formatted_parses_to_the_same(host: str, port: int) -> None:
    address = HostPort(host, port)
    assert parse(str(address)) == parse(address.tcp) == address


@pytest.mark.row("S4")
@given(st.text(max_size=100))
@example("0" * 28 + "\x1f" * 10 + "\U00012544" * 9)
def test_any_text_is_an_address_or_a_one_line_refusal(text: str) -> None:
    message = ""
    try:
        port = parse(text).port
    except InvalidUsage as error:
        port, message = 0, error.message
    assert 0 <= port <= 65535
    assert len(message.splitlines()) <= 1
    assert len(message) < 300


# -- kinds of host --------------------------------------------------------------------


@given(st.ip_addresses(v=4).map(str))
def test_a_mapped_address_is_its_ipv4_address(ip: str) -> None:
    assert unmapped(f"::ffff:{ip}") == unmapped(ip) == ip


@pytest.mark.parametrize("host", [V6, "::1", "lab-pc3", "*", "fe80::1%eth0"])
def test_other_hosts_stay_as_they_are(host: str) -> None:
    assert unmapped(host) == host


@given(wildcards)
def test_wildcards(host: str) -> None:
    assert is_wildcard(host)
    assert not is_loopback(host)


@given(loopbacks)
def test_loopbacks(host: str) -> None:
    assert is_loopback(host)
    assert not is_wildcard(host)


@pytest.mark.parametrize("host", [LAN, V6, "lab-pc3", "::ffff:10.0.0.1", "fe80::1%eth0"])
def test_other_hosts_are_neither(host: str) -> None:
    assert not is_loopback(host)
    assert not is_wildcard(host)


# -- what is announced ----------------------------------------------------------------


def told(
    bound: str = "*",
    advertise: tuple[str, ...] = (),
    seen_from: str | None = None,
    interfaces: tuple[str, ...] = (),
) -> tuple[str, ...]:
    return announced(bound=bound, port=7710, advertise=advertise, seen_from=seen_from, interfaces=interfaces)


@given(bound=st.one_of(wildcards, loopbacks, ips), seen=st.none() | ips)
def test_what_is_advertised_wins(bound: str, seen: str | None) -> None:
    endpoints = told(bound, ("lab-pc3", "10.0.0.9:80"), seen, (LAN,))
    assert endpoints == ("tcp://lab-pc3:7710", "tcp://10.0.0.9:80")


@pytest.mark.parametrize("entry", ["*", "0.0.0.0:7710", "[::]:1", "a:0", "a b"])
def test_what_nobody_can_connect_to_is_not_advertised(entry: str) -> None:
    with pytest.raises(InvalidUsage):
        told(advertise=(entry,))


@pytest.mark.parametrize("bound", [LAN, "127.0.0.1", "::1", V6])
def test_a_bind_to_one_address_is_that_address(bound: str) -> None:
    assert told(bound, seen_from="10.0.0.9", interfaces=("10.0.0.8",)) == (HostPort(bound, 7710).tcp,)


@given(wildcards)
def test_a_wildcard_announces_first_the_address_the_tracker_sees(bound: str) -> None:
    endpoints = told(bound, seen_from=f"::ffff:{LAN}", interfaces=("10.0.0.8", LAN))
    assert endpoints == ("tcp://192.168.1.5:7710", "tcp://10.0.0.8:7710")


@given(bound=wildcards, seen=st.none() | loopbacks)
def test_seen_as_loopback_a_wildcard_announces_its_interfaces(bound: str, seen: str | None) -> None:
    endpoints = told(bound, seen_from=seen, interfaces=("127.0.0.1", LAN, "10.0.0.8"))
    assert endpoints == ("tcp://192.168.1.5:7710", "tcp://10.0.0.8:7710")


@given(bound=wildcards, seen=st.none() | loopbacks, interfaces=st.sampled_from([(), ("127.0.0.1", "::1")]))
def test_without_a_network_loopback_is_announced(
    bound: str, seen: str | None, interfaces: tuple[str, ...]
) -> None:
    assert told(bound, seen_from=seen, interfaces=interfaces) == ("tcp://127.0.0.1:7710",)


def test_an_ipv4_wildcard_announces_no_ipv6() -> None:
    assert told("0.0.0.0", seen_from=V6, interfaces=(V6, LAN)) == ("tcp://192.168.1.5:7710",)
    assert told("*", interfaces=(LAN, V6)) == ("tcp://192.168.1.5:7710", "tcp://[2001:db8::5]:7710")


def test_a_link_local_ipv6_address_means_nothing_to_others() -> None:
    assert told(seen_from="fe80::1%eth0", interfaces=(LAN,)) == ("tcp://192.168.1.5:7710",)


@given(
    bound=st.one_of(wildcards, ips),
    advertise=st.lists(ips.filter(lambda ip: not is_wildcard(ip)), max_size=30),
    seen=st.none() | ips,
    interfaces=st.lists(ips, max_size=30),
)
def test_announced_are_1_to_16_different_endpoints_that_parse(
    bound: str, advertise: list[str], seen: str | None, interfaces: list[str]
) -> None:
    hosts = [HostPort(host, 1).tcp for host in advertise]
    endpoints = announced(bound=bound, port=7710, advertise=hosts, seen_from=seen, interfaces=interfaces)
    assert 1 <= len(endpoints) <= 16
    assert len(set(endpoints)) == len(endpoints)
    assert not any(is_wildcard(parse(endpoint).host) for endpoint in endpoints)


# -- what a token carries -------------------------------------------------------------


@given(bound=st.one_of(wildcards, ips), interfaces=st.lists(ips, max_size=5))
def test_a_token_holds_no_wildcard_and_loopback_only_for_want_of_others(
    bound: str, interfaces: list[str]
) -> None:
    hosts = [parse(endpoint).host for endpoint in for_token(bound, 7700, (), interfaces)]
    assert hosts
    assert not any(map(is_wildcard, hosts))
    if any(map(is_loopback, hosts)):
        others = [h for h in interfaces if not (is_loopback(unmapped(h)) or is_wildcard(unmapped(h)))]
        unusable = [h for h in others if ":" in h]  # IPv6: link-local, or not served by 0.0.0.0
        assert is_loopback(bound) or others == unusable


def test_a_token_holds_loopback_when_the_bind_is_loopback() -> None:
    assert for_token("127.0.0.1", 7700, (), [LAN]) == ("tcp://127.0.0.1:7700",)


def test_a_token_leaves_out_loopback_among_what_is_advertised() -> None:
    assert for_token("*", 7700, ["127.0.0.1", LAN], ["10.0.0.8"]) == ("tcp://192.168.1.5:7700",)


def test_a_token_keeps_loopback_if_nothing_else_is_advertised() -> None:
    assert for_token("*", 7700, ["localhost:9000"], [LAN]) == ("tcp://localhost:9000",)


# -- the PC's interfaces --------------------------------------------------------------


@dataclass
class FakeAdapter:
    name: str
    addresses: tuple[str, ...]

    @property
    def ips(self) -> list[ifaddr.IP]:
        shaped: list[str | tuple[str, int, int]] = [(a, 0, 0) if ":" in a else a for a in self.addresses]
        return [ifaddr.IP(ip, 24, self.name) for ip in shaped]


def test_interfaces_give_ipv4_first_virtual_ones_last_and_nothing_local(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    adapters = [
        FakeAdapter("lo", ("127.0.0.1", "::1")),
        FakeAdapter("docker0", ("172.17.0.1", "fd00:17::1")),
        FakeAdapter("eth0", (V6, "fe80::1", LAN)),
        FakeAdapter("wlan0", ("169.254.3.4", "10.0.0.8", LAN)),
    ]
    monkeypatch.setattr(ifaddr, "get_adapters", lambda: adapters)
    assert interface_addresses() == [LAN, "10.0.0.8", "172.17.0.1", V6, "fd00:17::1"]


def test_this_pc_gives_plain_addresses_only() -> None:
    found = [ipaddress.ip_address(address) for address in interface_addresses()]
    assert not any(ip.is_loopback or ip.is_link_local for ip in found)
