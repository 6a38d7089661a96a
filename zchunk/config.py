"""config.yaml, the environment and the command line -> checked, frozen settings.

`load` is the one way in. Of several places that give a key the command line wins, then
`ZCHUNK_<SECTION>__<KEY>`, then the file, then the default. Every value is read as text
and understood the same wherever it stands. A mistake is a ConfigError of one line: where
(file and line, variable or option), which key, what is wrong, what is allowed.

The defaults stand here and, explained, in the repository's config.yaml; a test keeps the
two in step. Units are in the names or, for sizes, bytes (`20GB`, `1GiB` are understood).
This file is long because a key, what it allows, what it must agree with and how it is read belong
together: whoever adds one finds all of it here.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn, get_type_hints

import msgspec
from msgspec import Meta, Struct, ValidationError

from zchunk.clock import MAX_PERIOD_S, MIN_PERIOD_S
from zchunk.content.manifest import MAX_CHUNK_SIZE, MIN_CHUNK_SIZE, chunk_size_problem
from zchunk.errors import ConfigError, InvalidUsage
from zchunk.strategy import MAX_COPIES, Strategy
from zchunk.system import addresses

if TYPE_CHECKING:  # imported where there is a file
    import yaml

PREFIX = "ZCHUNK_"
TRACKER_PORT = 7700
NODE_PORT = 7710
#: A lease must outlast two heartbeats that are lost or late.
LEASE_HEARTBEATS = 2.5
#: some thirty years: what is longer is a slip, and more than timers take
MAX_SECONDS = 1e9
MIN_BLOCK_SIZE = 4096
#: Larger blocks would let a slow link look dead: nothing is heard before a block is whole.
MAX_BLOCK_SIZE = 16 * 1024**2

_UNITS = {
    "": 1, "B": 1,
    "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
    "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40,
}  # fmt: skip
_SIZE = re.compile(r"([0-9][0-9_]*(?:\.[0-9]+)?) ?([A-Za-z]*)")
_SIZE_FORMS = "a number of bytes, or one with a unit: 20GB (10^9), 1GiB (2^30)"


def parse_size(text: str | int) -> int:
    """`20GB`, `1.5 GiB`, `4096` -> bytes. kB, MB, GB, TB are powers of 1000, KiB ... of 1024.

    Raises InvalidUsage for anything else, and for what is no whole number of bytes.
    """
    if isinstance(text, int) and not isinstance(text, bool):
        return text
    match = _SIZE.fullmatch(text.strip()) if isinstance(text, str) else None
    if match is None or match[2].upper() not in _UNITS:
        raise InvalidUsage(f"{_shown(text)} is not a valid size; allowed: {_SIZE_FORMS}")
    from fractions import Fraction  # few commands are given a size

    size = Fraction(match[1].replace("_", "")) * _UNITS[match[2].upper()]
    if size.denominator != 1:
        raise InvalidUsage(f"{_shown(text)} is not a whole number of bytes; allowed: {_SIZE_FORMS}")
    return int(size)


# -- what values may be ---------------------------------------------------------------


def _switch(value: Any) -> Any:
    """YAML's words for it too."""
    words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
    return words.get(value.strip().lower(), value) if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    """Text is a list with commas: an environment variable has no other way."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value


def _size(value: Any) -> int:
    try:
        return parse_size(value)
    except InvalidUsage as error:
        raise ValueError(error.message.rpartition("; ")[0]) from None


def _chunk_size(value: int) -> int:
    if (problem := chunk_size_problem(value)) is not None:
        raise ValueError(problem)
    return value


def _bind_tracker(value: str) -> str:
    return str(_address(value, TRACKER_PORT))


def _bind_node(value: str) -> str:
    return str(_address(value, NODE_PORT))


def _events(value: str) -> str:
    return str(_address(value, None))


def _advertised(values: tuple[str, ...]) -> tuple[str, ...]:
    for value in values:
        address = _address(value, NODE_PORT)
        if addresses.is_wildcard(address.host) or not address.port:
            raise ValueError(f"others cannot connect to {value!r}")
    return values


def _address(text: str, default_port: int | None) -> addresses.HostPort:
    try:
        return addresses.parse(text, default_port)
    except InvalidUsage as error:
        raise ValueError(error.message.rpartition("; ")[0]) from None


def _label(value: str) -> str:
    if not 1 <= len(value) <= 64 or not value.isprintable() or value != value.strip():
        raise ValueError(f"{_shown(value)} is not a valid name")
    return value


def _database(value: str) -> str:
    # The value may hold a password: no message may show it.
    if not value.startswith(("sqlite:///", "postgresql://", "postgres://")):
        raise ValueError("this is not a database URL")
    return value


_SECONDS = f"a number of seconds greater than 0, up to {MAX_SECONDS:.0f}"
_PERIOD = f"a number of seconds from {MIN_PERIOD_S} to {MAX_PERIOD_S:.0f}"
_BYTES = _SIZE_FORMS
_BIND = "host:port, or *:port for all addresses of this PC"
_BLOCK = f"bytes from {MIN_BLOCK_SIZE} to {MAX_BLOCK_SIZE}"
_ADDRESSES = "up to 16 addresses that others can connect to, host or host:port"
_LABEL = "a name of 1 to 64 printable characters"


@dataclass(frozen=True)
class _Rule:
    """What a key has besides msgspec's limits: `before` makes of what was given what msgspec
    takes, `after` of that the value; both raise ValueError with what is wrong. Where `blank`,
    nothing is a value too."""

    before: Callable[[Any], Any] | None = None
    after: Callable[[Any], Any] | None = None
    blank: bool = False


Switch = Annotated[bool, Meta(description="true or false"), _Rule(_switch)]
Copies = Annotated[int, Meta(ge=1, le=MAX_COPIES)]
Seconds = Annotated[float, Meta(gt=0, le=MAX_SECONDS, description=_SECONDS)]
#: Times that others are told (`protocol.messages.Period`).
Period = Annotated[float, Meta(ge=MIN_PERIOD_S, le=MAX_PERIOD_S, description=_PERIOD)]
Bytes = Annotated[int, Meta(ge=0, description=_BYTES), _Rule(_size)]
BlockSize = Annotated[int, Meta(ge=MIN_BLOCK_SIZE, le=MAX_BLOCK_SIZE, description=_BLOCK), _Rule(_size)]
Advertise = Annotated[
    tuple[str, ...],
    Meta(max_length=addresses.MAX_ANNOUNCED, description=_ADDRESSES),
    _Rule(_as_list, _advertised),
]


class _Section(Struct, frozen=True):
    """A section's fields are its keys; the `description` of each says what is allowed, for messages."""


class Chunking(_Section, frozen=True):
    """How files are cut and spread, and how downloads wait."""

    chunk_size: Annotated[
        int,
        Meta(description=f"bytes, a multiple of 4096 from {MIN_CHUNK_SIZE} to {MAX_CHUNK_SIZE}"),
        _Rule(_size, _chunk_size),
    ] = 10 * 1024**2
    min_file_size_for_distribution: Bytes = 1024**3
    min_peers_for_distribution: Annotated[
        Copies, Meta(description=f"a whole number of peers, from 1 to {MAX_COPIES}")
    ] = 2
    distribution_strategy: Annotated[Strategy, Meta(description="round_robin, contiguous or balanced")] = (
        "round_robin"
    )
    replicas: Annotated[Copies, Meta(description=f"a whole number of copies, from 1 to {MAX_COPIES}")] = 1
    auto_resume_downloads: Switch = True
    resume_check_interval: Seconds = 30.0


class Tracker(_Section, frozen=True):
    """For `zchunk tracker`. Nodes get the two times from it."""

    bind: Annotated[str, Meta(description=_BIND), _Rule(after=_bind_tracker)] = "*:7700"
    #: None: the port after that of `bind`.
    events: Annotated[
        str | None,
        Meta(description="host:port, or nothing for the port after that of bind"),
        _Rule(after=_events, blank=True),
    ] = None
    advertise: Advertise = ()
    heartbeat_interval_s: Period = 1.0
    lease_s: Period = 3.0
    #: None: an SQLite file in HOME/tracker.
    database: Annotated[
        str | None,
        Meta(
            description="postgresql://user:password@host/name, sqlite:///path, or nothing for a file in"
            " HOME/tracker"
        ),
        _Rule(after=_database, blank=True),
    ] = None


class Node(_Section, frozen=True):
    """What a PC gives to the cluster."""

    bind: Annotated[str, Meta(description=_BIND), _Rule(after=_bind_node)] = "*:7710"
    advertise: Advertise = ()
    #: None: the host's name.
    name: Annotated[
        str | None,
        Meta(description=f"{_LABEL}, or nothing for the host's name"),
        _Rule(after=_label, blank=True),
    ] = None
    #: None: all the disk has, less the reserve.
    capacity: Annotated[
        Annotated[int, Meta(gt=0)] | None,
        Meta(description=f"{_BYTES}; or nothing for all the disk has, less the reserve"),
        _Rule(_size, blank=True),
    ] = None
    reserve: Bytes = 1024**3
    trash_keep_s: Seconds = 7 * 86400.0


class Client(_Section, frozen=True):
    """For commands and the Python API."""

    own_node: Annotated[
        str | None, Meta(description="a node's name or peer id, or nothing"), _Rule(after=_label, blank=True)
    ] = None
    tracker_timeout_s: Seconds = 3.0


class Security(_Section, frozen=True):
    """Who may take part."""

    transport: Annotated[Literal["plain", "curve"], Meta(description="curve or plain")] = "curve"


class Transfer(_Section, frozen=True):
    """Memory, blocks and threads of a process that moves chunks."""

    receive_budget: Bytes = 64 * 1024**2
    send_budget: Bytes = 32 * 1024**2
    block_size_min: BlockSize = 256 * 1024
    block_size_max: BlockSize = 10 * 1024**2
    request_timeout_s: Seconds = 10.0
    workers: Annotated[int, Meta(ge=1, le=64, description="a whole number of threads from 1 to 64")] = 2


KeyPath = tuple[str, str]


class Settings(Struct, frozen=True):
    """All settings; `Settings()` is the defaults. Only `load` checks values, and how they go together."""

    chunking: Chunking = Chunking()
    tracker: Tracker = Tracker()
    node: Node = Node()
    client: Client = Client()
    security: Security = Security()
    transfer: Transfer = Transfer()
    #: keys that stand somewhere: they say even of a default that it is meant
    given: frozenset[KeyPath] = frozenset()


SECTIONS: dict[str, type[_Section]] = {
    "chunking": Chunking,
    "tracker": Tracker,
    "node": Node,
    "client": Client,
    "security": Security,
    "transfer": Transfer,
}


@cache
def _kind(section: str, key: str) -> Any:
    """The key's type with its rules."""
    return get_type_hints(SECTIONS[section], include_extras=True)[key]


def _parts(section: str, key: str) -> tuple[str, _Rule]:
    """(what is allowed for the key, its rule)"""
    metadata = _kind(section, key).__metadata__
    [allowed] = [part.description for part in metadata if isinstance(part, Meta) and part.description]
    return allowed, next((part for part in metadata if isinstance(part, _Rule)), _Rule())


def allowed(section: str, key: str) -> str:
    """What may stand there, for messages."""
    return _parts(section, key)[0]


def keys_of(section: str) -> tuple[str, ...]:
    return SECTIONS[section].__struct_fields__


# -- relations between values ---------------------------------------------------------


@dataclass(frozen=True)
class _Conflict:
    """Values that do not go together; of `keys` the one given in the strongest place is blamed."""

    keys: tuple[KeyPath, ...]
    problem: str
    allowed: str


@dataclass(frozen=True)
class _Size:
    section: str
    key: str
    value: int

    @property
    def path(self) -> KeyPath:
        return self.section, self.key


def _conflicts(s: Settings) -> Iterable[_Conflict]:
    tracker, transfer = s.tracker, s.transfer
    lease = LEASE_HEARTBEATS * tracker.heartbeat_interval_s
    if tracker.lease_s < lease:
        yield _Conflict(
            (("tracker", "lease_s"), ("tracker", "heartbeat_interval_s")),
            f"lease_s {tracker.lease_s:g} is too short"
            f" for heartbeat_interval_s {tracker.heartbeat_interval_s:g}",
            f"at least {LEASE_HEARTBEATS:g} heartbeats, here {lease:g} seconds",
        )
    yield from _port_conflicts(tracker)
    chunk = _Size("chunking", "chunk_size", s.chunking.chunk_size)
    smallest = _Size("transfer", "block_size_min", transfer.block_size_min)
    largest = _Size("transfer", "block_size_max", transfer.block_size_max)
    receive = _Size("transfer", "receive_budget", transfer.receive_budget)
    send = _Size("transfer", "send_budget", transfer.send_budget)
    pairs = [(smallest, largest), (chunk, receive)]
    # Defaults give way to a small chunk_size, since blocks are cut to the chunk anyway, and to a
    # small send_budget, beyond which one block is sent at a time.
    if smallest.value != Transfer().block_size_min:
        pairs.append((smallest, chunk))
    if largest.value != Transfer().block_size_max:
        pairs.append((largest, send))
    for small, large in pairs:
        if small.value > large.value:
            yield _Conflict(
                (large.path, small.path),
                f"{large.key} {large.value} is less than {small.key} {small.value}",
                f"a {large.key} of at least {small.key}",
            )


def _port_conflicts(tracker: Tracker) -> Iterable[_Conflict]:
    bind = addresses.parse(tracker.bind)
    bind_key, events_key = ("tracker", "bind"), ("tracker", "events")
    if tracker.events is None:
        if bind.port == addresses.MAX_PORT:
            yield _Conflict(
                (bind_key,),
                f"bind {tracker.bind} leaves no port after it for events",
                "a lower port, or a value for events",
            )
        return
    events = addresses.parse(tracker.events)
    hosts = {bind.host, events.host}
    overlap = len(hosts) == 1 or any(map(addresses.is_wildcard, hosts))
    if overlap and bind.port == events.port != 0:
        yield _Conflict(
            (events_key, bind_key),
            f"events {tracker.events} uses the port of bind {tracker.bind}",
            "another port for events",
        )


# -- where values come from -----------------------------------------------------------


@dataclass
class _Layer:
    """What one place gives: values by section and key, and how messages name where they stand."""

    values: dict[str, dict[str, Any]] = field(default_factory=dict)
    where: dict[KeyPath, str] = field(default_factory=dict)

    def put(self, section: str, key: str, value: Any, where: str) -> None:
        _check_known(section, key, where)
        self.values.setdefault(section, {})[key] = value
        self.where[section, key] = where


def load(
    path: Path | None,
    overrides: Mapping[str, Any] | None = None,
    environ: Mapping[str, str] = os.environ,
    remembered: Mapping[str, Any] | None = None,
) -> Settings:
    """The settings of this process; `path` None means no file.

    `remembered` are options of an earlier start, in place of the defaults. `overrides` is
    `{section: {key: value}}` from the command line; a value of None there (or of an empty
    tuple) means the option was not given. Raises ConfigError for the first mistake found.
    """
    file = _Layer() if path is None else _from_file(path)
    layers = [
        _given(remembered or {}, "command line of an earlier start"),
        file,
        _from_environ(environ),
        _given(overrides or {}, "command line"),
    ]
    values: dict[str, dict[str, Any]] = {}
    for layer in layers:
        for section, keys in layer.values.items():
            values.setdefault(section, {}).update(keys)
    sections: dict[str, Any] = {}
    for name, model in SECTIONS.items():
        mine = values.get(name, {})
        sections[name] = model(
            **{key: _value((name, key), mine[key], layers) for key in keys_of(name) if key in mine}
        )
    settings = Settings(**sections, given=frozenset(path for layer in layers for path in layer.where))
    for conflict in _conflicts(settings):
        _refuse_conflict(conflict, layers)
    return settings


def _value(path: KeyPath, given: Any, layers: Sequence[_Layer]) -> Any:
    """The value of a key. Raises ConfigError: where it stands, and what is allowed there."""
    allowed, rule = _parts(*path)
    if rule.blank and isinstance(given, str) and given.strip().lower() in ("", "null", "~"):
        return None
    try:
        taken = rule.before(given) if rule.before else given
        value = msgspec.convert(taken, _kind(*path), strict=False)
        return rule.after(value) if rule.after else value
    except ValidationError:
        problem = f"{_shown(given)} is not allowed"
    except ValueError as error:
        problem = str(error)
    raise ConfigError(f"{_origin(path, layers)}: {'.'.join(path)}: {problem}; allowed: {allowed}")


def _given(sections: Mapping[str, Any], where: str) -> _Layer:
    layer = _Layer()
    for section, keys in sections.items():
        for key, value in keys.items():
            if value is not None and value != ():
                layer.put(section, key, value, where)
    return layer


def _from_environ(environ: Mapping[str, str]) -> _Layer:
    """Variables that name a section and key; `ZCHUNK_HOME` and the like are no settings. One
    underscore in place of two is a mistake that would go unnoticed: it is refused too."""
    known = {
        f"{PREFIX}{section}__{key}".upper(): (section, key)
        for section in SECTIONS
        for key in keys_of(section)
    }
    sections = tuple(f"{PREFIX}{section}_".upper() for section in SECTIONS)
    layer = _Layer()
    for name in sorted(environ):
        if not name.startswith(PREFIX) or not ("__" in name or name.startswith(sections)):
            continue
        if name not in known:
            allowed = f"{PREFIX}<SECTION>__<KEY> in capitals, with a key of config.yaml"
            raise ConfigError(
                f"environment: {_word(name)} is not a setting{_meant(name, known)}; allowed: {allowed}"
            )
        layer.put(*known[name], environ[name], f"environment: {name}")
    return layer


def _from_file(path: Path) -> _Layer:
    import yaml

    layer = _Layer()
    root = _compose(path)
    if root is None:
        return layer
    for section_node, keys_node in _pairs(root, path, "the file", "sections such as 'chunking:'"):
        section = str(section_node.value)
        where = _line(path, section_node)
        _check_section(section, where)
        # All keys of a section may be commented out.
        if isinstance(keys_node, yaml.ScalarNode) and keys_node.value in ("", "null", "~"):
            continue
        for key_node, value_node in _pairs(keys_node, path, f"section {section}", "lines 'key: value'"):
            layer.put(section, str(key_node.value), _plain(value_node), _line(path, key_node))
    return layer


def _compose(path: Path) -> yaml.Node | None:
    """The file's YAML tree, all scalars as text; None for an empty file."""
    import yaml

    try:
        loader = yaml.BaseLoader(path.read_text(encoding="utf-8-sig"))
        return loader.get_single_node()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: is not UTF-8 text; save it as UTF-8") from None
    except yaml.MarkedYAMLError as error:
        _refuse_syntax(path, error)
    except RecursionError:
        raise ConfigError(f"{path}: is nested too deeply") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from None


def _refuse_syntax(path: Path, error: yaml.MarkedYAMLError) -> NoReturn:
    mark = error.problem_mark or error.context_mark
    line = f" line {mark.line + 1}" if mark is not None else ""
    text = " ".join(" ".join(filter(None, (error.context, error.problem))).split())
    hint = "; put a value that begins with * in quotes" if "alias" in text else ""
    raise ConfigError(f"{path}{line}: is not valid YAML: {text}{hint}") from None


def _pairs(
    node: yaml.Node, path: Path, what: str, allowed: str
) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
    """(key, value) of a map whose keys are text, each given once."""
    import yaml

    if not isinstance(node, yaml.MappingNode):
        raise ConfigError(f"{_line(path, node)}: {what} has no keys; allowed: {allowed}")
    lines: dict[str, int] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{_line(path, key)}: a key of {what} is not a plain word; allowed: {allowed}")
        if key.value in lines:
            before = lines[key.value]
            raise ConfigError(
                f"{_line(path, key)}: {_word(key.value)} is already set in line {before}; remove one"
            )
        lines[key.value] = key.start_mark.line + 1
        yield key, value


def _line(path: Path, node: yaml.Node) -> str:
    return f"{path} line {node.start_mark.line + 1}"


def _plain(node: yaml.Node) -> Any:
    """A scalar's text or a list of texts; for a map, which no key takes, an empty one."""
    import yaml

    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) if isinstance(item, yaml.ScalarNode) else {} for item in node.value]
    return node.value if isinstance(node, yaml.ScalarNode) else {}


# -- refusals -------------------------------------------------------------------------


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _word(text: str) -> str:
    """A key as it was written, if it can be shown in a line."""
    return text if text.isprintable() and 0 < len(text) <= 60 else _shown(text)


def _meant(wrong: str, known: Iterable[str]) -> str:
    import difflib  # for who made a mistake

    close = difflib.get_close_matches(wrong, list(known), n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _check_section(section: str, where: str) -> None:
    if section not in SECTIONS:
        wrong = f"{_word(section)} is not a section{_meant(section, SECTIONS)}"
        raise ConfigError(f"{where}: {wrong}; allowed: {', '.join(SECTIONS)}")


def _check_known(section: str, key: str, where: str) -> None:
    _check_section(section, where)
    keys = keys_of(section)
    if key not in keys:
        homes = [name for name in SECTIONS if key in keys_of(name)]
        hint = f" (it belongs to section {homes[0]})" if homes else _meant(key, keys)
        raise ConfigError(f"{where}: {section}.{_word(key)} is not a key{hint}; allowed: {', '.join(keys)}")


def _refuse_conflict(conflict: _Conflict, layers: Sequence[_Layer]) -> NoReturn:
    section, key = max(conflict.keys, key=lambda path: _rank(path, layers))
    where = _origin((section, key), layers)
    raise ConfigError(f"{where}: {section}.{key}: {conflict.problem}; allowed: {conflict.allowed}")


def _rank(path: KeyPath, layers: Sequence[_Layer]) -> int:
    """The strongest layer that gives a key, -1 where its default holds."""
    return max((rank for rank, layer in enumerate(layers) if path in layer.where), default=-1)


def _origin(path: KeyPath, layers: Sequence[_Layer]) -> str:
    rank = _rank(path, layers)
    return "default" if rank < 0 else layers[rank].where[path]
