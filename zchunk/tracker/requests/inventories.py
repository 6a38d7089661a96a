"""Pages of nodes' inventories as they come in. Pure.

What may not happen here: memory beyond `_MAX_BYTES` for all of them, but for one that is alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from zchunk.errors import Busy, HelloFirst, MalformedMessage, NotAllowed
from zchunk.protocol.columns import MAX_HASHES, split_hashes
from zchunk.protocol.messages import Inventory

_MAX_BYTES = 32 * 4_000_000


@dataclass(slots=True, eq=False)
class Pages:
    """Of one node's inventory."""

    incarnation: int
    next_page: int = 0
    parts: list[bytes] = field(default_factory=list)
    size: int = 0

    def hashes(self) -> list[bytes]:
        return [sha256 for part in self.parts for sha256 in split_hashes(part)]


class Inventories:
    def __init__(self) -> None:
        #: peer -> what has come of its inventory
        self._pages: dict[str, Pages] = {}

    def __len__(self) -> int:
        return len(self._pages)

    def __contains__(self, peer_id: str) -> bool:
        return peer_id in self._pages

    def begin(self, peer_id: str, incarnation: int) -> None:
        """The node is asked for its inventory."""
        self._pages[peer_id] = Pages(incarnation)

    def take(self, peer_id: str, page: Inventory) -> Pages | None:
        """All pages once the last has come. Raises HelloFirst for one that nobody asked for, and
        MalformedMessage, NotAllowed or Busy for one that is not taken."""
        pages = self._pages.get(peer_id)
        if pages is None:
            raise HelloFirst("unexpected inventory; say hello first")
        if page.page == 0:
            pages.parts, pages.size, pages.next_page = [], 0, 0
        if page.page > pages.next_page:
            # A repeated hello began it anew: an Ok would leave the node waiting for ever.
            raise HelloFirst("a page of the inventory is missing; say hello again")
        if page.page == pages.next_page:
            self._take(peer_id, pages, page)
        return pages if page.last and page.page == pages.next_page - 1 else None

    def end(self, peer_id: str, pages: Pages) -> None:
        """They are in the store."""
        if self._pages.get(peer_id) is pages:
            del self._pages[peer_id]

    def drop(self, peer_id: str) -> None:
        """The node has gone."""
        self._pages.pop(peer_id, None)

    def _take(self, peer_id: str, pages: Pages, page: Inventory) -> None:
        if len(page.hashes) > 32 * MAX_HASHES or not (len(page.hashes) or page.last):
            raise MalformedMessage(f"a page of an inventory must have 1 to {MAX_HASHES} chunks")
        others = sum(other.size for other in self._pages.values() if other is not pages)
        size = pages.size + len(page.hashes)
        if size > _MAX_BYTES:
            del self._pages[peer_id]
            raise NotAllowed("the inventory has more than 4,000,000 chunks")
        if others and others + size > _MAX_BYTES:
            raise Busy("the tracker is reading inventories of other nodes; try again later")
        pages.parts.append(bytes(page.hashes))
        pages.size = size
        pages.next_page += 1
