"""Where a download goes: the names of what lies beside its target."""

from __future__ import annotations

from pathlib import Path


def beside(target: Path, suffix: str) -> Path:
    return target.with_name(target.name + suffix)
