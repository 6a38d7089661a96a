"""Settings: defaults, precedence, and one-line refusals that say where and what is allowed."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import asdict, replace

from zchunk import strategy
from zchunk.config import SECTIONS, Settings, allowed, keys_of, load, parse_size
from zchunk.errors import ConfigError, InvalidUsage

SHIPPED = Path(__file__).parents[2] / "config.yaml"
MIB = 1024**2

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def put(text: str) -> Path:
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return put


def refusal(path: Path | None, overrides: Any = None, environ: Any = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load(path, overrides, environ or {})
    assert len(caught.value.message.splitlines()) == 1
    return caught.value.message


# -- defaults -------------------------------------------------------------------------


def test_nothing_given_is_the_defaults() -> None:
    assert load(None, environ={}) == Settings()


def test_defaults_are_those_of_the_specification() -> None:
    assert asdict(Settings().chunking) == {
        "chunk_size": 10485760,
        "min_file_size_for_distribution": 1073741824,
        "min_peers_for_distribution": 2,
        "distribution_strategy": "round_robin",
        "replicas": 1,
        "auto_resume_downloads": True,
        "resume_check_interval": 30,
    }


def test_shipped_file_loads_to_exactly_the_defaults() -> None:
    assert replace(load(SHIPPED, environ={}), given=frozenset()) == Settings()


def test_shipped_file_contains_every_key_and_no_other() -> None:
    shipped = yaml.safe_load(SHIPPED.read_text(encoding="utf-8"))
    assert {section: set(keys) for section, keys in shipped.items()} == {
        section: set(keys_of(section)) for section in SECTIONS
    }


def test_shipped_file_explains_every_key() -> None:
    lines = SHIPPED.read_text(encoding="utf-8").splitlines()
    bare = [
        line
        for before, line in pairwise(lines)
        if re.match(r"  \w+:", line) and not before.lstrip().startswith("#")
    ]
    assert bare == ["  block_size_max: 10MiB"]  # explained together with block_size_min


def test_sections_are_the_fields_of_the_settings() -> None:
    assert {*SECTIONS, "given"} == set(Settings.__struct_fields__)


def test_every_key_says_what_is_allowed() -> None:
    assert all(allowed(section, key) for section in SECTIONS for key in keys_of(section))


def test_strategies_are_those_placement_knows() -> None:
    kind = get_type_hints(SECTIONS["chunking"])["distribution_strategy"]
    assert get_args(kind) == strategy.STRATEGIES


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(AttributeError, match="immutable"):
        settings.chunking.replicas = 2  # type: ignore[misc]
    with pytest.raises(AttributeError, match="immutable"):
        settings.chunking = settings.chunking  # type: ignore[misc]


# -- precedence -----------------------------------------------------------------------


def test_command_line_beats_environment_beats_file_beats_default(write: Write) -> None:
    path = write("chunking:\n  replicas: 2\n  min_peers_for_distribution: 4\n  chunk_size: 1MiB\n")
    environ = {"ZCHUNK_CHUNKING__REPLICAS": "3", "ZCHUNK_CHUNKING__MIN_PEERS_FOR_DISTRIBUTION": "5"}
    chunking = load(path, {"chunking": {"replicas": 7}}, environ).chunking
    assert (chunking.replicas, chunking.min_peers_for_distribution, chunking.chunk_size) == (7, 5, MIB)
    assert chunking.distribution_strategy == "round_robin"


@pytest.mark.parametrize("absent", [None, ()])
def test_an_option_that_was_not_given_overrides_nothing(write: Write, absent: Any) -> None:
    path = write("node:\n  advertise: [10.0.0.5]\n")
    assert load(path, {"node": {"advertise": absent}}, {}).node.advertise == ("10.0.0.5",)


@pytest.mark.parametrize("name", ["ZCHUNK_HOME", "ZCHUNK_CONFIG", "ZCHUNK_ANYTHING", "PATH", "OTHER__KEY"])
def test_variables_that_name_no_key_are_not_settings(name: str) -> None:
    assert load(None, environ={name: "x"}) == Settings()


def test_one_underscore_in_place_of_two_is_refused() -> None:
    message = refusal(None, environ={"ZCHUNK_CHUNKING_CHUNK_SIZE": "1"})
    assert (
        "ZCHUNK_CHUNKING_CHUNK_SIZE is not a setting (did you mean ZCHUNK_CHUNKING__CHUNK_SIZE?)" in message
    )


def test_what_an_earlier_start_was_given_stands_in_for_the_default_only(write: Write) -> None:
    path = write("node:\n  capacity: 5\n")
    kept = {"node": {"capacity": 7, "bind": "127.0.0.1:9000"}}
    assert load(path, {}, {}, kept).node.capacity == 5
    assert load(None, {}, {}, kept).node.capacity == 7
    assert load(path, {"node": {"bind": "127.0.0.1:1"}}, {}, kept).node.bind == "127.0.0.1:1"
    assert load(path, {}, {}, kept).node.bind == "127.0.0.1:9000"


@pytest.mark.parametrize("word", ["", "~", "null", "NULL"])
def test_yamls_words_for_nothing(word: str) -> None:
    assert load(None, environ={"ZCHUNK_NODE__NAME": word}).node.name is None


def test_text_means_the_same_in_file_and_environment(write: Write) -> None:
    text = {
        ("chunking", "auto_resume_downloads"): "no",
        ("node", "name"): "0x10",
        ("node", "capacity"): "20GB",
        ("tracker", "lease_s"): "2.5",
        ("tracker", "database"): "null",
        ("tracker", "events"): "",
    }
    lines = "".join(f"{s}:\n  {k}: {v}\n" for (s, k), v in text.items() if s not in ("node", "tracker"))
    for section in ("node", "tracker"):
        keys = "".join(f"  {k}: {v}\n" for (s, k), v in text.items() if s == section)
        lines += f"{section}:\n{keys}"
    environ = {f"ZCHUNK_{s}__{k}".upper(): v for (s, k), v in text.items()}
    settings = load(write(lines), environ={})
    assert settings == load(None, environ=environ)
    assert (settings.node.name, settings.node.capacity) == ("0x10", 20 * 10**9)
    assert (settings.chunking.auto_resume_downloads, settings.tracker.lease_s) == (False, 2.5)


def test_a_list_in_the_environment_has_commas() -> None:
    settings = load(None, environ={"ZCHUNK_NODE__ADVERTISE": "10.0.0.5, [::1]:7710"})
    assert settings.node.advertise == ("10.0.0.5", "[::1]:7710")


@pytest.mark.parametrize("text", ["", "# nothing\n", "chunking:\n", "chunking:\n  # replicas: 2\nnode: ~\n"])
def test_empty_files_and_sections_change_nothing(write: Write, text: str) -> None:
    assert load(write(text), environ={}) == Settings()


@pytest.mark.parametrize(
    ("section", "given_bind", "bound"),
    [
        ("tracker", "*", "*:7700"),
        ("tracker", "127.0.0.1:0", "127.0.0.1:0"),
        ("node", "192.168.1.5", "192.168.1.5:7710"),
        ("node", "tcp://[::1]:7000", "[::1]:7000"),
    ],
)
def test_a_bind_without_a_port_has_the_usual_one(section: str, given_bind: str, bound: str) -> None:
    settings = load(None, {section: {"bind": given_bind}}, {})
    assert getattr(settings, section).bind == bound


# -- mistakes -------------------------------------------------------------------------


def test_wrong_key_names_line_allowed_keys_and_the_key_meant(write: Write) -> None:
    path = write("# mine\nchunking:\n  replicas: 1\n  chunk_sise: 65536\n")
    message = refusal(path)
    assert message.startswith(
        f"{path} line 4: chunking.chunk_sise is not a key (did you mean chunk_size?); allowed: "
    )
    assert message.endswith(", ".join(keys_of("chunking")))


def test_key_of_another_section_names_that_section(write: Write) -> None:
    assert "line 2: chunking.lease_s is not a key (it belongs to section tracker)" in refusal(
        write("chunking:\n  lease_s: 5\n")
    )


def test_wrong_section_names_line_allowed_sections_and_the_one_meant(write: Write) -> None:
    message = refusal(write("\ntransfers:\n  workers: 1\n"))
    assert (
        "line 2: transfers is not a section (did you mean transfer?); allowed: chunking, tracker" in message
    )


def test_wrong_variable_is_named_with_the_one_meant() -> None:
    message = refusal(None, environ={"ZCHUNK_CHUNKING__CHUNKSIZE": "1"})
    assert (
        "ZCHUNK_CHUNKING__CHUNKSIZE is not a setting (did you mean ZCHUNK_CHUNKING__CHUNK_SIZE?)" in message
    )


def test_wrong_override_is_refused() -> None:
    assert refusal(None, {"node": {"nam": "A"}}).startswith("command line: node.nam is not a key")
    assert refusal(None, {"nodes": {"name": "A"}}).startswith("command line: nodes is not a section")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("chunking", "chunk_size", "65537"),
        ("chunking", "chunk_size", "32KiB"),
        ("chunking", "chunk_size", "big"),
        ("chunking", "min_file_size_for_distribution", "-1"),
        ("chunking", "min_file_size_for_distribution", "0.5B"),
        ("chunking", "min_peers_for_distribution", "0"),
        ("chunking", "distribution_strategy", "random"),
        ("chunking", "replicas", "0"),
        ("chunking", "replicas", "1.5"),
        ("chunking", "replicas", ""),
        ("chunking", "auto_resume_downloads", "perhaps"),
        ("chunking", "resume_check_interval", "0"),
        ("chunking", "resume_check_interval", "nan"),
        ("tracker", "bind", ""),
        ("tracker", "bind", "7700"),
        ("tracker", "bind", "http://a:1"),
        ("tracker", "events", "10.0.0.1"),
        ("tracker", "advertise", "*:7700"),
        ("tracker", "advertise", "10.0.0.1:0"),
        ("tracker", "heartbeat_interval_s", "soon"),
        ("tracker", "lease_s", "inf"),
        ("tracker", "database", "mysql://root@host/x"),
        ("node", "bind", "a b:1"),
        ("node", "advertise", "host:99999"),
        ("node", "name", "a" * 65),
        ("node", "name", "a\x1bb"),
        ("node", "capacity", "0"),
        ("node", "reserve", "1 gigabyte"),
        ("node", "trash_keep_s", "-1"),
        ("client", "own_node", " A"),
        ("client", "tracker_timeout_s", "0"),
        ("security", "transport", "tls"),
        ("transfer", "receive_budget", "1XB"),
        ("transfer", "send_budget", "-5"),
        ("transfer", "block_size_min", "4095"),
        ("transfer", "block_size_max", "1GiB"),
        ("transfer", "request_timeout_s", "0"),
        ("transfer", "workers", "65"),
    ],
)
def test_wrong_value_names_where_key_and_what_is_allowed(
    write: Write, section: str, key: str, value: str
) -> None:
    variable = f"ZCHUNK_{section}__{key}".upper()
    message = refusal(None, environ={variable: value})
    assert message.startswith(f"environment: {variable}: {section}.{key}: ")
    assert message.endswith(f"; allowed: {allowed(section, key)}")
    quoted = value.replace("\x1b", "\\e")
    path = write(f'# one\n{section}:\n  # three\n  {key}: "{quoted}"\n')
    assert refusal(path) == message.replace(f"environment: {variable}", f"{path} line 4")


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("chunking", "replicas", True),
        ("chunking", "chunk_size", False),
        ("tracker", "lease_s", True),
        ("tracker", "database", ["x"]),
        ("node", "name", 5),
    ],
)
def test_values_of_a_wrong_type_are_refused(section: str, key: str, value: Any) -> None:
    assert refusal(None, {section: {key: value}}).startswith(f"command line: {section}.{key}: ")


@pytest.mark.parametrize("value", ["[1, 2]", "{a: 1}", "[[a]]", "[{a: 1}]"])
@pytest.mark.parametrize(
    ("section", "key"), [(s, k) for s in SECTIONS for k in keys_of(s) if k != "advertise"]
)
def test_no_key_but_advertise_takes_a_list_and_none_a_map(
    write: Write, section: str, key: str, value: str
) -> None:
    assert f"line 2: {section}.{key}: " in refusal(write(f"{section}:\n  {key}: {value}\n"))


@pytest.mark.parametrize("value", ["{a: 1}", "[[10.0.0.1]]", "[{a: 1}]"])
def test_advertise_takes_texts_only(write: Write, value: str) -> None:
    assert "line 2: node.advertise: " in refusal(write(f"node:\n  advertise: {value}\n"))


def test_a_long_value_is_shortened_in_the_message() -> None:
    assert len(refusal(None, environ={"ZCHUNK_CHUNKING__REPLICAS": "9x" * 5000})) < 300


def test_a_database_password_is_never_shown() -> None:
    assert "hunter2" not in refusal(None, environ={"ZCHUNK_TRACKER__DATABASE": "mysql://root:hunter2@host/x"})


@pytest.mark.row("S2")
def test_transport_is_curve_unless_it_is_given_as_plain() -> None:
    assert load(None, environ={}).security.transport == "curve"
    assert load(None, environ={"ZCHUNK_SECURITY__TRANSPORT": "plain"}).security.transport == "plain"
    assert "curve or plain" in refusal(None, environ={"ZCHUNK_SECURITY__TRANSPORT": "tls"})


# -- relations between values ---------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "blamed", "both"),
    [
        ({"tracker.lease_s": "2"}, "tracker.lease_s", ("lease_s 2", "heartbeat_interval_s 1")),
        (
            {"tracker.heartbeat_interval_s": "2"},
            "tracker.heartbeat_interval_s",
            ("lease_s 3", "heartbeat_interval_s 2"),
        ),
        (
            {"transfer.block_size_min": "12MiB"},
            "transfer.block_size_min",
            ("block_size_max 10485760", "block_size_min 12582912"),
        ),
        (
            {"transfer.block_size_min": "128KiB", "chunking.chunk_size": "64KiB"},
            "chunking.chunk_size",
            ("chunk_size 65536", "block_size_min 131072"),
        ),
        (
            {"transfer.receive_budget": "8MiB"},
            "transfer.receive_budget",
            ("receive_budget 8388608", "chunk_size 10485760"),
        ),
        (
            {"transfer.send_budget": "1MiB", "transfer.block_size_max": "2MiB"},
            "transfer.send_budget",
            ("send_budget 1048576", "block_size_max 2097152"),
        ),
        (
            {"tracker.bind": "*:7700", "tracker.events": "10.0.0.1:7700"},
            "tracker.events",
            ("events 10.0.0.1:7700", "bind *:7700"),
        ),
        ({"tracker.bind": "*:65535"}, "tracker.bind", ("bind *:65535", "events")),
    ],
)
def test_values_that_do_not_go_together_are_both_shown(
    values: dict[str, str], blamed: str, both: tuple[str, str]
) -> None:
    environ = {f"ZCHUNK_{key.replace('.', '__')}".upper(): value for key, value in values.items()}
    message = refusal(None, environ=environ)
    assert f": {blamed}: " in message
    assert all(part in message for part in both)
    assert "; allowed: " in message


def test_the_value_given_in_the_strongest_place_is_blamed(write: Write) -> None:
    path = write("tracker:\n  lease_s: 5\n  heartbeat_interval_s: 1\n")
    message = refusal(path, environ={"ZCHUNK_TRACKER__HEARTBEAT_INTERVAL_S": "4"})
    assert message.startswith("environment: ZCHUNK_TRACKER__HEARTBEAT_INTERVAL_S: ")
    message = refusal(path, {"tracker": {"lease_s": 1}}, {})
    assert message.startswith("command line: tracker.lease_s: ")
    path = write("tracker:\n  heartbeat_interval_s: 2\n  lease_s: 4\n")
    assert refusal(path).startswith(f"{path} line 3: tracker.lease_s: ")


@given(heartbeat=st.floats(0.01, 100, allow_nan=False), lease=st.floats(0.01, 300, allow_nan=False))
def test_a_lease_lasts_two_and_a_half_heartbeats(heartbeat: float, lease: float) -> None:
    overrides = {"tracker": {"heartbeat_interval_s": heartbeat, "lease_s": lease}}
    if lease >= 2.5 * heartbeat:
        assert load(None, overrides, {}).tracker.lease_s == lease
    else:
        assert "lease_s" in refusal(None, overrides)


@pytest.mark.row("U3")
@pytest.mark.parametrize("chunk_size", [65536, 1048576, 67108864])
def test_any_allowed_chunk_size_goes_with_the_other_defaults(chunk_size: int) -> None:
    assert load(None, {"chunking": {"chunk_size": chunk_size}}, {}).chunking.chunk_size == chunk_size


def test_a_small_send_budget_goes_with_the_other_defaults() -> None:
    assert load(None, {"transfer": {"send_budget": "1MiB"}}, {}).transfer.send_budget == 2**20


@pytest.mark.parametrize(
    ("bind", "events"),
    [("127.0.0.1:0", "127.0.0.1:0"), ("10.0.0.1:7700", "10.0.0.2:7700"), ("*:65535", "*:7701")],
)
def test_ports_that_do_not_collide_are_allowed(bind: str, events: str) -> None:
    tracker = load(None, {"tracker": {"bind": bind, "events": events}}, {}).tracker
    assert (tracker.bind, tracker.events) == (bind, events)


# -- files that are no configuration --------------------------------------------------


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("chunking: [1\n", 2, "is not valid YAML"),
        ("chunking:\n  replicas: 1\n bad: 2\n", 3, "is not valid YAML"),
        ("tracker:\n  bind: *:7700\n", 2, "a value that begins with * in quotes"),
        ("a: 1\n---\nb: 2\n", 2, "is not valid YAML"),
        ("- a\n- b\n", 1, "the file has no keys"),
        ("just text\n", 1, "the file has no keys"),
        ("chunking: 5\n", 1, "section chunking has no keys"),
        ("chunking:\n  - replicas\n", 2, "section chunking has no keys"),
        ("node:\n  name: A\n  bind: a:1\n  name: B\n", 4, "name is already set in line 2"),
        ("node: {name: A, name: B}\n", 1, "name is already set in line 1"),
        ("node:\n  name: A\nclient:\nnode:\n", 4, "node is already set in line 1"),
        ("node:\n  ? [a]\n  : b\n", 2, "a key of section node is not a plain word"),
        ("5:\n  name: A\n", 1, "5 is not a section"),
        ('"a\\nb": {x: 1}\n', 1, r"'a\nb' is not a section"),
        ('node:\n  "a\\u2028": 1\n', 2, r"node.'a\u2028' is not a key"),
        ('node:\n  "": 1\n', 2, "node.'' is not a key"),
        ("node: &a\n  name: *a\n", 2, "node.name"),
    ],
)
def test_what_is_no_configuration_is_refused_with_its_line(
    write: Write, text: str, line: int, says: str
) -> None:
    path = write(text)
    message = refusal(path)
    assert message.startswith(f"{path} line {line}: ")
    assert says in message


@pytest.mark.parametrize("data", [b"\xff\xfe\x00", b"a: \x00\n"])
def test_a_file_that_is_no_text_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(data)
    assert refusal(path).startswith(f"{path}: is not ")


def test_a_file_nested_without_end_is_refused(write: Write) -> None:
    assert "nested too deeply" in refusal(write("a: " + "[" * 20_000))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml").startswith(f"{tmp_path / 'none.yaml'}: cannot be read: ")
    assert refusal(tmp_path).startswith(f"{tmp_path}: cannot be read: ")


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbfchunking:\r\n  replicas: 2\r\n")
    assert load(path, environ={}).chunking.replicas == 2


@given(text=st.text(max_size=80))
def test_any_text_is_settings_or_a_one_line_refusal(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    message = ""
    try:
        load(path, environ={})
    except ConfigError as error:
        message = error.message
    assert len(message.splitlines()) <= 1


# -- sizes ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "size"),
    [
        (4096, 4096),
        ("0", 0),
        ("10_485_760", 10485760),
        ("20GB", 20 * 10**9),
        ("1GiB", 2**30),
        ("1.5 GiB", 3 * 2**29),
        (" 64mib ", 64 * MIB),
        ("7kB", 7000),
        ("7KB", 7000),
        ("3TB", 3 * 10**12),
        ("2TiB", 2**41),
        ("12B", 12),
        ("0.1GB", 10**8),
    ],
)
def test_sizes(text: str | int, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "GB", "1 G", "1e9", "-1", "0.5", "1.1B", "1,5GB", "١", "1GB2", "0x10", True]
)
def test_what_is_no_size_is_refused_with_what_is_allowed(text: Any) -> None:
    with pytest.raises(InvalidUsage, match=r"20GB \(10\^9\), 1GiB \(2\^30\)"):
        parse_size(text)


@given(st.integers(0, 2**60))
def test_a_size_in_bytes_is_itself(size: int) -> None:
    assert parse_size(str(size)) == parse_size(f"{size}B") == parse_size(size) == size
