"""A member's messages of every type that are valid by themselves, their fields at random, at their
limits, or about things that exist. Drawn from a seed."""

from __future__ import annotations

import random
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from msgspec import Meta, Struct, ValidationError
from msgspec.structs import replace

from tests.strategies import messages, values
from zchunk.protocol.messages import BY_TYPE, PAYLOAD, Message

#: Of a text or a list that may be as long as it likes.
_LONG = 4096
#: The largest the least often: whoever begins with such a one is cut off.
_PAYLOADS = (*(b"", b"x", bytes(31), bytes(32), b"\xff" * 3200) * 6, bytes(32 * 4096), bytes(1024 * 1024))


@dataclass(frozen=True)
class Known:
    """What exists, by the name of the field that tells of it; each a list of choices."""

    by_field: dict[str, list[Any]] = field(default_factory=dict)


def corpus(number: int, each: int) -> list[Message]:
    """So many of each type, always the same of one seed."""
    found: list[Message] = []

    @seed(number)
    @settings(
        max_examples=each,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.tuples(*map(messages, BY_TYPE.values())))
    def draw(drawn: tuple[Message, ...]) -> None:
        found.extend(drawn)

    draw()
    return found


def varied(rng: random.Random, message: Message, known: Known) -> Message:
    """Each field stays, or is at a limit, or tells of what exists."""
    hints = _hints(type(message))
    changes: dict[str, Any] = {}
    for name in message.__struct_fields__:
        what = rng.random()
        if name in known.by_field and what < 0.5:
            changes[name] = rng.choice(known.by_field[name])
        elif what < 0.75:
            changes[name] = rng.choice(at_limits(hints[name]))
    try:
        return replace(message, **changes)
    except ValidationError:  # what exists is no value of this message's field of that name
        return message


@cache
def _hints(cls: type[Struct]) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {name: hints[name] for name in cls.__struct_fields__}


@cache
def at_limits(hint: Any) -> Sequence[Any]:
    """The least and the most that a field may hold."""
    if typing.get_origin(hint) is typing.Annotated:
        base, *rules = typing.get_args(hint)
        return _PAYLOADS if PAYLOAD in rules else _constrained(base, rules[-1])
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [value for choice in typing.get_args(hint) for value in at_limits(choice)]
    if isinstance(hint, type) and issubclass(hint, Struct):
        hints = _hints(hint)
        return [hint(**{name: at_limits(hints[name])[end] for name in hints}) for end in (0, -1)]
    return {
        int: (0, 2**63 - 1),
        bool: (False, True),
        float: (0.0, 1e18),
        type(None): (None,),
        str: ("", "\x00", "\u202e\x1b[2J", "x" * _LONG),
    }.get(hint, ({},))


def _constrained(base: Any, rule: Meta) -> Sequence[Any]:
    if base in (int, float):
        return (rule.ge, rule.le)
    if base is bytes:
        return (bytes(rule.min_length or 0), b"\xff" * (rule.max_length or _LONG))
    if base is str and rule.pattern:
        return _patterned(rule.pattern)
    if base is str:
        return ("x" * (rule.min_length or 0), "\u202e" * min(rule.max_length or _LONG, _LONG))
    if typing.get_origin(base) is tuple:
        [inner, _] = typing.get_args(base)
        most = rule.max_length or _LONG
        few = min(most, 3)
        short = [(), *((value,) * few for value in at_limits(inner))]
        return [*short * 6, (at_limits(inner)[0],) * most]
    return at_limits(base)


@cache
def _patterned(pattern: str) -> tuple[str, ...]:
    """Two of such texts."""
    found: list[str] = []

    @seed(0)
    @settings(max_examples=2, phases=[Phase.generate], database=None, deadline=None)
    @given(values(typing.Annotated[str, Meta(pattern=pattern)]))
    def draw(text: str) -> None:
        found.append(text)

    draw()
    return tuple(found)
