"""upkeep/claims.py: which kept manifests are those of files, and when the tracker is asked."""

from __future__ import annotations

from zchunk.node.upkeep.claims import Claims

A, B = "aa" * 32, "bb" * 32
HOUR, DAY = 3600.0, 86400.0
#: the wall clock is far from the monotonic one
WALL = 1.7e9


def registered(now: float = 0.0) -> Claims:
    claims = Claims()
    claims.registered(now)
    claims.asked()
    return claims


def test_nothing_is_asked_before_the_node_has_registered() -> None:
    claims = Claims()
    assert claims.deadline() is None
    claims.registered(5.0)
    assert claims.deadline() == 5.0
    claims.asked()
    assert claims.deadline() is None, "one question at a time"


def test_a_manifest_goes_after_its_lease_and_the_grace() -> None:
    claims, lease = registered(), {A: WALL + DAY}
    assert claims.answered(lease, set(), 0.0, WALL) == ()
    assert claims.deadline() == DAY, "when its lease ends"
    claims.asked()
    assert claims.answered(lease, set(), DAY, WALL + DAY) == (), "a commit may be on its way"
    assert claims.deadline() == DAY + HOUR
    claims.asked()
    assert claims.answered(lease, set(), DAY + HOUR, WALL + DAY + HOUR) == (A,)
    assert claims.deadline() == DAY + HOUR + DAY


def test_the_manifest_of_a_file_never_goes() -> None:
    claims = registered()
    for hours in range(100):
        now = hours * HOUR
        assert claims.answered({A: WALL}, {A}, now, WALL + now) == ()
        assert claims.deadline() == now + DAY


def test_one_that_became_a_file_meanwhile_stays() -> None:
    claims = registered()
    assert claims.answered({A: WALL, B: WALL}, set(), 0.0, WALL) == ()
    assert claims.answered({A: WALL, B: WALL}, {A}, HOUR, WALL + HOUR) == (B,)


def test_asked_anew_it_still_has_the_grace() -> None:
    """A node may register again at any moment."""
    claims = registered()
    assert claims.answered({A: WALL}, set(), 0.0, WALL) == ()
    claims.registered(1.0)
    assert claims.answered({A: WALL}, set(), 1.0, WALL + 1.0) == ()
    assert claims.deadline() == HOUR


def test_one_that_an_upload_brought_again_has_a_lease_again() -> None:
    claims = registered()
    assert claims.answered({A: WALL}, set(), 0.0, WALL) == ()
    assert claims.answered({A: WALL + 2 * DAY}, set(), HOUR, WALL + HOUR) == ()
    assert claims.answered({A: WALL}, set(), 2 * HOUR, WALL + 2 * HOUR) == (), "its grace begins anew"


def test_another_tracker_is_asked_nothing_and_what_was_answered_is_forgotten() -> None:
    claims = registered()
    assert claims.answered({A: WALL}, set(), 0.0, WALL) == ()
    claims.unsure()
    assert claims.deadline() is None
    claims.registered(2 * HOUR)
    assert claims.answered({A: WALL}, set(), 2 * HOUR, WALL + 2 * HOUR) == ()


def test_after_failures_it_is_asked_later_and_later() -> None:
    claims, pauses = registered(), []
    for _ in range(8):
        claims.failed(100.0)
        pauses.append(claims.deadline())
    assert pauses == [100.0 + pause for pause in (60, 120, 240, 480, 960, 1920, 3600, 3600)]
    claims.answered({}, set(), 0.0, WALL)
    claims.failed(0.0)
    assert claims.deadline() == 60.0
