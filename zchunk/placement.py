"""Which peers get which chunks. Pure.

`place` plans a distributed file, `place_whole` one under the threshold, `place_missing`
the copies that are still to be made. No I/O, no time, no randomness: candidates are
sorted by peer id first, so the same cluster gives the same plan in whatever order it is
listed. Called by the tracker; `consequence.py` says what a plan means.

A plan has two steps. `_shares` says how many copies each peer takes: as even as room
allows, or by weight. The layout then says which: for peers that all have room a formula,
else the copies of each peer are laid one behind the other on a line of `replicas` rounds
over all chunks. No share exceeds the number of chunks, so no chunk meets a peer twice.
This file is long because both steps and every layout keep one promise, which is proven of all of them
together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import cycle, islice
from math import gcd

from zchunk.errors import InvalidUsage, NoSpace, TooFewPeers
from zchunk.strategy import STRATEGIES

#: `Placement.strategy` of a file that lies undivided on one peer (or on `replicas` peers).
WHOLE = "whole"

_LOAD_STEPS = 1000
#: What to do where there are too few peers, or no room.
START_MORE = ": start more nodes, or use --wait"
_MAKE_ROOM = "; remove files, raise a node's capacity, add a node or ask for fewer replicas"
_MAX_LOAD = 1000.0

Row = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """A peer that is up and may take chunks."""

    peer_id: str
    name: str
    #: Bytes it would still take, its reserve already taken off.
    free: int
    #: How busy it is, 0 for idle; a load of 1 halves its share under `balanced`.
    load: float = 0.0


@dataclass(frozen=True)
class Placement:
    """Chunk -> peers. `peers` are those that get a copy, sorted by id (`place_whole`: best first)."""

    strategy: str
    peers: tuple[str, ...]
    #: Per chunk the distinct indexes into `peers` that take a copy, the primary first.
    assignment: tuple[Row, ...]

    def chunks_of(self, index: int) -> list[int]:
        """The chunks of which peer `index` takes a copy, ascending."""
        return [chunk for chunk, row in enumerate(self.assignment) if index in row]

    def primaries_of(self, index: int) -> list[int]:
        """The chunks of which peer `index` is the primary: one run under `contiguous`."""
        return [chunk for chunk, row in enumerate(self.assignment) if row and row[0] == index]

    def holders(self) -> list[tuple[str, ...]]:
        """Per chunk the ids of the peers that take a copy."""
        return [tuple(self.peers[index] for index in row) for row in self.assignment]


# -- plans ----------------------------------------------------------------------------


def place(
    *,
    strategy: str,
    sizes: Sequence[int],
    candidates: Iterable[Candidate],
    replicas: int,
    min_peers: int,
    own_peer: str | None = None,
) -> Placement:
    """A plan for a distributed file of chunks of `sizes` bytes (their stored sizes).

    A file without chunks belongs to `own_peer` if that is a candidate, else to the
    candidate with most room. Raises TooFewPeers for fewer candidates than `min_peers`
    or `replicas` ask for, NoSpace where no plan fits, InvalidUsage for an unknown strategy.
    """
    _check_strategy(strategy)
    peers = _sorted(candidates)
    _check_enough(peers, max(min_peers, replicas))
    if not sizes:
        return Placement(strategy, (_preferred(peers, own_peer)[0].peer_id,), ())
    rows = _rows(strategy, sizes, peers, replicas, min_peers)
    if rows is None:
        raise _no_space(peers, sum(sizes) * replicas, max(replicas, min_peers), "the file")
    return _placement(strategy, peers, rows)


def place_whole(
    *, sizes: Sequence[int], candidates: Iterable[Candidate], replicas: int = 1, own_peer: str | None = None
) -> Placement:
    """A plan for a file under the threshold: all of it on `replicas` peers, one by default.

    The own peer if it has room, then those with most room, then the lowest id. Raises
    TooFewPeers for fewer candidates than `replicas`, NoSpace if too few of them have room.
    """
    peers = _sorted(candidates)
    _check_enough(peers, replicas)
    roomy = [peer for peer in _preferred(peers, own_peer) if peer.free >= sum(sizes)]
    if len(roomy) < replicas:
        what = "the file, which is stored whole on each of its peers"
        raise _no_space(peers, sum(sizes) * replicas, replicas, what)
    chosen = tuple(peer.peer_id for peer in roomy[:replicas])
    return Placement(WHOLE, chosen, (tuple(range(replicas)),) * len(sizes))


def place_missing(
    *,
    strategy: str,
    sizes: Sequence[int],
    held: Sequence[Collection[str]],
    candidates: Iterable[Candidate],
    replicas: int,
    min_peers: int = 1,
) -> Placement:
    """A plan for the copies that chunks lack; rows hold new peers only and may be empty.

    `held` names per chunk the peers that have a copy which counts; no new copy goes to
    one of them. What peers hold already counts towards their share and towards
    `min_peers`, so the whole file comes out even, not the rest alone. Raises TooFewPeers
    where a chunk has too few peers to go to, NoSpace where no plan was found that fits.
    """
    _check_strategy(strategy)
    peers = _sorted(candidates)
    everyone = {peer.peer_id: peer for peer in peers}
    needs = [max(0, replicas - len(set(holders))) for holders in held]
    if not any(needs):
        return Placement(strategy, (), ((),) * len(sizes))
    if not any(held):
        return place(strategy=strategy, sizes=sizes, candidates=peers, replicas=replicas, min_peers=min_peers)
    _check_enough(peers, max(min_peers - len(set().union(*held) - everyone.keys()), 1))
    _check_each_chunk(peers, held, replicas)
    rows = _rows_missing(strategy, sizes, peers, held, needs, min_peers)
    if rows is None:
        raise _no_space(peers, _bytes(sizes, needs), max(needs), "the missing copies")
    return _placement(strategy, peers, rows)


def _bytes(sizes: Sequence[int], needs: Sequence[int]) -> int:
    return sum(size * need for size, need in zip(sizes, needs, strict=True))


def _check_strategy(strategy: str) -> None:
    if strategy not in STRATEGIES:
        raise InvalidUsage(f"unknown strategy {strategy!r}; the strategies are {', '.join(STRATEGIES)}")


def _sorted(candidates: Iterable[Candidate]) -> list[Candidate]:
    return sorted(candidates, key=lambda peer: peer.peer_id)


def _preferred(peers: Sequence[Candidate], own_peer: str | None) -> list[Candidate]:
    return sorted(peers, key=lambda peer: (peer.peer_id != own_peer, -peer.free, peer.peer_id))


def _placement(strategy: str, peers: Sequence[Candidate], rows: Sequence[Row]) -> Placement:
    """The rows with indexes into the peers that are used, not into all candidates."""
    used = sorted(set().union(*rows))
    if len(used) < len(peers):
        new = {old: index for index, old in enumerate(used)}
        rows = [tuple([new[peer] for peer in row]) for row in rows]
    return Placement(strategy, tuple(peers[index].peer_id for index in used), tuple(rows))


# -- refusals -------------------------------------------------------------------------


def _check_enough(peers: Sequence[Candidate], needed: int) -> None:
    if len(peers) >= needed:
        return
    online = sorted(peer.name for peer in peers)
    listed = f" ({', '.join(online)})" if online else ""
    message = f"{_peers(len(online))} online{listed}, but {needed} needed{START_MORE}"
    raise TooFewPeers(message, online=online, needed=needed)


def _check_each_chunk(peers: Sequence[Candidate], held: Sequence[Collection[str]], replicas: int) -> None:
    """Refuse where a chunk's holders and the candidates together are fewer than `replicas`."""
    ids = {peer.peer_id for peer in peers}
    for holders in {frozenset(holders) for holders in held}:
        if len(holders | ids) < replicas:
            _check_enough(peers, replicas - len(holders - ids))


#: (name, why, and what to do about it) of a peer that is up and takes nothing.
Refused = tuple[str, str]


def without_refused(error: TooFewPeers | NoSpace, refused: Sequence[Refused]) -> str:
    """What it means that there is no plan without these peers: to start others, or to remove files,
    is not what is missing first."""
    if isinstance(error, NoSpace):
        return f"{error.message.removesuffix(_MAKE_ROOM)}; {refusals_text(refused)}"
    return f"{takers_text(error)}; {refusals_text(refused)}"


def takers_text(error: TooFewPeers) -> str:
    online, needed = error.details.get("online", ()), error.details.get("needed", 0)
    verb = "is" if needed == 1 else "are"
    return f"{_peers(needed)} {verb} needed; ready for chunks: {', '.join(online) or 'none'}"


def refusals_text(refused: Sequence[Refused]) -> str:
    return "; ".join(f"{name} is up, but refuses chunks: {reason}" for name, reason in refused)


def _no_space(peers: Sequence[Candidate], needed: int, apart: int, what: str) -> NoSpace:
    """`apart` is how many different peers the data must lie on."""
    free = sum(max(0, peer.free) for peer in peers)
    most = sorted(peers, key=lambda peer: (-peer.free, peer.peer_id))[:5]
    listed = ", ".join(f"{peer.name} {_amount(max(0, peer.free))}" for peer in most)
    more = f" and {len(peers) - len(most)} more" if len(peers) > len(most) else ""
    message = (
        f"no space for {what}: {_amount(needed)} needed on at least {_peers(apart)}, {_amount(free)} free"
        f" ({listed}{more})"
    )
    return NoSpace(message + _MAKE_ROOM, needed=needed, free=free)


def _peers(count: int) -> str:
    return "1 peer" if count == 1 else f"{count} peers"


def _amount(size: int) -> str:
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size} bytes"


# -- how many copies each peer takes --------------------------------------------------


def _shares(total: int, weights: Sequence[int], low: Sequence[int], high: Sequence[int]) -> list[int]:
    """`total` copies by weight, each peer's share within its bounds and within one of its ideal.

    The ideal is a common level times the weight, cut to the bounds: peers that break one
    are set to it in turn, the rest divides what is left. The largest fractions are
    rounded up, the first peer's where they are equal. Needs sum(low) <= total <= sum(high).
    """
    shares = [0] * len(weights)
    free = list(range(len(weights)))
    while free:
        whole = sum(weights[peer] for peer in free)
        over = {peer: gap for peer in free if (gap := total * weights[peer] - high[peer] * whole) > 0}
        under = {peer: gap for peer in free if (gap := low[peer] * whole - total * weights[peer]) > 0}
        excess, lack = sum(over.values()), sum(under.values())
        # Only the larger side is certain: what it gives back may mend the other.
        settled = {peer: high[peer] for peer in over} if excess >= lack else {}
        settled |= {peer: low[peer] for peer in under} if lack >= excess else {}
        if not settled:
            break
        for peer, bound in settled.items():
            shares[peer] = bound
            total -= bound
        free = [peer for peer in free if peer not in settled]
    return _rounded(total, weights, free, shares)


def _rounded(total: int, weights: Sequence[int], free: Sequence[int], shares: list[int]) -> list[int]:
    """Fill in the shares of the `free` peers: `total` in proportion to weight, in whole copies."""
    whole = sum(weights[peer] for peer in free)
    fractions = {}
    for peer in free:
        shares[peer], fractions[peer] = divmod(total * weights[peer], whole)
    left = total - sum(shares[peer] for peer in free)
    for peer in sorted(free, key=lambda peer: -fractions[peer])[:left]:
        shares[peer] += 1
    return shares


def _weights(strategy: str, peers: Sequence[Candidate]) -> list[int]:
    """1 for everyone, or for `balanced` the free bytes over (1 + load)."""
    if strategy != "balanced":
        return [1] * len(peers)
    return [max(1, _LOAD_STEPS * peer.free // (_LOAD_STEPS + _load_steps(peer.load))) for peer in peers]


def _load_steps(load: float) -> int:
    # The order of arguments makes 0 of a NaN.
    return int(_LOAD_STEPS * min(_MAX_LOAD, max(0.0, load)))


def _raised(
    low: Sequence[int], high: Sequence[int], weights: Sequence[int], fresh: Iterable[int], wanted: int
) -> list[int]:
    """`low` with one copy for `wanted` of the `fresh` peers, or for as many as have room; the heaviest."""
    able = [peer for peer in fresh if high[peer] > low[peer]]
    chosen = set(sorted(able, key=lambda peer: (-weights[peer], peer))[: max(0, wanted)])
    return [bound + (peer in chosen) for peer, bound in enumerate(low)]


# -- which copies: a file nobody holds a chunk of -------------------------------------


def _rows(
    strategy: str, sizes: Sequence[int], peers: Sequence[Candidate], replicas: int, min_peers: int
) -> list[Row] | None:
    """Per chunk its peers; None if nothing fits. Room is counted in chunks of the largest size."""
    count, unit = len(sizes), max(sizes)
    caps = [_cap(peer.free, unit, count) for peer in peers]
    if strategy != "balanced" and min(caps) >= -(-count * replicas // len(peers)):
        formula = _even_runs if strategy == "contiguous" else _even_turns
        return formula(count, len(peers), replicas)
    wanted = min(min_peers, count * replicas)
    weights = _weights(strategy, peers)
    counts = _counts(count * replicas, weights, caps, range(len(peers)), wanted)
    if counts is not None:
        return _arranged(strategy, counts, replicas)
    rows = _rows_short_last(strategy, sizes, peers, replicas, wanted)
    if rows is None and any(size < unit for size in sizes[:-1]):
        rows = _rows_by_size(sizes, peers, [frozenset()] * count, [replicas] * count, wanted)
    return rows


def _cap(free: int, unit: int, count: int) -> int:
    """How many of `count` chunks a peer has room for; it takes none twice."""
    return min(count, max(0, free) // max(1, unit))


def _counts(
    total: int, weights: Sequence[int], caps: Sequence[int], fresh: Iterable[int], wanted: int
) -> list[int] | None:
    """Each peer's copies, `wanted` of the `fresh` peers having at least one; None if that does not fit."""
    low = _raised([0] * len(caps), caps, weights, fresh, wanted)
    if sum(caps) < total or sum(low) < wanted:
        return None
    return _shares(total, weights, low, caps)


def _even_turns(count: int, peers: int, replicas: int) -> list[Row]:
    """Chunks dealt in turn, replicas to the next peers round; all even to within one copy.

    Whole rounds are even by themselves. In the last, shorter one of `tail` chunks replica
    j goes `j * tail` peers on, so that its copies fill one more round before they begin
    another; where these steps would come back to a peer of the row they move on by one.
    """
    table = [tuple([(turn + j) % peers for j in range(replicas)]) for turn in range(peers)]
    tail = count % peers
    rows = list(islice(cycle(table), count - tail))
    if tail:
        period = peers // gcd(tail, peers)
        steps = [j * tail + j // period for j in range(replicas)]
        rows += [tuple([(turn + step) % peers for step in steps]) for turn in range(tail)]
    return rows


def _even_runs(count: int, peers: int, replicas: int) -> list[Row]:
    """One run of chunks per peer, its replicas on the next peers round; all even to within one copy.

    Longer and shorter runs alternate evenly: so any `replicas` neighbouring runs, which
    is what a peer holds, have the same length to within one chunk.
    """
    rows: list[Row] = []
    for peer in range(peers):
        row = tuple([(peer + j) % peers for j in range(replicas)])
        rows += [row] * ((peer + 1) * count // peers - peer * count // peers)
    return rows


def _arranged(strategy: str, counts: Sequence[int], replicas: int, last: int | None = None) -> list[Row]:
    """Rows that give each peer its count of copies, in the strategy's order.

    Which chunk is which does not matter yet: the rows are made first, then put in order
    by their primary. `last` is the peer whose run ends the file under `contiguous`.
    """
    queues = _queues(counts, replicas)
    if strategy == "contiguous":
        order = sorted(range(len(counts)), key=lambda peer: peer == last)
        return [row for peer in order for row in queues[peer]]
    if strategy == "balanced":
        return _spread(queues)
    longest = max(map(len, queues))
    return [queue[turn] for turn in range(longest) for queue in queues if turn < len(queue)]


def _queues(counts: Sequence[int], replicas: int) -> list[list[Row]]:
    """The copies on one line, cut into `replicas` rounds; per peer the rows it is the primary of."""
    line = [peer for peer, count in enumerate(counts) for _ in range(count)]
    chunks = len(line) // replicas
    rounds = [line[turn * chunks : (turn + 1) * chunks] for turn in range(replicas)]
    queues: list[list[Row]] = [[] for _ in counts]
    for chunk, row in enumerate(zip(*rounds, strict=True)):
        # The primary is taken from each round in turn, so that every peer leads its part.
        first = chunk % replicas
        queues[row[first]].append(row[first:] + row[:first])
    return queues


def _spread(queues: Sequence[Sequence[Row]]) -> list[Row]:
    """Each peer's rows at even distances over the whole file, however many it has."""
    places = [
        ((2 * turn + 1) / len(queue), peer, turn)
        for peer, queue in enumerate(queues)
        for turn in range(len(queue))
    ]
    return [queues[peer][turn] for _, peer, turn in sorted(places)]


def _rows_short_last(
    strategy: str, sizes: Sequence[int], peers: Sequence[Candidate], replicas: int, wanted: int
) -> list[Row] | None:
    """A plan that counts the shorter last chunk at its size; None if that does not help.

    It goes where no full chunk would: best to peers that have no room for one, then to
    those that can take as many full ones beside it.
    """
    count, unit, short = len(sizes) - 1, max(sizes), sizes[-1]
    if not count or short == unit:
        return None
    caps = [_cap(peer.free, unit, count) for peer in peers]
    beside = [_cap(peer.free - short, unit, count) for peer in peers]
    fitting = [index for index, peer in enumerate(peers) if peer.free >= short]
    fitting.sort(key=lambda index: (caps[index] - beside[index], caps[index] > 0))
    chosen = tuple(fitting[:replicas])
    caps = [beside[index] if index in chosen else cap for index, cap in enumerate(caps)]
    fresh = set(range(len(peers))).difference(chosen)
    counts = _counts(count * replicas, _weights(strategy, peers), caps, fresh, max(0, wanted - len(chosen)))
    if counts is None or len(chosen) < replicas:
        return None
    return [*_arranged(strategy, counts, replicas, last=chosen[0]), chosen]


# -- which copies: a file of which peers hold some already ----------------------------


def _rows_missing(
    strategy: str,
    sizes: Sequence[int],
    peers: Sequence[Candidate],
    held: Sequence[Collection[str]],
    needs: Sequence[int],
    min_peers: int,
) -> list[Row] | None:
    """Per chunk its new peers; None if no plan was found that fits."""
    index_of = {peer.peer_id: index for index, peer in enumerate(peers)}
    barred = [frozenset([index_of[holder] for holder in holders if holder in index_of]) for holders in held]
    holding = set().union(*held)
    wanted = max(0, min(min_peers - len(holding), sum(needs)))
    rows = _rows_by_group(strategy, sizes, peers, barred, needs, wanted)
    if rows is None and _bytes(sizes, needs) <= sum(peer.free for peer in peers):
        rows = _rows_by_size(sizes, peers, barred, needs, wanted)
    return rows


def _rows_by_group(
    strategy: str,
    sizes: Sequence[int],
    peers: Sequence[Candidate],
    barred: Sequence[frozenset[int]],
    needs: Sequence[int],
    wanted: int,
) -> list[Row] | None:
    """Chunks with the same holders are planned together, those with the fewest places to go first."""
    unit = max(size for size, need in zip(sizes, needs, strict=True) if need)
    have = Counter(peer for holders in barred for peer in holders)
    taken = [have[index] for index in range(len(peers))]
    room = [_cap(peer.free, unit, len(sizes)) for peer in peers]
    weights = _weights(strategy, [_as_empty(peer, have[i] * unit) for i, peer in enumerate(peers)])
    rows: list[Row] = [()] * len(sizes)
    for (holders, need), chunks in _groups(barred, needs):
        open_to = [0 if i in holders else min(len(chunks), room[i]) for i in range(len(peers))]
        total = need * len(chunks)
        if sum(open_to) < total:
            return None
        high = [taken[i] + open_to[i] for i in range(len(peers))]
        fresh = [i for i in range(len(peers)) if not taken[i]]
        low = _raised(taken, high, weights, fresh, min(wanted, total))
        shares = _shares(total + sum(taken), weights, low, high)
        counts = [share - before for share, before in zip(shares, taken, strict=True)]
        wanted -= sum(counts[i] > 0 for i in fresh)
        taken = shares
        room = [before - count for before, count in zip(room, counts, strict=True)]
        for chunk, row in zip(chunks, _arranged(strategy, counts, need), strict=True):
            rows[chunk] = row
    return rows if wanted <= 0 else None


def _as_empty(peer: Candidate, held: int) -> Candidate:
    """The peer as it was before it held anything of this file."""
    return replace(peer, free=peer.free + held)


def _groups(
    barred: Sequence[frozenset[int]], needs: Sequence[int]
) -> list[tuple[tuple[frozenset[int], int], list[int]]]:
    """((peers barred, copies needed), chunks), the most barred first, then by first chunk."""
    groups: dict[tuple[frozenset[int], int], list[int]] = {}
    for chunk, (holders, need) in enumerate(zip(barred, needs, strict=True)):
        if need:
            groups.setdefault((holders, need), []).append(chunk)
    return sorted(groups.items(), key=lambda item: (-len(item[0][0]) - item[0][1], item[1][0]))


# -- which copies: room too short for anything but what fits --------------------------


def _rows_by_size(
    sizes: Sequence[int],
    peers: Sequence[Candidate],
    barred: Sequence[frozenset[int]],
    needs: Sequence[int],
    wanted: int,
) -> list[Row] | None:
    """Largest chunks first, each where it fits; for chunks of many sizes and little room.

    Any plan that fits is better than a refusal, so the strategy's order is given up here.
    Tries the peers with fewest copies first, then those with most room.
    """
    for by_room in (False, True):
        rows = _fitted(sizes, [peer.free for peer in peers], barred, needs, by_room)
        used = set().union(*rows) if rows is not None else set()
        if rows is not None and len(used.difference(*barred)) >= wanted:
            return rows
    return None


def _fitted(
    sizes: Sequence[int],
    room: list[int],
    barred: Sequence[frozenset[int]],
    needs: Sequence[int],
    by_room: bool,
) -> list[Row] | None:
    rows: list[Row] = [()] * len(sizes)
    taken = [0] * len(room)
    for chunk in sorted(range(len(sizes)), key=lambda chunk: (-sizes[chunk], -len(barred[chunk]), chunk)):
        fitting = [i for i, left in enumerate(room) if left >= sizes[chunk] and i not in barred[chunk]]
        if len(fitting) < needs[chunk]:
            return None
        if by_room:
            fitting.sort(key=lambda i: -room[i])
        else:
            fitting.sort(key=lambda i: (taken[i], -room[i]))
        rows[chunk] = tuple(fitting[: needs[chunk]])
        for i in rows[chunk]:
            room[i] -= sizes[chunk]
            taken[i] += 1
    return rows
