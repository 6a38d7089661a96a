"""tracker/members/membership.py (SPEC S2, DESIGN "Membership")."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from zchunk.clock import ManualClock
from zchunk.errors import (
    Busy,
    InvalidUsage,
    NameTaken,
    NotAllowed,
    NotFound,
    StorageFailure,
    TokenRefused,
    ZchunkError,
)
from zchunk.system import disk
from zchunk.tracker.members import membership as module
from zchunk.tracker.members.member_list import Member, TokenEntry
from zchunk.tracker.members.membership import Membership
from zchunk.transport.keys import peer_id_of

NOW = 1_700_000_000_000
LATER = NOW + 3_600_000
DAY = 24 * 3_600_000


def key(number: int) -> bytes:
    return bytes([number]) * 32


TOKEN, ONCE, CLIENTS = key(201), key(202), key(203)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "tracker" / "members.json"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(wall=NOW / 1000)


@pytest.fixture
def listed(path: Path, clock: ManualClock) -> Membership:
    """An allow list with three tokens: for nodes, for one node, for clients."""
    made = Membership(path, clock)
    made.add_token(TOKEN, "node", LATER, once=False)
    made.add_token(ONCE, "node", LATER, once=True)
    made.add_token(CLIENTS, "client", LATER, once=False)
    return made


# -- the file ---------------------------------------------------------------------------


def test_without_a_file_nobody_is_a_member(path: Path, clock: ManualClock) -> None:
    fresh = Membership(path, clock)
    assert fresh.refresh().member("0" * 32) is None
    assert fresh.refresh().token(TOKEN) is None
    assert (dict(fresh.listed.members), dict(fresh.listed.tokens)) == ({}, {})
    assert not path.exists()
    assert fresh.is_new


def test_a_list_whose_tokens_were_all_withdrawn_is_not_new(listed: Membership, path: Path) -> None:
    """The tracker makes a first token at a new one alone."""
    listed.withdraw(list(listed.listed.tokens))
    again = Membership(path, ManualClock())
    assert (dict(again.listed.tokens), again.is_new) == ({}, False)


def test_everything_is_there_after_a_restart(listed: Membership, path: Path, clock: ManualClock) -> None:
    joined = listed.join(TOKEN, key(1), "Grüner PC", NOW)
    listed.join(ONCE, key(2), "B", NOW + 1)
    listed.revoke(listed.add_member(key(3), "C", "client").peer_id)
    again = Membership(path, clock)
    assert dict(again.listed.members) == dict(listed.listed.members)
    assert dict(again.listed.tokens) == dict(listed.listed.tokens)
    assert again.refresh().member(joined.peer_id) == Member(
        peer_id_of(key(1)), key(1), "Grüner PC", "node", NOW, revoked=False
    )
    assert again.refresh().token(ONCE) == TokenEntry(ONCE, "node", LATER, True, (peer_id_of(key(2)),))


def test_only_its_owner_may_read_the_file(listed: Membership, path: Path) -> None:
    old = os.umask(0)
    try:
        listed.join(TOKEN, key(1), "A", NOW)
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(Path(f"{path}.lock").stat().st_mode) == 0o600


def test_the_file_is_replaced_in_one_durable_step(
    listed: Membership, path: Path, monkeypatch: pytest.MonkeyPatch, clock: ManualClock
) -> None:
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(disk, "sync_file", fail)
        with pytest.raises(StorageFailure):
            listed.join(TOKEN, key(1), "A", NOW)
    assert path.read_bytes() == before
    assert listed.refresh().member(peer_id_of(key(1))) is None
    assert sorted(os.listdir(path.parent)) == ["members.json", "members.json.lock"]
    assert listed.join(TOKEN, key(1), "A", NOW).name == "A"


def test_what_changes_nothing_writes_nothing(listed: Membership, path: Path) -> None:
    listed.join(TOKEN, key(1), "A", NOW)
    before = path.stat()
    listed.join(TOKEN, key(1), "A", NOW)
    listed.allow(peer_id_of(key(1)))
    assert path.stat() == before


def rewrite(change: Callable[[Any], Any]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        content = json.loads(data)
        changed = change(content)
        return json.dumps(content if changed is None else changed).encode()

    return apply


BROKEN: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda _: b"",
    "cut": lambda data: data[: len(data) // 2],
    "not UTF-8": lambda data: data.replace(b"node", b"\xff\xff\xff\xff", 1),
    "no object": rewrite(lambda _: [1]),
    "newer": rewrite(lambda content: content.update(format=2)),
    "no tokens": rewrite(lambda content: content.pop("tokens") and None),
    "no key": rewrite(lambda content: content["tokens"][0].update(public_key="xy")),
    "odd field": rewrite(lambda content: content["tokens"][0].update(other=1)),
    "no id": rewrite(lambda content: content["members"][0].update(peer_id="0" * 31)),
    "short key": rewrite(lambda content: content["members"][0].update(public_key="00" * 31)),
}


@pytest.mark.parametrize("how", BROKEN)
def test_a_file_that_cannot_be_understood_is_named_and_never_overwritten(
    listed: Membership, path: Path, clock: ManualClock, how: str
) -> None:
    listed.join(TOKEN, key(1), "A", NOW)
    broken = BROKEN[how](path.read_bytes())
    path.write_bytes(broken)
    with pytest.raises(StorageFailure, match=r"members\.json"):
        Membership(path, clock)
    for call in (
        lambda: listed.refresh().member("f" * 32),
        lambda: listed.join(TOKEN, key(2), "B", NOW),
        lambda: listed.add_token(key(9), "node", LATER, once=False),
    ):
        with pytest.raises(StorageFailure, match="restore it from a backup"):
            call()
    assert path.read_bytes() == broken
    assert listed.listed.member(peer_id_of(key(1))) is not None  # what was read before still holds


def test_a_list_that_vanished_is_not_taken_for_an_empty_one(listed: Membership, path: Path) -> None:
    path.unlink()
    with pytest.raises(StorageFailure, match="missing or empty"):
        listed.add_token(key(9), "node", LATER, once=False)
    assert not path.exists()


# -- several processes --------------------------------------------------------------------


def test_a_token_made_by_another_process_is_seen_by_the_next_look(
    listed: Membership, path: Path, clock: ManualClock
) -> None:
    Membership(path, clock).add_token(key(9), "observer", LATER, once=False)
    assert key(9) not in {entry.public_key for entry in listed.listed.tokens.values()}
    assert listed.refresh().token(key(9)) == TokenEntry(key(9), "observer", LATER, False)
    assert listed.join(key(9), key(1), "A", NOW).role == "observer"


def test_a_member_made_by_another_process_is_seen_by_the_next_look(
    listed: Membership, path: Path, clock: ManualClock
) -> None:
    member = Membership(path, clock).join(TOKEN, key(1), "A", NOW)
    assert member.peer_id not in listed.listed.members
    assert listed.refresh().member(member.peer_id) == member


def test_a_look_reads_the_file_only_when_it_changed(
    listed: Membership, path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger that knocks again and again costs a stat, not a parse."""
    other, reads = Membership(path, clock), []
    read = Membership._read
    monkeypatch.setattr(Membership, "_read", lambda self: reads.append(self) or read(self))
    for _ in range(3):
        assert listed.refresh().member("f" * 32) is None
        assert listed.refresh().token(key(99)) is None
    assert reads == []
    other.join(TOKEN, key(1), "A", NOW)
    assert listed.refresh().member("f" * 32) is None
    assert listed.refresh().member("e" * 32) is None
    assert reads.count(listed) == 1


@pytest.mark.row("S2")
def test_a_revocation_by_another_process_is_seen_by_refresh(
    listed: Membership, path: Path, clock: ManualClock
) -> None:
    member = listed.join(TOKEN, key(1), "A", NOW)
    Membership(path, clock).revoke(member.peer_id)
    assert not listed.is_current()
    found = listed.refresh().member(member.peer_id)
    assert found is not None
    assert found.revoked
    assert listed.is_current()


def test_changes_of_two_processes_both_stand(listed: Membership, path: Path, clock: ManualClock) -> None:
    other = Membership(path, clock)
    listed.join(TOKEN, key(1), "A", NOW)
    other.join(TOKEN, key(2), "B", NOW)
    with pytest.raises(NameTaken):
        listed.join(TOKEN, key(3), "B", NOW)
    assert {m.name for m in Membership(path, clock).listed.members.values()} == {"A", "B"}


def test_joins_at_the_same_time_all_stand(listed: Membership, path: Path, clock: ManualClock) -> None:
    barrier = threading.Barrier(8)

    def work(number: int) -> None:
        own = listed if number % 2 else Membership(path, clock)
        barrier.wait()
        own.join(TOKEN, key(number), f"PC{number}", NOW)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    again = Membership(path, clock)
    assert {m.name for m in again.listed.members.values()} == {f"PC{number}" for number in range(8)}
    entry = again.refresh().token(TOKEN)
    assert entry is not None
    assert set(entry.used_by) == set(again.listed.members)


def test_one_of_two_takes_a_token_for_one(listed: Membership, path: Path, clock: ManualClock) -> None:
    barrier = threading.Barrier(2)
    outcomes: list[Any] = []

    def work(number: int) -> None:
        own = Membership(path, clock)
        barrier.wait()
        try:
            outcomes.append(own.join(ONCE, key(number), f"PC{number}", NOW))
        except TokenRefused as error:
            outcomes.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(isinstance(outcome, Member) for outcome in outcomes) == [False, True]


def test_a_file_that_another_process_keeps_locked_is_busy(
    listed: Membership, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOCK_PATIENCE_S", 0)
    with FileLock(f"{path}.lock"), pytest.raises(Busy, match=r"members\.json; try again"):
        listed.join(TOKEN, key(1), "A", NOW)
    assert listed.join(TOKEN, key(1), "A", NOW).name == "A"


# -- joining ------------------------------------------------------------------------------


def test_joining_makes_a_member_with_the_tokens_role(listed: Membership) -> None:
    member = listed.join(TOKEN, key(1), "A", NOW)
    assert member == Member(peer_id_of(key(1)), key(1), "A", "node", NOW, False)
    assert listed.refresh().member(member.peer_id) == member
    assert listed.join(CLIENTS, key(2), "A", NOW).role == "client"


def test_a_token_goes_by_its_key_or_that_keys_id(listed: Membership) -> None:
    assert listed.refresh().token(peer_id_of(TOKEN)) == listed.refresh().token(TOKEN)
    assert listed.join(peer_id_of(TOKEN), key(1), "A", NOW).role == "node"
    entry = listed.refresh().token(TOKEN)
    assert entry is not None
    assert entry.used_by == (peer_id_of(key(1)),)


def test_joining_again_is_the_same_member(listed: Membership) -> None:
    first = listed.join(TOKEN, key(1), "A", NOW)
    assert listed.join(TOKEN, key(1), "A", NOW + 5) == first
    assert listed.join(TOKEN, key(1), "Other name", NOW + 5) == first
    assert listed.join(CLIENTS, key(1), "A", NOW + 5) == first
    assert listed.join(TOKEN, key(1), "A", LATER + 5) == first  # expired: the first answer was lost
    entry = listed.refresh().token(TOKEN)
    assert entry is not None
    assert entry.used_by == (first.peer_id,)


@pytest.mark.row("S2")
def test_a_token_for_one_serves_the_one_again_and_no_other(listed: Membership) -> None:
    first = listed.join(ONCE, key(1), "A", NOW)
    assert listed.join(ONCE, key(1), "A", NOW) == first
    with pytest.raises(
        TokenRefused, match=r"one join, and A has used it; print a new one with `zchunk token`"
    ):
        listed.join(ONCE, key(2), "B", NOW)
    assert listed.refresh().member(peer_id_of(key(2))) is None


def test_a_token_for_several_serves_several(listed: Membership) -> None:
    for number in range(5):
        listed.join(TOKEN, key(number), f"PC{number}", NOW)
    assert len(listed.listed.members) == 5


def test_a_token_that_is_withdrawn_makes_no_more_members_and_those_it_made_stay(listed: Membership) -> None:
    member = listed.join(TOKEN, key(1), "A", NOW)
    assert [entry.public_key for entry in listed.withdraw([peer_id_of(TOKEN)])] == [TOKEN]
    assert listed.withdraw([peer_id_of(TOKEN)]) == []
    with pytest.raises(TokenRefused, match="withdrawn"):
        listed.join(TOKEN, key(2), "B", NOW)
    assert listed.refresh().member(member.peer_id) == member
    assert listed.join(ONCE, key(3), "C", NOW).name == "C"


def test_a_token_is_open_until_it_is_used_up_or_expires(listed: Membership) -> None:
    listed.join(TOKEN, key(1), "A", NOW)
    listed.join(ONCE, key(2), "B", NOW)
    states = [
        entry.state(NOW) for public in (TOKEN, ONCE, CLIENTS) if (entry := listed.refresh().token(public))
    ]
    assert states == ["open", "used", "open"]
    entry = listed.refresh().token(TOKEN)
    assert entry is not None
    assert entry.state(LATER) == "expired"


@pytest.mark.row("S2")
def test_an_unknown_token_is_refused(listed: Membership) -> None:
    with pytest.raises(
        TokenRefused,
        match="not known to the tracker, or was withdrawn; print a new one with `zchunk token`",
    ):
        listed.join(key(99), key(1), "A", NOW)


def test_a_members_own_key_is_no_token(listed: Membership) -> None:
    member = listed.join(TOKEN, key(1), "A", NOW)
    with pytest.raises(TokenRefused, match="not known"):
        listed.join(member.peer_id, key(2), "B", NOW)


@pytest.mark.parametrize("token", [TOKEN, CLIENTS])
def test_a_tokens_own_key_becomes_no_member(listed: Membership, token: bytes) -> None:
    with pytest.raises(InvalidUsage, match="with its own key"):
        listed.join(TOKEN, token, "A", NOW)
    with pytest.raises(InvalidUsage, match="with its own key"):
        listed.add_member(token, "A", "client")
    assert not listed.listed.members


@pytest.mark.row("S2")
@pytest.mark.parametrize(("late_ms", "refused"), [(-1, False), (0, True), (DAY, True)])
def test_a_token_ends_when_it_expires(listed: Membership, late_ms: int, refused: bool) -> None:
    if not refused:
        assert listed.join(TOKEN, key(1), "A", LATER + late_ms).name == "A"
        return
    with pytest.raises(TokenRefused, match=r"expired at 2023-11-14T23:13:20\.000Z; print a new one"):
        listed.join(TOKEN, key(1), "A", LATER + late_ms)


def test_each_refusal_of_a_token_has_a_sentence_of_its_own(listed: Membership) -> None:
    listed.join(ONCE, key(1), "A", NOW)
    said = set()
    for token, now in ((key(99), NOW), (TOKEN, LATER), (ONCE, NOW)):
        with pytest.raises(TokenRefused) as caught:
            listed.join(token, key(2), "B", now)
        assert "`zchunk token`" in str(caught.value)
        said.add(str(caught.value))
    assert len(said) == 3


def test_old_tokens_leave_the_list(listed: Membership, clock: ManualClock) -> None:
    clock.advance(20 * 24 * 3600)
    listed.add_token(key(9), "node", NOW + 90 * DAY, once=False)
    assert listed.refresh().token(TOKEN) is not None
    clock.advance(20 * 24 * 3600)
    listed.add_token(key(8), "node", NOW + 90 * DAY, once=False)
    assert set(listed.listed.tokens) == {peer_id_of(key(9)), peer_id_of(key(8))}


# -- names --------------------------------------------------------------------------------


def test_a_second_node_of_a_name_is_refused_with_a_suggestion(listed: Membership) -> None:
    listed.join(TOKEN, key(1), "A", NOW)
    with pytest.raises(NameTaken, match=r"named A; .* `--name A-2`") as caught:
        listed.join(TOKEN, key(2), "A", NOW)
    assert caught.value.details == {"suggestion": "A-2"}
    assert listed.refresh().member(peer_id_of(key(2))) is None
    listed.join(TOKEN, key(2), "A-2", NOW)
    with pytest.raises(NameTaken) as caught:
        listed.join(TOKEN, key(3), "A", NOW)
    assert caught.value.details == {"suggestion": "A-3"}


def test_a_refused_name_does_not_use_up_a_token(listed: Membership) -> None:
    listed.join(TOKEN, key(1), "A", NOW)
    with pytest.raises(NameTaken):
        listed.join(ONCE, key(2), "A", NOW)
    assert listed.join(ONCE, key(2), "A-2", NOW).name == "A-2"


def test_only_nodes_need_a_name_of_their_own(listed: Membership) -> None:
    listed.join(CLIENTS, key(1), "A", NOW)
    listed.join(CLIENTS, key(2), "A", NOW)
    listed.join(TOKEN, key(3), "A", NOW)
    listed.join(CLIENTS, key(4), "A", NOW)
    assert len(listed.listed.members) == 4


@pytest.mark.parametrize(
    ("taken", "asked", "free"),
    [
        ([], "A", "A"),
        (["A"], "a", "a"),
        (["A"], "A", "A-2"),
        (["A", "A-3"], "A", "A-2"),
        (["A", "A-2", "A-3"], "A", "A-4"),
        (["PC-10"], "PC-10", "PC-10-2"),
        (["x" * 64], "x" * 64, "x" * 62 + "-2"),
        (["x" * 64, "x" * 62 + "-2"], "x" * 64, "x" * 62 + "-3"),
    ],
)
def test_free_names(listed: Membership, taken: list[str], asked: str, free: str) -> None:
    for number, name in enumerate(taken):
        listed.join(TOKEN, key(number), name, NOW)
    assert listed.free_name(asked) == free


@pytest.mark.parametrize("name", ["", " ", "a\nb", "a\0", "\x1b[2J", "x" * 65])
def test_a_name_that_cannot_be_shown_is_refused(listed: Membership, name: str) -> None:
    with pytest.raises(InvalidUsage, match="1 to 64 printable characters") as caught:
        listed.join(TOKEN, key(1), name, NOW)
    assert str(caught.value).isprintable()


# -- without a token, revocation -------------------------------------------------------------


def test_a_member_can_be_added_without_a_token(listed: Membership, clock: ManualClock) -> None:
    clock.advance(1.5)
    member = listed.add_member(key(1), "A", "node")
    assert member == Member(peer_id_of(key(1)), key(1), "A", "node", NOW + 1500, False)
    assert listed.add_member(key(1), "Other", "client") == member
    with pytest.raises(NameTaken):
        listed.add_member(key(2), "A", "node")
    assert listed.add_member(key(2), "A", "client").role == "client"


@pytest.mark.row("S2")
def test_a_revoked_key_cannot_come_back_by_a_token(listed: Membership) -> None:
    member = listed.join(TOKEN, key(1), "A", NOW)
    revoked = listed.revoke(member.peer_id).member
    assert revoked.revoked
    assert listed.refresh().member(member.peer_id) == revoked
    calls: list[Callable[[], object]] = [
        lambda: listed.join(TOKEN, key(1), "A", NOW),
        lambda: listed.join(CLIENTS, key(1), "A", NOW),
        lambda: listed.add_member(key(1), "A", "node"),
    ]
    for call in calls:
        with pytest.raises(NotAllowed, match=f"`zchunk peers allow {member.peer_id}`") as caught:
            call()
        assert not isinstance(caught.value, TokenRefused)
    assert listed.allow(member.peer_id) == member
    assert listed.join(CLIENTS, key(1), "A", NOW) == member


def test_the_token_that_a_revoked_member_joined_with_is_withdrawn_in_the_same_step(
    listed: Membership, path: Path
) -> None:
    """Else it would come back under a new key."""
    member, other = listed.join(TOKEN, key(1), "A", NOW), listed.join(TOKEN, key(2), "B", NOW)
    third = listed.join(ONCE, key(3), "C", NOW)
    before = json.loads(path.read_bytes())
    assert [t.public_key for t in listed.revoke(member.peer_id).tokens] == [TOKEN]
    with pytest.raises(TokenRefused, match="withdrawn"):
        listed.join(TOKEN, key(9), "A", NOW)
    assert set(listed.listed.tokens) == {peer_id_of(ONCE), peer_id_of(CLIENTS)}
    assert [listed.refresh().member(m.peer_id) for m in (other, third)] == [other, third], (
        "who else joined by it"
    )
    listed.allow(member.peer_id)
    assert listed.refresh().token(TOKEN) is None, "it does not come back with its member"
    assert listed.revoke(member.peer_id).tokens == []
    assert json.loads(path.read_bytes()).keys() == before.keys(), "read by the release before, too"


def test_a_token_that_a_member_was_given_to_join_again_is_withdrawn_with_it_too(listed: Membership) -> None:
    member = listed.join(TOKEN, key(1), "A", NOW)
    listed.join(ONCE, key(1), "A", NOW)
    assert listed.join(ONCE, key(1), "A", NOW) == member
    assert {t.public_key for t in listed.revoke(member.peer_id).tokens} == {TOKEN, ONCE}
    with pytest.raises(TokenRefused):
        listed.join(ONCE, key(9), "A", NOW)


def test_a_revoked_nodes_name_is_free_until_it_is_let_in_again(listed: Membership) -> None:
    old = listed.join(TOKEN, key(1), "A", NOW)
    listed.revoke(old.peer_id)
    listed.join(ONCE, key(2), "A", NOW)
    with pytest.raises(NameTaken):
        listed.allow(old.peer_id)
    found = listed.refresh().member(old.peer_id)
    assert found is not None
    assert found.revoked


def test_revoking_a_stranger_is_not_found(listed: Membership) -> None:
    with pytest.raises(NotFound, match="f" * 32):
        listed.revoke("f" * 32)


def test_what_is_handed_out_cannot_be_changed(listed: Membership) -> None:
    with pytest.raises(TypeError):
        listed.listed.members["x"] = None  # type: ignore[index]
    with pytest.raises(TypeError):
        listed.listed.tokens["x"] = None  # type: ignore[index]


def test_a_failing_change_lets_go_of_the_lock(listed: Membership, path: Path) -> None:
    with pytest.raises(ZchunkError):
        listed.join(key(99), key(1), "A", NOW)
    with FileLock(f"{path}.lock", timeout=0):
        pass


def test_a_token_makes_so_many_members_and_the_known_ones_stay(
    listed: Membership, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S4: a snapshot lists every node, so a list without end would stop the tracker."""
    monkeypatch.setattr(module, "MAX_MEMBERS", 3)
    for number in range(1, 4):
        listed.join(TOKEN, key(number), f"n{number}", NOW)
    with pytest.raises(NotAllowed, match="accepts no more"):
        listed.join(TOKEN, key(4), "n4", NOW)
    assert listed.join(TOKEN, key(1), "n1", NOW).name == "n1"


# -- new keys ---------------------------------------------------------------------------


def test_a_new_key_is_the_members_under_its_old_id(
    listed: Membership, path: Path, clock: ManualClock
) -> None:
    member = listed.add_member(key(1), "A", "node")
    rotated = listed.rotate(member.peer_id, key(2))
    assert (rotated.peer_id, rotated.public_key) == (member.peer_id, key(2))
    assert listed.rotate(member.peer_id, key(2)) == rotated, "idempotent"
    for known in (listed, Membership(path, clock)):
        assert known.refresh().owner_of(key(1)) is None
        assert known.refresh().owner_of(key(2)) == rotated


def test_a_replaced_key_makes_no_member_again(listed: Membership) -> None:
    member = listed.add_member(key(1), "A", "node")
    listed.rotate(member.peer_id, key(2))
    with pytest.raises(NotAllowed, match="was replaced"):
        listed.join(TOKEN, key(1), "B", NOW)
    assert listed.join(TOKEN, key(2), "B", NOW).peer_id == member.peer_id


@pytest.mark.parametrize("taken", [key(2), TOKEN, key(1)], ids=["another's", "a token's", "its first"])
def test_a_key_that_is_in_use_is_no_new_key(listed: Membership, taken: bytes) -> None:
    member = listed.add_member(key(1), "A", "node")
    listed.add_member(key(2), "B", "node")
    listed.rotate(member.peer_id, key(3))
    with pytest.raises(InvalidUsage):
        listed.rotate(member.peer_id, taken)
    assert listed.listed.members[member.peer_id].public_key == key(3)


def test_who_is_no_member_has_no_key_to_replace(listed: Membership) -> None:
    member = listed.add_member(key(1), "A", "node")
    listed.revoke(member.peer_id)
    with pytest.raises(NotAllowed):
        listed.rotate(member.peer_id, key(2))
    with pytest.raises(NotFound):
        listed.rotate("0" * 32, key(2))
