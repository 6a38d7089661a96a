"""Which store this tracker has, and how far it is. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class StoreMark:
    """By it a node knows a tracker whose store was replaced, or is an older one put back.
    `commit_number`: of the last commit or removal that a member was told of."""

    store_id: str
    commit_number: int
