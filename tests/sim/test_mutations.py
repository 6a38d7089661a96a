"""Each guard is needed: without it some seed fails (PROOF "Simulation").

A mutation takes one guard out of the product. It runs with a story that reaches the
guard, seed by seed, until one fails, from one that did before; one that survives them all
fails here: then the story or the verification is too weak. The same stories pass with the
guard in place.
"""

from __future__ import annotations

import errno
import os
import shutil
from array import array
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.sim import scenarios
from tests.sim.refusals import SHORT
from tests.sim.refused import Refused
from tests.sim.test_refusals import RefusedHistory
from tests.sim.test_scenarios import History
from zchunk.errors import IllegalEvent, ZchunkError
from zchunk.node.bulk.reachability import Reachability
from zchunk.node.control.session import Session
from zchunk.node.download.actions import ChunkState, VerifyChunk
from zchunk.node.download.fetcher import Fetcher
from zchunk.node.download.job import DownloadJob
from zchunk.node.registration import NodeRegistration
from zchunk.node.store import reconcile, scrub, storing, verification
from zchunk.node.store.removal import Removal
from zchunk.node.upkeep.garbage import GarbageCollector
from zchunk.node.upkeep.self_check import SelfCheck
from zchunk.node.upload import publication
from zchunk.node.upload.actions import Action
from zchunk.node.upload.job import UploadJob
from zchunk.node.upload.spread import Spread
from zchunk.protocol.messages import Event, Release
from zchunk.system import disk
from zchunk.tracker.rules.health import FileHealth
from zchunk.tracker.rules.liveness import Change, Liveness
from zchunk.tracker.store.chunks import Chunks
from zchunk.tracker.store.holders import Holders
from zchunk.tracker.store.listing import Listing

Patch = pytest.MonkeyPatch
Story = Callable[[Path, int], None]

MUTANT_SEEDS = 20
STORY_SEEDS = int(os.environ.get("ZCHUNK_SEEDS", "3"))
#: What a broken invariant shows as: an assertion of the story or the product, an error
#: that a user would see, or a bug that ended a process.
FAILURES = (AssertionError, ZchunkError, IllegalEvent, LookupError, ValueError)


def history(root: Path, seed: int) -> None:
    History(root, seed).run()


def refused_history(root: Path, seed: int) -> None:
    RefusedHistory(root, seed).run()


def short_writes(root: Path, seed: int) -> None:
    """Every other write is short, on every PC: of chunks that come, and of downloads."""
    assert refused_always(root, seed, "pwrite", SHORT) > 5


def failed_syncs(root: Path, seed: int) -> None:
    """Every other sync of a file fails, on every PC, and what was written is gone then."""
    assert refused_always(root, seed, "sync_file", errno.EIO) > 2


def refused_always(root: Path, seed: int, call: str, error: int | str) -> int:
    """An upload and a download meanwhile; how often the call was refused."""
    refused = Refused(root, seed)
    hosts = [refused.writer.host, refused.reader.host, *(node.host for node in refused.cluster.nodes)]
    refused.put()
    refused.cluster.run_for(5.0)
    refused.note_puts()
    with refused.watched():
        for host in hosts:
            refused.refusals.every_other(host.name, call, error)
        for _ in range(3):
            refused.get()
        refused.put()
        refused.cluster.run_for(10.0)
        refused.refusals.end()
        refused.finish()
    refused.verify()
    return refused.refusals.hits.total()


# -- guards, taken out ----------------------------------------------------------------


def any_block_counts(patch: Patch) -> None:
    """A block of an older attempt, asked of another peer, is taken for an answer to the newest."""

    def expects(self: DownloadJob, chunk: int, attempt: int, offset: int, length: int) -> bool:
        return self.view.chunk_state(chunk) is ChunkState.IN_FLIGHT

    patch.setattr(DownloadJob, "expects", expects)


def silence_unnoticed(patch: Patch) -> None:
    """A peer that is up is waited for, however long nothing comes from it."""
    patch.setattr(Reachability, "deadline", lambda self: None)


def way_back_unnoticed(patch: Patch) -> None:
    """That a peer can be reached again is told to nobody."""
    link = Reachability.link

    def forgetful(self: Reachability, linked: bool, now: float) -> bool:
        link(self, linked, now)
        return False

    patch.setattr(Reachability, "link", forgetful)


def downloads_unverified(patch: Patch) -> None:
    """What arrived is written whatever its SHA-256."""

    def verify(self: Fetcher, action: VerifyChunk) -> None:
        self.perform(self.job.verified(action.chunk, True, self.now()))

    patch.setattr(Fetcher, "_verify", verify)


def puts_unverified(patch: Patch) -> None:
    """A node stores what it was sent under the name that was promised."""
    patch.setattr(storing, "check_bytes", lambda sha256, blake3, view: None)


def gaps_ignored(patch: Patch) -> None:
    """An event after a hole is applied as if it were the next one."""

    def in_order(self: Session, event: Event, now: float) -> list[Any]:
        assert self._position is not None
        if event.topic == "tick" or event.seq <= self._position[1]:
            return []
        self._position = (event.epoch, event.seq)
        return self._apply(event)

    patch.setattr(Session, "_in_order", in_order)


def leases_endless(patch: Patch) -> None:
    """Who was up once stays up, silent or not."""

    def advance(self: Liveness, now: float) -> list[Change]:
        return []

    patch.setattr(Liveness, "advance", advance)


def old_starts_welcome(patch: Patch) -> None:
    """A hello of an older start takes the newer one's place."""
    hello = Liveness.hello

    def welcome(self: Liveness, peer_id: str, incarnation: int, *rest: Any) -> Any:
        if peer_id in self._peers:
            known = self._peers[peer_id]
            known.incarnation, known.instance = min(incarnation, known.incarnation), rest[-1]
        return hello(self, peer_id, incarnation, *rest)

    patch.setattr(Liveness, "hello", welcome)


def new_numbers_unheard(patch: Patch) -> None:
    """A node whose home was put back goes on under the number that it knows."""
    patch.setattr(NodeRegistration, "_renumber", lambda self, number: None)


def leased_chunks_trashed(patch: Patch) -> None:
    """What the tracker let go is deleted although an upload has leased it meanwhile."""

    def is_removable(self: Removal, sha256: bytes, now_wall: float) -> bool:
        return self._open.held.has(sha256)

    patch.setattr(Removal, "_is_removable", is_removable)


def kept_chunks_untold(patch: Patch) -> None:
    """A chunk that the tracker let go but a lease kept is not reported again."""
    patch.setattr(NodeRegistration, "_kept", lambda self, hashes: None)


def crossed_releases_obeyed(patch: Patch) -> None:
    """A node deletes what the tracker let go, although it was told of it again since."""

    def release(self: GarbageCollector, garbage: list[bytes]) -> None:
        self._control.request(Release(hashes=b"".join(garbage)), 30.0, self._loop, self._on_released)

    patch.setattr(GarbageCollector, "_release", release)


def named_chunks_released(patch: Patch) -> None:
    """The tracker lets a node delete copies that a file names."""
    patch.setattr(Listing, "named", lambda self, hashes: set())


def offers_count_as_stored(patch: Patch) -> None:
    """An upload takes a node's answer to an offer for a stored copy."""
    offered = UploadJob.offered

    def optimistic(
        self: UploadJob, peer_id: str, index: int, attempt: int, have: bool, now: float
    ) -> list[Action]:
        return offered(self, peer_id, index, attempt, True, now)

    patch.setattr(UploadJob, "offered", optimistic)


def commits_unchecked(patch: Patch) -> None:
    """A file becomes visible when its uploader says so, wherever its chunks are."""
    patch.setattr(Holders, "check", lambda self, demand: None)

    def numbers(self: Chunks, hashes: Sequence[bytes]) -> array[int]:
        old, new = self.numbered(hashes)  # else the tables alone would refuse what nobody ever had
        return array("q", map({**old, **new}.__getitem__, hashes))

    patch.setattr(Chunks, "numbers", numbers)


def returns_unnoticed(patch: Patch) -> None:
    """A download does not go on when a peer that it waits for is back."""

    def peer_up(self: DownloadJob, peer_id: str, incarnation: int, now: float) -> list[Any]:
        return []

    patch.setattr(DownloadJob, "peer_up", peer_up)


def doubts_unasked(patch: Patch) -> None:
    """A node checks itself only when it hears the report at once."""
    patch.setattr(NodeRegistration, "caught_up", lambda self: self.garbage.collect())
    up = NodeRegistration._up

    def silent_up(self: NodeRegistration) -> None:
        with pytest.MonkeyPatch.context() as inner:
            inner.setattr(self.self_check, "check", lambda: None)
            up(self)

    patch.setattr(NodeRegistration, "_up", silent_up)


def corruption_unheard(patch: Patch) -> None:
    """A node does not look at its own chunks, whoever reports them."""
    patch.setattr(SelfCheck, "check", lambda self: None)


def comings_uncounted(patch: Patch) -> None:
    """Files are not counted anew when a peer came or went."""
    patch.setattr(FileHealth, "peers_changed", lambda self, now: None)


def holders_unasked(patch: Patch) -> None:
    """An upload sends every chunk to the planned peer, whoever holds it."""

    def found(self: UploadJob, chunks: Sequence[int], holders: Any, now: float) -> list[Action]:
        return asked(self, chunks, [()] * len(chunks), now)

    asked = UploadJob.found
    patch.setattr(UploadJob, "found", found)


def moves_unbounded(patch: Patch) -> None:
    """A file goes to whoever has its chunks, were it one peer alone."""
    patch.setattr(Spread, "_may_move", lambda self, place, holder: True)


def refusals_final(patch: Patch) -> None:
    """Copies that the tracker does not know of are not offered again."""
    patch.setattr(UploadJob, "doubted", lambda self, chunks, now: [])


def refusals_fail(patch: Patch) -> None:
    """An upload ends when its commit is refused."""
    patch.setattr(publication, "_MENDS", 0)


def refusals_are_damage(patch: Patch) -> None:
    """A chunk that cannot be read now is taken for a damaged one."""
    really = verification.judge

    def judged(*args: Any) -> verification.Judged:
        try:
            return really(*args)
        except OSError:
            return verification.Judged(verification.Verdict.DAMAGED)

    for module in (scrub, reconcile):
        patch.setattr(module, "judge", judged)


def failed_syncs_count(patch: Patch) -> None:
    """A chunk whose file could not be synced is acknowledged."""
    sync = disk.DirectWriter.sync

    def careless(self: disk.DirectWriter) -> None:
        with suppress(ZchunkError):
            sync(self)

    patch.setattr(disk.DirectWriter, "sync", careless)


def short_writes_count(patch: Patch) -> None:
    """What the system wrote of it is taken for all of it."""

    def write_once(fd: int, view: memoryview, offset: int) -> None:
        os.pwrite(fd, view, offset)

    patch.setattr(disk, "_write_all", write_once)


@dataclass(frozen=True)
class Mutation:
    apply: Callable[[Patch], None]
    story: Story
    #: one that was seen to fail; it comes first, since those before it cost time alone
    seed: int = 0

    @property
    def seeds(self) -> list[int]:
        return [self.seed, *(seed for seed in range(MUTANT_SEEDS) if seed != self.seed)]


MUTATIONS = {
    mutation.apply.__name__: mutation
    for mutation in (
        Mutation(any_block_counts, scenarios.lateness, seed=1),
        Mutation(downloads_unverified, scenarios.noise),
        Mutation(puts_unverified, history, seed=5),
        Mutation(gaps_ignored, scenarios.missed_events),
        Mutation(leases_endless, scenarios.lateness),
        Mutation(old_starts_welcome, scenarios.copied_home),
        Mutation(new_numbers_unheard, scenarios.put_back),
        Mutation(leased_chunks_trashed, scenarios.churn, seed=1),
        Mutation(kept_chunks_untold, scenarios.dead_uploads, seed=17),
        Mutation(crossed_releases_obeyed, scenarios.restarts, seed=6),
        Mutation(named_chunks_released, scenarios.shared_content),
        Mutation(offers_count_as_stored, history),
        Mutation(commits_unchecked, scenarios.slow_reports, seed=1),
        Mutation(returns_unnoticed, scenarios.missed_events),
        Mutation(silence_unnoticed, scenarios.partial_partition),
        Mutation(way_back_unnoticed, scenarios.partial_partition),
        Mutation(doubts_unasked, scenarios.rotten, seed=1),
        Mutation(corruption_unheard, scenarios.rotten),
        Mutation(comings_uncounted, scenarios.rotten, seed=2),
        Mutation(holders_unasked, scenarios.changing_peers),
        Mutation(moves_unbounded, scenarios.one_sided),
        Mutation(refusals_final, scenarios.vanished),
        Mutation(refusals_fail, scenarios.gone_before_commit, seed=1),
        Mutation(refusals_are_damage, refused_history, seed=1),
        Mutation(failed_syncs_count, failed_syncs),
        Mutation(short_writes_count, short_writes),
    )
}
STORIES = sorted(
    {scenarios.death, *(m.story for m in MUTATIONS.values())} - {history, refused_history},
    key=lambda story: story.__name__,
)


def _run(root: Path, story: Story, seed: int) -> None:
    folder = root / f"{story.__name__}{seed}"
    folder.mkdir()
    try:
        story(folder, seed)
    finally:
        shutil.rmtree(folder)


def _failing_seed(root: Path, mutation: Mutation) -> tuple[int, BaseException]:
    for seed in mutation.seeds:
        try:
            _run(root, mutation.story, seed)
        except FAILURES as failure:
            return seed, failure
    pytest.fail(f"survives {MUTANT_SEEDS} seeds of {mutation.story.__name__}: what would notice it?")


@pytest.mark.row("D8")
@pytest.mark.parametrize("name", MUTATIONS)
def test_without_the_guard_some_seed_fails_and_with_it_passes(root: Path, name: str) -> None:
    mutation = MUTATIONS[name]
    with pytest.MonkeyPatch.context() as patch:
        mutation.apply(patch)
        seed, failure = _failing_seed(root, mutation)
    print(f"{name}: seed {seed} of {mutation.story.__name__} fails: {failure!r}")
    _run(root, mutation.story, seed)


@pytest.mark.row("U6")
@pytest.mark.parametrize("story", STORIES, ids=lambda story: story.__name__)
def test_the_stories_pass(root: Path, story: Story) -> None:
    for seed in range(STORY_SEEDS):
        _run(root, story, seed)
