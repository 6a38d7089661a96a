"""errors.py (SPEC "Command line", "Machine-readable output"): codes, exit codes, the wire."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from zchunk import errors
from zchunk.errors import BY_CODE, IllegalEvent, InvalidUsage, NotAllowed, ZchunkError, from_wire
from zchunk.protocol.wire import error_reply, raised

CLASSES = sorted(
    {cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, ZchunkError)},
    key=lambda cls: cls.__name__,
)

#: SPEC "Command line", and 10 for what was cancelled; everything else is 1, "unexpected".
EXIT_CODES = {
    "InvalidUsage": 2,
    "ConfigError": 2,
    "TargetExists": 2,
    "AmbiguousName": 2,
    "NameTaken": 2,
    "AlreadyRunning": 2,
    "KeyNeeded": 2,
    "ClientClosed": 2,
    "ForeignProcess": 2,
    "StateLost": 2,
    "TooFewPeers": 3,
    "PeersUnsure": 3,
    "PartialDownload": 4,
    "IntegrityError": 5,
    "ChunkCorrupt": 5,
    "FileChanged": 5,
    "ManifestInvalid": 5,
    "TrackerUnreachable": 6,
    "NotAllowed": 7,
    "TokenRefused": 7,
    "NotJoined": 7,
    "TransportMismatch": 7,
    "WrongServer": 7,
    "WrongKey": 7,
    "UnsupportedVersion": 7,
    "NoSpace": 8,
    "NotFound": 9,
    "Cancelled": 10,
    "Interrupted": 130,
}


@pytest.mark.parametrize("cls", CLASSES)
def test_exit_codes_are_those_of_the_specification(cls: type[ZchunkError]) -> None:
    assert cls.exit_code == EXIT_CODES.get(cls.__name__, 1)


def test_no_class_of_the_specifications_table_is_missing() -> None:
    assert set(EXIT_CODES) <= {cls.__name__ for cls in CLASSES}


def test_codes_are_unique_and_all_are_in_the_table() -> None:
    assert len({cls.code for cls in CLASSES}) == len(CLASSES)
    assert {cls.code: cls for cls in CLASSES} == BY_CODE


@pytest.mark.parametrize("cls", CLASSES)
def test_each_class_names_its_own_code(cls: type[ZchunkError]) -> None:
    """An inherited code would come back over the wire as the parent's class."""
    assert cls.code.replace("_", "").isalpha()
    assert "code" in vars(cls)


@pytest.mark.parametrize("cls", CLASSES)
def test_an_error_comes_over_the_wire_as_what_it_was(cls: type[ZchunkError]) -> None:
    error = cls("what happened", missing_peers=["a"], count=3)
    back = raised(error_reply(error))
    assert type(back) is cls
    assert (back.message, str(back), back.details) == (error.message, "what happened", error.details)
    assert back.retryable is cls.retryable


def test_a_code_of_a_newer_version_is_an_unexpected_error() -> None:
    error = from_wire("from_the_future", "something new", {"x": 1})
    assert type(error) is ZchunkError
    assert (error.exit_code, error.retryable, error.message) == (1, False, "something new")


@pytest.mark.parametrize("cls", CLASSES)
def test_the_json_of_an_error_is_the_contracts(cls: type[ZchunkError]) -> None:
    shown = cls("what happened", missing_peers=["a"]).to_json()
    assert list(shown)[:4] == ["event", "code", "exit_code", "message"]
    assert json.loads(json.dumps(shown)) == {
        "event": "error",
        "code": cls.code,
        "exit_code": cls.exit_code,
        "message": "what happened",
        "missing_peers": ["a"],
    }


@pytest.mark.parametrize("name", ["event", "code", "exit_code", "message"])
def test_what_a_peer_sends_along_cannot_change_what_the_error_is(name: str) -> None:
    """`details` come from the network: `{"event": "done", "exit_code": 0}` must not pass."""
    hostile: dict[str, Any] = {name: 0, "extra": 1}
    honest = from_wire("not_found", "gone", {"extra": 1}).to_json()
    assert from_wire("not_found", "gone", hostile).to_json() == honest


def test_the_details_of_one_error_are_its_own() -> None:
    details = {"a": 1}
    error = from_wire("busy", "later", details)
    error.details["b"] = 2
    assert ZchunkError("x").details == {}


def test_a_bug_is_no_error_that_callers_catch() -> None:
    assert not issubclass(IllegalEvent, ZchunkError)
    assert not issubclass(IllegalEvent, (OSError, ValueError, KeyError))


def test_families_are_caught_by_their_base() -> None:
    assert issubclass(errors.TokenRefused, NotAllowed)
    assert issubclass(errors.ConfigError, InvalidUsage)
    assert issubclass(errors.ManifestInvalid, errors.IntegrityError)
    assert issubclass(errors.ChunkCorrupt, errors.IntegrityError)


@pytest.mark.parametrize(
    ("retryable", "names"),
    [
        (True, {"Busy", "PeerUnreachable", "TrackerUnreachable", "TooFewPeers", "NoSpace", "NotYetStored"}),
        (False, {"NotAllowed", "MalformedMessage", "NotFound", "ManifestInvalid", "StaleIncarnation"}),
    ],
)
def test_whether_trying_again_helps(retryable: bool, names: set[str]) -> None:
    assert {cls.__name__ for cls in CLASSES if cls.retryable is retryable} >= names


def test_every_error_that_the_package_raises_is_one_of_ours() -> None:
    """Only these and bugs leave a module; `raise Exception(...)` would be neither."""
    found = []
    for path in sorted(Path(errors.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
                name = getattr(node.exc.func, "id", "")
                if name in ("Exception", "BaseException"):
                    found.append(f"{path.name}:{node.lineno}")
    assert found == []
