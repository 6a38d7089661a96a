"""node/serving/allow_list.py: whose key is whose, by the last that was heard; the copy on disk."""

from __future__ import annotations

import logging
import stat
from pathlib import Path

import pytest
from msgspec.structs import replace

from zchunk.node.serving.allow_list import AllowList, load, save
from zchunk.protocol.messages import MemberRecord


def key(number: int) -> bytes:
    return bytes([number]) * 32


def member(number: int, role: str = "client", revoked: bool = False) -> MemberRecord:
    return MemberRecord(f"{number:032x}", f"M{number}", role, key(number).hex(), revoked)


def test_who_is_listed_has_a_role_and_a_key() -> None:
    listed = AllowList([member(1), member(2, "node")])
    assert (listed.role_of(member(2).peer_id), listed.role_of(member(3).peer_id)) == ("node", None)
    assert listed.owner_of(key(1)) == member(1)
    assert listed.owner_of(key(3)) is None


def test_who_is_cut_off_has_no_role_and_is_let_in_again() -> None:
    listed = AllowList([member(1)])
    assert listed.put(member(1, revoked=True)), "a key that was let in is not any more"
    assert listed.role_of(member(1).peer_id) is None
    assert listed.owner_of(key(1)) == member(1, revoked=True), "known, and not let in"
    assert not listed.put(member(1, revoked=True)), "no news"
    assert not listed.put(member(1))
    assert listed.role_of(member(1).peer_id) == "client"


def test_a_replaced_key_is_nobodys() -> None:
    listed = AllowList([member(1)])
    assert listed.put(replace(member(1), public_key=key(9).hex()))
    assert listed.owner_of(key(1)) is None
    owner = listed.owner_of(key(9))
    assert owner is not None
    assert owner.peer_id == member(1).peer_id
    assert len(listed.members) == 1


def test_a_newcomer_ends_nothing() -> None:
    assert not AllowList().put(member(1))


def test_the_copy_is_kept_for_its_owner_alone(tmp_path: Path) -> None:
    path = tmp_path / "members.json"
    members = (member(1), member(2, "node", revoked=True))
    save(path, members)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert load(path).members == members


@pytest.mark.parametrize(
    "content", ["", "{", "[1]", "7", "null", '[{"peer_id": "x"}]', '{"a": 1}', "\udcff", "[[]]", '["a"]']
)
def test_a_copy_that_is_damaged_is_as_none(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "members.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    with caplog.at_level(logging.WARNING):
        assert load(path).members == ()
    assert str(path) in caplog.text


def test_without_a_copy_nobody_is_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert load(tmp_path / "members.json").members == ()
    assert caplog.text == ""
