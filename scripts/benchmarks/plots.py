"""Figures -> a bar chart with ranges, as SVG and PNG. Needs matplotlib (the extra `bench`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.series import Series

OURS, THEIRS, FLOOR = "#1f6feb", "#8b949e", "#2da44e"


def color_of(name: str) -> str:
    if "zchunk" in name:
        return OURS
    return FLOOR if name.startswith("floor") else THEIRS


def chart(title: str, series: Sequence[Series], folder: Path, name: str) -> Path:
    """MB/s of each: a bar to the median, a line from the slowest run to the fastest. Returns the
    SVG; a PNG of it lies beside."""
    import matplotlib

    matplotlib.use("Agg")
    # Looks the same everywhere, and the same figures make the same file.
    matplotlib.rcParams.update({"svg.fonttype": "path", "svg.hashsalt": name, "font.family": "sans-serif"})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 0.6 + 0.45 * len(series)), layout="constrained")
    names = [one.name for one in series]
    speeds = [one.size / one.median / 1e6 for one in series]
    slower = [speed - one.size / max(one.seconds) / 1e6 for one, speed in zip(series, speeds, strict=True)]
    faster = [one.size / min(one.seconds) / 1e6 - speed for one, speed in zip(series, speeds, strict=True)]
    axes.barh(
        names, speeds, xerr=[slower, faster], color=[color_of(n) for n in names], capsize=3, height=0.65
    )
    for row, (speed, more) in enumerate(zip(speeds, faster, strict=True)):
        axes.annotate(f"{speed:.0f}", (speed + more, row), (6, 0), textcoords="offset points", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * max(speed + more for speed, more in zip(speeds, faster, strict=True)))
    axes.set_xlabel("MB/s; median, and the slowest and fastest run")
    axes.set_title(title, loc="left", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    folder.mkdir(parents=True, exist_ok=True)
    for kind in ("png", "svg"):
        figure.savefig(folder / f"{name}.{kind}", dpi=120, metadata={"Date": None} if kind == "svg" else None)
    pyplot.close(figure)
    return folder / f"{name}.svg"
