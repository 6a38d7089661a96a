"""protocol/wire.py, protocol/messages.py, protocol/columns.py (SPEC S4): frames <-> messages; hostile
input."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_type_hints

import msgpack
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import ValidationError
from msgspec.structs import replace

from tests.strategies import messages, plain, simplest
from zchunk.errors import MalformedMessage, NotFound, UnknownMessage, UnsupportedVersion, ZchunkError
from zchunk.protocol import columns, wire
from zchunk.protocol.messages import (
    BY_TYPE,
    HEADER_FIELDS,
    MAX_REASON,
    PAYLOAD,
    PAYLOAD_FIELDS,
    PROTOCOL_VERSION,
    Block,
    ErrorReply,
    Event,
    GetBlock,
    Heartbeat,
    Locate,
    Message,
    Ok,
    PeerRecord,
    PutBlock,
    Request,
    Snapshot,
)

TYPED = (MalformedMessage, UnknownMessage, UnsupportedVersion)
CLASSES = sorted(BY_TYPE.values(), key=lambda cls: cls.TYPE)
#: per class; there are many
few = settings(max_examples=20)
by_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.TYPE)

# -- helpers ----------------------------------------------------------------------------------

any_message = st.sampled_from(CLASSES).flatmap(messages)
request_ids = st.integers(0, wire.MAX_REQUEST_ID)


def header_of(frames: Any) -> dict[str, Any]:
    return dict(msgpack.unpackb(frames[0], raw=False))


def with_header(frames: Any, **changes: Any) -> list[Any]:
    """The frames with some keys of the header replaced, or taken out where None."""
    header = {**header_of(frames), **changes}
    return [msgpack.packb({k: v for k, v in header.items() if v is not None}), *frames[1:]]


def refused(frames: Any) -> ZchunkError:
    with pytest.raises(TYPED) as caught:
        wire.decode(frames)
    return caught.value


# -- round trip -------------------------------------------------------------------------------


@by_class
def test_every_message_comes_back_as_it_was(cls: type[Message]) -> None:
    seen = 0

    @few
    @given(message=messages(cls), request_id=request_ids)
    def check(message: Message, request_id: int) -> None:
        nonlocal seen
        seen += 1
        envelope = wire.decode(wire.encode(message, request_id))
        assert (envelope.message, envelope.request_id, envelope.claim) == (message, request_id, None)
        assert type(envelope.message) is cls

    check()
    assert seen


@by_class
def test_every_message_has_a_type_and_its_payload_in_frames(cls: type[Message]) -> None:
    @few
    @given(message=messages(cls))
    def check(message: Message) -> None:
        frames = wire.encode(message, 5)
        header = header_of(frames)
        assert set(header) == {"v", "t", "id", "f"}
        assert (header["v"], header["t"], header["id"]) == (PROTOCOL_VERSION, cls.TYPE, 5)
        assert set(header["f"]) == set(HEADER_FIELDS[cls])
        assert frames[1:] == [getattr(message, name) for name in PAYLOAD_FIELDS[cls]]

    check()
    assert BY_TYPE[cls.TYPE] is cls


def test_every_request_names_an_answer_that_can_be_sent() -> None:
    requests = [cls for cls in CLASSES if issubclass(cls, Request)]
    assert len(requests) > 15
    for cls in requests:
        assert BY_TYPE[cls.REPLY.TYPE] is cls.REPLY
        assert not issubclass(cls.REPLY, Request)


def test_types_are_unique_and_all_classes_are_listed() -> None:
    defined = [
        cls
        for cls in vars(__import__("zchunk.protocol.messages", fromlist=["x"])).values()
        if isinstance(cls, type) and issubclass(cls, Message) and "TYPE" in vars(cls)
    ]
    assert len({cls.TYPE for cls in defined}) == len(defined) == len(BY_TYPE)


@by_class
def test_no_field_has_a_default(cls: type[Message]) -> None:
    """A message with a field left out is another version's, not this one's."""
    assert cls.__struct_defaults__ == ()


@by_class
def test_payload_fields_are_those_of_that_type(cls: type[Message]) -> None:
    hints = get_type_hints(cls, include_extras=True)
    payload = [name for name in cls.__struct_fields__ if PAYLOAD in getattr(hints[name], "__metadata__", ())]
    assert list(PAYLOAD_FIELDS[cls]) == payload
    assert [*HEADER_FIELDS[cls], *payload] == list(cls.__struct_fields__)


def test_a_text_that_names_a_path_can_be_sent() -> None:
    reason = wire.sendable("/a/\udce9" + 5_000 * "b", MAX_REASON)
    assert reason == "/a/?" + 996 * "b"
    beat = Heartbeat(
        incarnation=1, free=0, chunks=0, load=0.0, store_online=True, files_unknown=0, refuses=reason
    )
    assert wire.decode(wire.encode(beat, 1)).message == beat


def test_payload_is_not_copied_on_the_way_out() -> None:
    data = bytearray(1000)
    frames = wire.encode(Block(data=memoryview(data)))
    data[0] = 7
    assert frames[1][0] == 7


def test_a_claim_travels_in_the_header() -> None:
    claim = "a" * 32
    assert wire.decode(wire.encode(Ok(), 1, claim)).claim == claim


@pytest.mark.parametrize("claim", ["short", "a" * 33, 7, b"a" * 32, ["a"], {}])
def test_a_claim_that_is_no_peer_id_is_none(claim: Any) -> None:
    assert wire.decode(with_header(wire.encode(Ok(), 1), **{"from": claim})).claim is None


# -- what must be refused, and can be answered --------------------------------------------------


@pytest.mark.parametrize("version", [0, 2, -1, "1", 1.0, True, 2**63, b"x", [1]])
def test_another_version_is_refused_with_the_request_id(version: Any) -> None:
    error = refused(with_header(wire.encode(Ok(), 77), v=version))
    assert isinstance(error, UnsupportedVersion)
    assert error.details["request_id"] == 77


@pytest.mark.parametrize("kind", ["from_the_future", "", 7, b"ok", ["ok"], {"ok": 1}])
def test_an_unknown_type_is_refused_with_the_request_id(kind: Any) -> None:
    error = refused(with_header(wire.encode(Ok(), 78), t=kind))
    assert isinstance(error, UnknownMessage)
    assert error.details["request_id"] == 78


def test_a_newer_versions_unknown_type_is_a_matter_of_the_version() -> None:
    assert isinstance(refused(with_header(wire.encode(Ok(), 1), v=2, t="new")), UnsupportedVersion)


@pytest.mark.parametrize("missing", ["v", "t", "f"])
def test_a_header_that_lacks_a_key_is_refused(missing: str) -> None:
    error = refused(with_header(wire.encode(Ok(), 79), **{missing: None}))
    assert error.details["request_id"] == 79


@pytest.mark.parametrize("request_id", [None, -1, 2**63, 2**64 - 1, "1", 1.0, True, b"1", [1]])
def test_without_a_request_id_there_is_nothing_to_answer(request_id: Any) -> None:
    error = refused(with_header(wire.encode(Ok(), 1), id=request_id))
    assert isinstance(error, MalformedMessage)
    assert "request_id" not in error.details


def test_what_was_decoded_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A list of 1,000 peers took 13 ms."""
    record = PeerRecord("a" * 32, "A", "node", "up", 1, ("tcp://a:1",), 1, 1, 1, 1)
    frames = wire.encode(Snapshot(epoch="e", seq=1, events=(), peers=(record,) * 100, unsure=()), 1)
    made: list[Any] = []
    convert = msgspec.convert
    monkeypatch.setattr(
        msgspec, "convert", lambda *args, **how: (made.append(args[1]), convert(*args, **how))[1]
    )
    assert len(wire.decode(frames).message.peers) == 100  # type: ignore[attr-defined]
    assert made == [Snapshot]
    made.clear()
    Ok()
    assert len(made) == 1


@by_class
def test_unknown_keys_are_ignored(cls: type[Message]) -> None:
    @few
    @given(message=messages(cls))
    def check(message: Message) -> None:
        frames = wire.encode(message, 3)
        newer = {**header_of(frames)["f"], "from_the_future": 1, "another": [2]}
        assert wire.decode(with_header(frames, f=newer, also=1)).message == message

    check()
    assert cls in BY_TYPE.values()


def test_unknown_keys_of_a_nested_record_are_ignored() -> None:
    record = PeerRecord("a" * 32, "A", "node", "up", 1, ("tcp://a:1",), 1, 1, 1, 1)
    message = Snapshot(epoch="e", seq=1, events=(), peers=(record,), unsure=())
    frames = wire.encode(message, 1)
    values_ = header_of(frames)["f"]
    values_["peers"][0]["from_the_future"] = 1
    assert wire.decode(with_header(frames, f=values_)).message == message


@by_class
def test_a_missing_field_is_refused(cls: type[Message]) -> None:
    names = HEADER_FIELDS[cls]

    @few
    @given(message=messages(cls), data=st.data())
    def check(message: Message, data: st.DataObject) -> None:
        frames = wire.encode(message, 4)
        kept = header_of(frames)["f"]
        del kept[data.draw(st.sampled_from(names))]
        error = refused(with_header(frames, f=kept))
        assert isinstance(error, MalformedMessage)
        assert error.details["request_id"] == 4

    if names:
        check()
    assert len(names) + len(PAYLOAD_FIELDS[cls]) == len(cls.__struct_fields__)


@by_class
def test_frames_too_few_or_too_many_are_refused(cls: type[Message]) -> None:
    @few
    @given(message=messages(cls))
    def check(message: Message) -> None:
        frames = wire.encode(message, 4)
        assert isinstance(refused([*frames, b""]), MalformedMessage)
        if len(frames) > 1:
            assert isinstance(refused(frames[:-1]), MalformedMessage)

    check()
    assert len(PAYLOAD_FIELDS[cls]) < wire.MAX_FRAMES


HASH, UPLOAD = bytes(32), "f" * 32
WRONG: list[tuple[Callable[[], Message], dict[str, Any]]] = [
    (lambda: GetBlock(HASH, 0, 1, 0), {"sha256": bytes(31)}),
    (lambda: GetBlock(HASH, 0, 1, 0), {"sha256": "0" * 32}),
    (lambda: GetBlock(HASH, 0, 1, 0), {"offset": -1}),
    (lambda: GetBlock(HASH, 0, 1, 0), {"length": 0}),
    (lambda: GetBlock(HASH, 0, 1, 0), {"length": 1.5}),
    (lambda: GetBlock(HASH, 0, 1, 0), {"length": "1"}),
    (lambda: GetBlock(HASH, 0, 1, 0), {"length": True}),
    (lambda: GetBlock(HASH, 0, 1, 0), {"length": None}),
    (lambda: PutBlock(UPLOAD, HASH, 0, b""), {"upload_id": "F" * 32}),
    (lambda: PutBlock(UPLOAD, HASH, 0, b""), {"upload_id": "f" * 31}),
    (lambda: PutBlock(UPLOAD, HASH, 0, b""), {"upload_id": "f" * 32 + "\n"}),
    (lambda: PutBlock(UPLOAD, HASH, 0, b""), {"upload_id": "../" + "f" * 29}),
    (lambda: Locate("n", False), {"name_or_id": "x" * 5000}),
    (lambda: Locate("n", False), {"name_or_id": 1}),
    (lambda: Locate("n", False), {"unique": 1}),
    (lambda: Heartbeat(1, 1, 1, 0.0, True, 0, ""), {"load": "fast"}),
    (lambda: Snapshot("e", 0, (), (), ()), {"peers": [{"peer_id": "x"}]}),
    (lambda: Snapshot("e", 0, (), (), ()), {"peers": [7]}),
    (lambda: Snapshot("e", 0, (), (), ()), {"peers": {}}),
    (lambda: Event("t", "e", 0, 0, {}), {"fields": [1]}),
    (lambda: Event("t", "e", 0, 0, {}), {"fields": {b"x": 1}}),
    (lambda: Event("t", "e", 0, 0, {}), {"topic": "x" * 65}),
    (lambda: ErrorReply("c", "m", {}), {"details": None}),
    (lambda: ErrorReply("c", "m", {}), {"details": [{}]}),
]


@pytest.mark.parametrize(("make", "wrong"), WRONG)
def test_a_field_of_the_wrong_type_or_beyond_its_limits_is_refused(
    make: Callable[[], Message], wrong: dict[str, Any]
) -> None:
    frames = wire.encode(make(), 9)
    error = refused(with_header(frames, f={**header_of(frames)["f"], **wrong}))
    assert isinstance(error, MalformedMessage)
    assert next(iter(wrong)) in error.message
    assert error.details["request_id"] == 9
    assert len(error.message) < 500


@pytest.mark.parametrize(("make", "wrong"), WRONG)
def test_an_invalid_message_cannot_be_built_here_either(
    make: Callable[[], Message], wrong: dict[str, Any]
) -> None:
    message = make()
    known = {name: getattr(message, name) for name in message.__struct_fields__}
    with pytest.raises(ValidationError):
        type(message)(**{**known, **wrong})


@pytest.mark.parametrize("wrong", [{"name": "\ud800"}, {"endpoints": ("tcp://a:1", "\udfff")}])
def test_what_is_no_text_is_refused_in_a_field_and_in_a_list(wrong: dict[str, Any]) -> None:
    record = simplest(PeerRecord)
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        replace(record, **wrong)


# -- hostile bytes --------------------------------------------------------------------------------


@given(frames=st.lists(st.binary(max_size=60), max_size=10))
def test_random_frames_raise_only_typed_errors(frames: list[bytes]) -> None:
    assert isinstance(refused(frames), TYPED)


@given(header=plain, rest=st.lists(st.binary(max_size=5), max_size=3))
def test_random_values_in_the_header_raise_only_typed_errors(header: Any, rest: list[bytes]) -> None:
    assert isinstance(refused([msgpack.packb(header), *rest]), TYPED)


@given(
    kind=st.sampled_from([cls.TYPE for cls in CLASSES]),
    values_=st.dictionaries(st.text(max_size=6), plain, max_size=4) | plain,
    rest=st.lists(st.binary(max_size=5), max_size=5),
)
def test_random_fields_raise_only_typed_errors(kind: str, values_: Any, rest: list[bytes]) -> None:
    header = {"v": PROTOCOL_VERSION, "t": kind, "id": 1, "f": values_}
    try:
        envelope = wire.decode([msgpack.packb(header), *rest])
    except TYPED as error:
        assert error.details["request_id"] == 1  # noqa: PT017 - either outcome is right
    else:
        assert BY_TYPE[kind] is type(envelope.message)


@given(message=any_message, data=st.data())
def test_any_field_replaced_raises_only_typed_errors(message: Message, data: st.DataObject) -> None:
    frames = wire.encode(message, 1)
    values_ = header_of(frames)["f"]
    if values_:
        values_[data.draw(st.sampled_from(sorted(values_)))] = data.draw(plain)
    try:
        envelope = wire.decode(with_header(frames, f=values_))
    except TYPED as error:
        assert error.details["request_id"] == 1  # noqa: PT017 - either outcome is right
    else:
        assert type(envelope.message) is type(message)


@given(message=any_message, data=st.data())
def test_flipped_bits_and_cuts_raise_only_typed_errors(message: Message, data: st.DataObject) -> None:
    frames = [bytes(frame) for frame in wire.encode(message, 1)]
    damaged = bytearray(frames[0])
    for at in data.draw(st.lists(st.integers(0, 8 * len(damaged) - 1), min_size=1, max_size=4)):
        damaged[at // 8] ^= 1 << at % 8
    cut = data.draw(st.integers(0, len(damaged)))
    for header in (bytes(damaged), frames[0][:cut], frames[0] + bytes(damaged[:cut])):
        try:
            envelope = wire.decode([header, *frames[1:]])
        except TYPED:
            continue
        assert envelope.message.TYPE in BY_TYPE


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"\xc1",
        b"\x81" * 3000,
        b"\x91" * 3000,
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff",
        b"\xdb\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xdc\x4e\x20" * 3000,
        b"\xc7\x01\x05x",
        b"\xd6\xff\x00\x00\x00\x00",  # a timestamp
        b"\x81\xa1v\xc7\x01\x05x",
        b"\x81\x90\x01",
        b"\xa2\xff\xff",
        bytes(msgpack.packb({i: i for i in range(10)})),
        bytes(msgpack.packb({str(i): i for i in range(300)})),
        bytes(msgpack.packb(list(range(30_000)))),
    ],
)
def test_hostile_headers_raise_only_typed_errors(header: bytes) -> None:
    assert isinstance(refused([header]), MalformedMessage)


def test_values_that_msgpack_makes_objects_of_are_refused() -> None:
    for value in (msgpack.ExtType(5, b"x"), msgpack.Timestamp(1, 0)):
        frames = wire.encode(ErrorReply(code="c", message="m", details={}), 1)
        assert isinstance(
            refused(with_header(frames, f={"code": "c", "message": "m", "details": {"x": value}})),
            MalformedMessage,
        )


def test_sizes_are_checked_before_anything_is_read() -> None:
    assert isinstance(refused([bytes(wire.MAX_HEADER_BYTES + 1)]), MalformedMessage)
    assert isinstance(refused([]), MalformedMessage)
    assert isinstance(refused([b""] * (wire.MAX_FRAMES + 1)), MalformedMessage)


def test_a_refusal_is_short_whatever_was_sent() -> None:
    error = refused(with_header(wire.encode(Ok(), 1), t="x" * 100_000))
    assert len(error.message) < 200
    error = refused(with_header(wire.encode(Ok(), 1), v="x" * 100_000))
    assert len(error.message) < 400


# -- errors over the wire ---------------------------------------------------------------------------


def test_an_error_travels_without_our_own_request_id() -> None:
    error = NotFound("no such file", candidates=["a"])
    error.details["request_id"] = 5
    reply = wire.error_reply(error)
    assert reply == ErrorReply(code="not_found", message="no such file", details={"candidates": ["a"]})
    back = wire.raised(reply)
    assert (type(back), back.details) == (NotFound, {"candidates": ["a"]})


def test_a_long_message_is_cut_to_what_can_be_sent() -> None:
    reply = wire.error_reply(NotFound("x" * 100_000))
    decoded = wire.decode(wire.encode(reply, 1)).message
    assert isinstance(decoded, ErrorReply)
    assert 1000 < len(decoded.message) <= 4096


# -- columns -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [2, 4, 8])
def test_columns_come_back(width: int) -> None:
    @given(numbers=st.lists(st.integers(0, 2 ** (8 * width) - 1)))
    def check(numbers: list[int]) -> None:
        packed = columns.pack(width, numbers)
        assert packed == b"".join(number.to_bytes(width, "little") for number in numbers)
        assert list(columns.unpack(width, packed)) == numbers
        assert list(columns.unpack(width, memoryview(packed))) == numbers

    check()
    with pytest.raises(OverflowError):
        columns.pack(width, [2 ** (8 * width)])


@given(data=st.binary(max_size=70))
def test_a_column_of_any_bytes_is_read_or_refused(data: bytes) -> None:
    for width in (2, 4, 8):
        if len(data) % width:
            with pytest.raises(MalformedMessage):
                columns.unpack(width, data)
        else:
            assert len(columns.unpack(width, data)) == len(data) // width


@given(hashes=st.lists(st.binary(min_size=32, max_size=32)), rest=st.integers(1, 31))
def test_digests_laid_end_to_end_come_apart(hashes: list[bytes], rest: int) -> None:
    assert columns.split_hashes(memoryview(b"".join(hashes))) == hashes
    with pytest.raises(MalformedMessage):
        columns.split_hashes(b"".join(hashes) + bytes(rest))


@given(width=st.integers(-1, 5), flat=st.lists(st.integers(0, 9), max_size=20))
def test_rows_are_whole_or_refused(width: int, flat: list[int]) -> None:
    column = columns.unpack(2, columns.pack(2, flat))
    if width < 1 or len(flat) % width:
        with pytest.raises(MalformedMessage):
            columns.rows(column, width)
    else:
        rows = columns.rows(column, width)
        assert [entry for row in rows for entry in row] == flat
        assert {len(row) for row in rows} <= {width}


def test_an_error_can_be_told_whatever_it_holds() -> None:
    """A path whose bytes are no UTF-8, and facts that JSON or msgpack cannot say, end no process."""
    odd = {"big": 2**70, "path": b"x", "nan": float("nan"), "text": "\udcff", "at": object(), "n": 3}
    error = NotFound("no such file: /srv/\udcff", **odd, deep={"a": [1, {"b": "c"}]})
    reply = wire.decode(wire.encode(wire.error_reply(error), 1)).message
    assert isinstance(reply, ErrorReply)
    assert reply.message == "no such file: /srv/?"
    assert reply.details == {"n": 3, "deep": {"a": (1, {"b": "c"})}}


@pytest.mark.parametrize("value", [{"a": float("inf")}, {"a": b"x"}, {"a": [[[[[[[[[1]]]]]]]]]}])
def test_free_form_fields_hold_what_json_can_say(value: dict[str, Any]) -> None:
    frames = wire.encode(ErrorReply(code="busy", message="later", details={}), 1)
    fields_of = {"code": "busy", "message": "later", "details": value}
    assert "details" in refused(with_header(frames, f=fields_of)).message
