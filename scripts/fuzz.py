"""What scripts/fuzz runs: atheris (libFuzzer) on the targets of tests/fuzz, a process for each.

Half of the inputs are mutated as bytes, half as the tree that they hold (JSON, msgpack), so
that what is behind the first check is met too. An input that raises what its target does not
allow, takes 5 s, or makes the process grow past its limit, ends that target's run and is kept
in tests/fuzz/cases.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

CASES = Path(__file__).parent.parent / "tests" / "fuzz" / "cases"
_MAX_BYTES = 4096
_MEMORY = "/dev/shm"
_TIMEOUT_S = 5
#: The interpreter, the package and atheris take 100 MB of it.
_RSS_MB = 300


@dataclass(frozen=True)
class Run:
    target: str
    executions: int
    #: edges of the package's code that were reached
    coverage: int
    peak_mb: int
    case: Path | None

    def __str__(self) -> str:
        found = f"FOUND {self.case}" if self.case else "nothing found"
        counted = f"{self.executions:>11,} executions  coverage {self.coverage:>5}"
        return f"{self.target:<12} {counted}  peak {self.peak_mb} MB  {found}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description="Fuzz every parser.")
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="all of them by default")
    parser.add_argument("--seconds", type=int, default=60, help="for each target (60)")
    parser.add_argument("--list", action="store_true", help="names of the targets")
    parser.add_argument(
        "--corpus", type=Path, help="keep inputs that reached new code there, and start with them"
    )
    parser.add_argument("--child", metavar="FOLDER", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child is not None:
        _fuzz(given.targets[0], Path(given.child), given.seconds)
        return 0
    from tests.fuzz.targets import TARGETS

    unknown = sorted(set(given.targets) - set(TARGETS))
    if unknown:
        parser.error(f"unknown target {', '.join(unknown)}; the targets are {', '.join(TARGETS)}")
    if given.list:
        print("\n".join(TARGETS))
        return 0
    runs = _run_all(given.targets or list(TARGETS), given.seconds, given.corpus)
    total = sum(run.executions for run in runs)
    found = [run for run in runs if run.case is not None]
    print(f"{total:,} executions, {len(found)} findings", flush=True)
    return 1 if found else 0


def _run_all(names: Sequence[str], seconds: int, corpus: Path | None) -> list[Run]:
    runs = []
    with tempfile.TemporaryDirectory(prefix="zchunk-fuzz-") as temporary:
        for name in names:
            folder = (corpus or Path(temporary)) / name
            folder.mkdir(parents=True, exist_ok=True)
            runs.append(_run(name, folder, seconds))
            print(runs[-1], flush=True)
    return runs


def _run(name: str, folder: Path, seconds: int) -> Run:
    command = [sys.executable, "-m", "scripts.fuzz", "--child", str(folder), "--seconds", str(seconds), name]
    # libFuzzer ends a process without its clean-up, so what the targets write goes with this.
    with tempfile.TemporaryDirectory(dir=_MEMORY if os.path.isdir(_MEMORY) else None) as scratch:
        environ = {**os.environ, "TMPDIR": scratch}
        ended = subprocess.run(
            command, capture_output=True, text=True, errors="replace", check=False, env=environ
        )
    artifacts = (
        sorted(folder.glob("crash-*")) + sorted(folder.glob("timeout-*")) + sorted(folder.glob("oom-*"))
    )
    if ended.returncode and not artifacts:
        sys.exit(f"{name} could not be fuzzed:\n{ended.stderr[-3000:]}")
    case = None
    for artifact in artifacts:
        case = _kept(name, artifact)
        print(ended.stderr[-3000:], flush=True)
    coverage = re.findall(r"cov: (\d+)", ended.stderr)
    return Run(
        target=name,
        executions=_stat(ended.stderr, "number_of_executed_units"),
        coverage=int(coverage[-1]) if coverage else 0,
        peak_mb=_stat(ended.stderr, "peak_rss_mb"),
        case=case,
    )


def _stat(text: str, name: str) -> int:
    found = re.findall(rf"stat::{name}:\s+(\d+)", text)
    return int(found[-1]) if found else 0


def _kept(name: str, artifact: Path) -> Path:
    data = artifact.read_bytes()
    case = CASES / name / hashlib.sha256(data).hexdigest()[:12]
    case.parent.mkdir(parents=True, exist_ok=True)
    case.write_bytes(data)
    artifact.unlink()
    return case


# -- the process of one target ----------------------------------------------------------------


def _fuzz(name: str, folder: Path, seconds: int) -> None:
    import logging

    import atheris

    logging.disable(logging.CRITICAL)
    with atheris.instrument_imports(include=["zchunk"]):
        from tests.fuzz.targets import TARGETS, TREES
    from tests.strategies import ODD, ODD_BYTES

    target = TARGETS[name]
    for at, seed in enumerate(target.seeds()):
        (folder / f"seed-{at}").write_bytes(seed)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        random = Random(seed)
        if name in TREES and random.random() < 0.5:
            read, write = TREES[name]
            try:
                return write(_replaced(random, read(data), (*ODD, *ODD_BYTES)))[:most]
            except Exception:  # noqa: BLE001 - no tree any more: it is mutated as bytes
                pass
        return bytes(atheris.Mutate(data, len(data)))

    arguments = [
        f"-max_total_time={seconds}",
        f"-max_len={_MAX_BYTES}",
        f"-timeout={_TIMEOUT_S}",
        f"-rss_limit_mb={_RSS_MB}",
        f"-artifact_prefix={folder}/",
        "-print_final_stats=1",
    ]
    run = lambda data: (target.check(data), None)[1]  # noqa: E731 - libFuzzer wants None
    atheris.Setup([sys.argv[0], *arguments, str(folder)], run, custom_mutator=mutate)
    atheris.Fuzz()


def _replaced(random: Random, tree: object, odd: Sequence[object]) -> object:
    """As `tests.strategies.replaced`, without Hypothesis: one node is another one."""
    if random.random() < 0.1 or not isinstance(tree, (dict, list, tuple)) or not tree:
        return random.choice(odd)
    if isinstance(tree, dict):
        key = random.choice(list(tree))
        return {**tree, key: _replaced(random, tree[key], odd)}
    at = random.randrange(len(tree))
    middle = [tree[at]] * 2 if random.random() < 0.1 else [_replaced(random, tree[at], odd)]
    return [*tree[:at], *middle, *tree[at + 1 :]]


if __name__ == "__main__":
    sys.exit(main())
