"""What was measured of several things in turn -> a table, and JSON. Nothing here measures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from statistics import median
from typing import Any

from benchmarks.processes import Use


@dataclass(frozen=True)
class Sample:
    """One run. `inside`: seconds of the transfer alone, without the start and end of the process.
    `synced`: seconds with a sync of the file behind it, where the program itself does not sync."""

    seconds: float
    uses: Mapping[str, Use]
    inside: float | None = None
    synced: float | None = None


@dataclass
class Series:
    """Runs of one thing, each moving `size` bytes."""

    name: str
    size: int
    samples: list[Sample] = field(default_factory=list)

    @property
    def seconds(self) -> list[float]:
        return [sample.seconds for sample in self.samples]

    @property
    def median(self) -> float:
        return median(self.seconds)

    def median_of(self, name: str) -> float | None:
        values = [getattr(sample, name) for sample in self.samples]
        return None if None in values else median(values)

    def cpu_per_gb(self) -> dict[str, float]:
        """By process: the median over the runs."""
        names = self.samples[0].uses
        return {n: median(s.uses[n].cpu_s for s in self.samples) / (self.size / 1e9) for n in names}

    def peaks(self) -> dict[str, int]:
        return {n: max(s.uses[n].peak for s in self.samples) for n in self.samples[0].uses}

    def as_json(self, floor: Series) -> dict[str, Any]:
        return {
            "name": self.name,
            "bytes": self.size,
            "runs": len(self.samples),
            "median_s": round(self.median, 3),
            "range_s": [round(min(self.seconds), 3), round(max(self.seconds), 3)],
            "median_inside_s": _rounded(self.median_of("inside")),
            "median_with_sync_s": _rounded(self.median_of("synced")),
            "megabytes_per_s": round(self.size / self.median / 1e6, 1),
            "floor_over_this": _rounded(floor.median / self.median * (self.size / floor.size)),
            "cpu_s_per_gb": {name: round(value, 2) for name, value in self.cpu_per_gb().items()},
            "peak_bytes": self.peaks(),
            "samples": [asdict(sample) for sample in self.samples],
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def grouped(by_process: Mapping[str, float]) -> str:
    """Its first process, and the sum of the others: `1.20 + 2.31`."""
    first, *others = by_process.values()
    return f"{first:.2f} + {sum(others):.2f}" if others else f"{first:.2f}"


def cells(series: Series, floor: Series) -> list[str]:
    row, peaks = series.as_json(floor), series.peaks()
    inside = row["median_inside_s"]
    return [
        series.name,
        f"{row['median_s']:.2f}",
        "{:.2f}-{:.2f}".format(*row["range_s"]),
        "" if inside is None else f"{inside:.2f}",
        f"{row['megabytes_per_s']:.0f}",
        f"{row['floor_over_this']:.2f}",
        grouped(series.cpu_per_gb()),
        " ".join(f"{peak / 1e6:.0f}" for peak in peaks.values()),
    ]


HEAD = ["", "median s", "range s", "inside s", "MB/s", "floor/it", "CPU s/GB", "peak MB, each process"]


def print_rows(rows: Sequence[Sequence[str]]) -> None:
    """The first and the last column stand left, the others right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        middle = [cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)]
        print("  ".join([row[0].ljust(widths[0]), *middle, row[-1]]).rstrip())


def print_table(series: Sequence[Series], floor: Series) -> None:
    print_rows([HEAD, *(cells(one, floor) for one in series)])


def print_json(name: str, settings: Mapping[str, Any], series: Sequence[Series], floor: Series) -> None:
    rows = [one.as_json(floor) for one in series]
    print(json.dumps({"bench": name, "settings": settings, "floor": floor.name, "figures": rows}))
