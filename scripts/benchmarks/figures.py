"""Samples -> a line of a table, and JSON. Nothing here measures."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any


def quantile(samples: Sequence[float], share: float) -> float:
    """Nearest rank: of 30 samples the 99th percentile is the largest."""
    return sorted(samples)[max(0, math.ceil(share * len(samples)) - 1)]


@dataclass
class Figure:
    """Milliseconds, and the bound on their 99th percentile; None where there is none."""

    name: str
    goal_ms: float | None
    samples: list[float] = field(default_factory=list)

    def add(self, seconds: float) -> None:
        self.samples.append(1000 * seconds)

    @property
    def held(self) -> bool:
        return self.goal_ms is None or quantile(self.samples, 0.99) <= self.goal_ms

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "rounds": len(self.samples),
            "median_ms": round(median(self.samples), 2),
            "p99_ms": round(quantile(self.samples, 0.99), 2),
            "max_ms": round(max(self.samples), 2),
            "goal_p99_ms": self.goal_ms,
            "held": self.held,
        }


def print_table(figures: Sequence[Figure]) -> None:
    width = max(len(figure.name) for figure in figures)
    print(f"{'':{width}}  {'median':>9}  {'p99':>9}  {'goal':>9}")
    for figure in figures:
        goal = "" if figure.goal_ms is None else f"{figure.goal_ms:.0f} ms"
        row = figure.as_json()
        cells = f"{row['median_ms']:>6.1f} ms  {row['p99_ms']:>6.1f} ms  {goal:>9}"
        print(f"{figure.name:{width}}  {cells}{'' if figure.held else '  missed'}")


def print_json(name: str, settings: dict[str, Any], figures: Sequence[Figure]) -> None:
    print(json.dumps({"bench": name, "settings": settings, "figures": [f.as_json() for f in figures]}))
