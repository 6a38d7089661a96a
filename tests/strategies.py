"""What the tests of hostile input share: valid messages of every type, and what makes valid
things invalid. Bytes get bits flipped, parts cut out, put in and doubled; a tree (what JSON or
msgpack makes of them) gets one of its nodes replaced by what nobody expects there.
"""

from __future__ import annotations

import functools
import types
import typing
from typing import Any, TypeVar

from hypothesis import Phase, find, settings
from hypothesis import strategies as st
from msgspec import Meta, Struct

from zchunk.protocol.messages import PAYLOAD

S = TypeVar("S", bound=Struct)

_FIRST = settings(max_examples=1, phases=[Phase.generate], deadline=None, database=None)

# -- any valid message, from the types of its fields ------------------------------------------

plain = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.text(max_size=5),
        st.binary(max_size=5),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple), st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=5,
)

#: what free-form fields hold
facts = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=5),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(tuple), st.dictionaries(st.text(max_size=3), inner, max_size=2)
    ),
    max_leaves=5,
)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type, as `protocol/messages.py` constrains it."""
    if typing.get_origin(hint) is typing.Annotated:
        base, *rules = typing.get_args(hint)
        return _constrained(base, rules)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return st.one_of([values(choice) for choice in typing.get_args(hint)])
    if typing.get_origin(hint) is tuple:
        return st.lists(values(typing.get_args(hint)[0]), max_size=3).map(tuple)
    if isinstance(hint, type) and issubclass(hint, Struct):
        return messages(hint)
    return {
        int: st.integers(0, 2**63 - 1),
        bool: st.booleans(),
        float: st.floats(0.0, 1e18),
        type(None): st.none(),
        dict[str, Any]: st.dictionaries(st.text(max_size=3), facts, max_size=3),
        str: st.text(max_size=8),
    }[hint]


def _constrained(base: Any, rules: list[Any]) -> st.SearchStrategy[Any]:
    if PAYLOAD in rules:
        return st.binary(max_size=70)
    if base is int:
        [rule] = rules
        return st.integers(rule.ge, rule.le)
    if base is float:
        [rule] = rules
        return st.floats(rule.ge, rule.le)
    if base is bytes:
        [rule] = rules
        return st.binary(min_size=rule.min_length, max_size=rule.max_length)
    if base is str:
        [rule] = rules
        return _text(rule)
    return values(base)


def _text(rule: Meta) -> st.SearchStrategy[str]:
    if rule.pattern:
        return st.from_regex(rule.pattern, fullmatch=True, alphabet=st.characters(codec="ascii"))
    return st.text(min_size=rule.min_length or 0, max_size=12)


@functools.cache
def messages(cls: type[Struct]) -> st.SearchStrategy[Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return st.builds(cls, **{name: values(hints[name]) for name in cls.__struct_fields__})


@functools.cache
def simplest(cls: type[S]) -> S:
    """A valid one of which the content does not matter: the first, since to shrink it takes seconds."""
    first: S = find(messages(cls), lambda message: True, settings=_FIRST)
    return first


# -- what nobody expects ------------------------------------------------------------------------

#: JSON and msgpack both hold these; each was an error of some parser somewhere.
ODD: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    2**31,
    2**63,
    2**64 - 1,
    0.5,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "\x00",
    "\x1b[2J\n",
    "../../etc/passwd",
    "\u202e\ufeff",
    "a" * 5000,
    "9" * 5000,
    (),
    ((),),
    (("",) * 3,) * 3,
    {},
    {"": {}},
)
#: And these one of the two alone.
ODD_BYTES: tuple[Any, ...] = (b"", b"\xff" * 31, b"\x00" * 33, b"x" * 5000)
ODD_JSON: tuple[Any, ...] = ("\ud800", 10**5000, -(10**400))


def deep(levels: int, inside: Any = None) -> Any:
    """Lists in lists."""
    value = inside
    for _ in range(levels):
        value = [value]
    return value


@st.composite
def replaced(draw: st.DrawFn, tree: Any, odd: tuple[Any, ...] = ODD) -> Any:
    """`tree` with one of its nodes replaced, taken out, or doubled."""
    if isinstance(tree, dict) and tree and draw(st.integers(0, 9)):
        key = draw(st.sampled_from(sorted(tree, key=str)))
        if draw(st.integers(0, 9)) == 0:
            return {k: v for k, v in tree.items() if k != key}
        return {**tree, key: draw(replaced(tree[key], odd))}
    if isinstance(tree, (list, tuple)) and tree and draw(st.integers(0, 9)):
        at = draw(st.integers(0, len(tree) - 1))
        change = draw(st.integers(0, 9))
        middle = [] if change == 0 else [tree[at]] * 2 if change == 1 else [draw(replaced(tree[at], odd))]
        return [*tree[:at], *middle, *tree[at + 1 :]]
    return draw(st.sampled_from(odd))


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` as a bad disk, a cut line or an enemy would hand it over."""
    spoilt = bytearray(data)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, max(0, len(spoilt) - 1)))
        what = draw(st.sampled_from(("flip", "cut", "drop", "put", "double", "length")))
        if what == "flip" and spoilt:
            spoilt[at] ^= 1 << draw(st.integers(0, 7))
        elif what == "cut":
            del spoilt[at:]
        elif what == "drop":
            del spoilt[at : at + draw(st.integers(1, 8))]
        elif what == "put":
            spoilt[at:at] = draw(st.binary(min_size=1, max_size=8))
        elif what == "double":
            spoilt[at:at] = spoilt[at : at + draw(st.integers(1, 64))]
        else:  # a msgpack length that promises far more than is there
            spoilt[at : at + 5] = (
                bytes([draw(st.sampled_from((0xC6, 0xDB, 0xDD, 0xDF)))]) + b"\x7f\xff\xff\xff"
            )
    return bytes(spoilt)
