"""protocol.md: the messages' fields, types and limits from zchunk/protocol/messages.py, where the
comments in front of the fields (`#:`) say what they mean; who may ask what, from the tracker."""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import replace
from functools import cache
from types import SimpleNamespace

import msgspec.inspect as shapes

from pages.config import effects
from pages.template import Filler, code, table
from zchunk.clock import MAX_WALL_MS, Now
from zchunk.node.bulk.peer_connections import BULK
from zchunk.node.control import plane
from zchunk.protocol import messages, wire
from zchunk.protocol.messages import (
    BY_TYPE,
    MAX_COUNT,
    PAYLOAD_FIELDS,
    FileRecord,
    MemberRecord,
    Message,
    PeerRecord,
    Record,
    Request,
)
from zchunk.tracker import process
from zchunk.tracker.core import TrackerCore
from zchunk.tracker.members.member_list import MemberList
from zchunk.tracker.requests.presence import Timing
from zchunk.tracker.state.store_mark import StoreMark

RECORDS = {record.__name__: record for record in (PeerRecord, MemberRecord, FileRecord)}
_HEX = re.compile(r"\^\[0-9a-f\]\{(\d+)\}")
_WORDS = re.compile(r"\^\(([a-z_|-]+)\)")
#: beyond it a limit is there for NaN and infinity
_ANY_FLOAT = 1e17


# -- types ------------------------------------------------------------------------------


def _range(least: float | None, most: float | None, unlimited: float) -> str:
    if most is None or most >= unlimited:
        return f", {least:g} and up" if least else ""
    return f", {least:g} to {most:,.0f}"


def _text(shape: shapes.StrType) -> str:
    pattern = shape.pattern or ""
    if digits := _HEX.match(pattern):
        return f"str, {digits[1]} hex digits"
    if words := _WORDS.match(pattern):
        *first, last = words[1].split("|")
        return f"str: {', '.join(first)} or {last}"
    if pattern:
        return "str, 1 to 64 letters, digits, - and _"
    if shape.max_length is None:
        return "str"
    return f"str, {shape.min_length} to {shape.max_length}" if shape.min_length else _up_to("str", shape)


def _up_to(kind: str, shape: shapes.StrType | shapes.VarTupleType) -> str:
    return f"{kind}, up to {shape.max_length:,}"


def _items(shape: shapes.Type) -> str:
    if isinstance(shape, shapes.StructType):
        return shape.cls.__name__ if shape.cls.__name__ in RECORDS else "map"
    assert isinstance(shape, shapes.StrType)
    if digits := _HEX.match(shape.pattern or ""):
        return f"str of {digits[1]} hex digits"
    return _text(shape).replace("str, ", "str of ")


def type_text(shape: shapes.Type, name: str) -> str:
    """What a field may hold: `int, 1 and up`, `array of PeerRecord, up to 10,000`."""
    match shape:
        case shapes.BoolType():
            return "bool"
        case shapes.IntType():
            return "int" + _range(shape.ge, shape.le, MAX_WALL_MS if name.endswith("_ms") else MAX_COUNT)
        case shapes.FloatType():
            return "float" + (_range(shape.ge, shape.le, _ANY_FLOAT) or ", 0 and up")
        case shapes.StrType():
            return _text(shape)
        case shapes.BytesType():
            return f"bin {shape.max_length}"
        case shapes.VarTupleType():
            return _up_to(f"array of {_items(shape.item_type)}", shape)
        case shapes.StructType():
            return _items(shape)
        case shapes.DictType():
            return "map"
        case shapes.UnionType():
            [known] = [part for part in shape.types if not isinstance(part, shapes.NoneType)]
            inner = type_text(known, name)
            return f"{inner}, or nil" if "," in inner else f"{inner} or nil"
    raise TypeError(f"{name}: {shape}")


# -- meanings ---------------------------------------------------------------------------


@cache
def _source() -> tuple[list[str], dict[str, ast.ClassDef]]:
    text = inspect.getsource(messages)
    classes = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)}
    return text.splitlines(), classes


def meaning(cls: type[Record], field: str) -> str:
    """The comment in front of it."""
    lines, classes = _source()
    for node in classes[cls.__name__].body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == field:
            said = []
            for line in reversed(lines[: node.lineno - 1]):
                if not line.startswith("    #: "):
                    break
                said.append(line.removeprefix("    #: "))
            return " ".join(reversed(said))
    raise KeyError(f"{cls.__name__}.{field}")


def fields(cls: type[Record]) -> str:
    found = {field.name: field for field in shapes.type_info(cls).fields}  # type: ignore[attr-defined]
    payload = PAYLOAD_FIELDS[cls] if issubclass(cls, Message) else ()
    ordered = [*(name for name in found if name not in payload), *payload]
    rows = []
    for name in ordered:
        kind = "payload" if name in payload else type_text(found[name].type, name)
        if not found[name].required:
            kind += f"; {_absent(found[name].default)} if absent"
        rows.append([code(name), kind, meaning(cls, name)])
    return table(["field", "type", "meaning"], rows)


def _absent(default: object) -> str:
    if default is None:
        return "nil"
    return "empty" if default == "" else str(default).lower()


# -- who may ask --------------------------------------------------------------------------


def handlers() -> dict[str, frozenset[str]]:
    """What the tracker answers -> the roles that may ask."""
    made = TrackerCore(
        members=SimpleNamespace(listed=MemberList()),
        peers=(),
        timing=Timing(1.0, 3.0),
        epoch="",
        mark=StoreMark("", 0),
        events_at=(),
        now=Now(0.0, 0),
    )
    return {request.TYPE: roles for request, (roles, _) in made._handlers.items()}


def roles() -> str:
    asked = handlers()
    nodes = ", ".join(code(kind) for kind, may in asked.items() if may == {"node"})
    everyone = ", ".join(code(kind) for kind, may in asked.items() if "observer" in may)
    rows = [["`node`", "all"], ["`client`", f"all except {nodes}"], ["`observer`", everyone]]
    return table(["role", "requests"], rows)


# -- sockets ------------------------------------------------------------------------------


def sockets() -> str:
    """Limits, in the words of libzmq."""
    node = replace(BULK, max_frame_bytes=wire.MAX_REQUEST_FRAME_BYTES)
    rows = {
        "tracker's ROUTER": process.CONTROL,
        "tracker's PUB": process.EVENTS,
        "node's ROUTER": node,
        "DEALER to the tracker": plane.CONTROL,
        "SUB to the tracker": replace(plane.CONTROL, linger_ms=0),
        "DEALER to a node": BULK,
    }
    return table(
        ["socket", "MAXMSGSIZE", "SNDHWM", "RCVHWM", "LINGER"],
        [
            [name, str(at.max_frame_bytes), str(at.send_mark), str(at.receive_mark), f"{at.linger_ms} ms"]
            for name, at in rows.items()
        ],
    )


# -- holes --------------------------------------------------------------------------------


def _fields(heading: str, name: str) -> str:
    return fields(RECORDS[name] if name else BY_TYPE[heading])


def _answer(heading: str, _: str) -> str:
    cls = BY_TYPE[heading]
    assert issubclass(cls, Request)
    return code(cls.REPLY.TYPE)


FILLERS: dict[str, Filler] = {
    "fields": _fields,
    "answer": _answer,
    "sockets": lambda heading, words: sockets(),
    "roles": lambda heading, words: roles(),
    "effects": lambda heading, words: effects(words),
}
