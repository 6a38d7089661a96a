"""The rows of the contract, what each asks, and what of it is not there yet.

A test says with `@pytest.mark.row("U4")` which rows it is about: without the row's behaviour it fails.
`scripts/rows` prints the rows with their tests.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

TESTS = Path(__file__).parent


@dataclass(frozen=True)
class Row:
    """`missing`: what no test shows, or what this release does not have; empty where nothing is."""

    what: str
    missing: str = ""


NOT_YET = "not yet"

ROWS = {
    # upload
    "U1": Row("small files are stored on one peer, large ones are distributed", "small_file_replicas"),
    "U2": Row("with too few peers an upload is refused, and says who is online"),
    "U3": Row("chunk size; SHA-256 and BLAKE3 in one pass"),
    "U4": Row("placement"),
    "U5": Row("visible only when every chunk is stored, all or nothing"),
    "U6": Row("a peer lost while it is being sent to"),
    "U7": Row("what is there is not sent again"),
    "U8": Row("watched folders", NOT_YET),
    "U9": Row("the plan says its consequence", "what-if"),
    "U10": Row("folders", NOT_YET),
    "U11": Row("protection by parity", NOT_YET),
    "U12": Row("the same name again", NOT_YET),
    # download
    "D1": Row("manifest, file id, names"),
    "D2": Row("full, or partial at once"),
    "D3": Row("parallel, each chunk verified before it counts"),
    "D4": Row("waiting, and resuming by the event"),
    "D5": Row("the whole file's SHA-256, one durable rename"),
    "D6": Row("pause, resume, cancel"),
    "D7": Row("kill or power loss of the downloader"),
    "D8": Row("a corrupt or lying source"),
    "D9": Row("the tracker restarts in mid-download"),
    "D10": Row("disk full, no permission: the job is kept"),
    "D11": Row("range reads", "HTTP Range"),
    "D12": Row("jobs of the node", NOT_YET),
    "D13": Row("an own older copy as a source", NOT_YET),
    # interfaces
    "I1": Row("events"),
    "I2": Row("Python API", "the asyncio twin"),
    "I3": Row("HTTP API", NOT_YET),
    "I4": Row("web page", NOT_YET),
    "I5": Row("HTTP Range", NOT_YET),
    "I6": Row("fsspec", NOT_YET),
    "I7": Row("Prometheus", NOT_YET),
    "I8": Row("S3", NOT_YET),
    "I9": Row("systemd units, discovery, completion, hooks", NOT_YET),
    # security
    "S1": Row("SHA-256 before storing and before use"),
    "S2": Row("only authorised peers"),
    "S3": Row("encryption of chunks"),
    "S4": Row("hostile input"),
    # resilience and economy
    "R1": Row("replication and repair", "repair"),
    "R2": Row("scrub", "a schedule, healing"),
    "R3": Row("drain and rebalance", NOT_YET),
    "R4": Row("the tracker's store rebuilt from the nodes", "tracker rebuild"),
    "R5": Row("smart cache", NOT_YET),
    "R6": Row("compression", NOT_YET),
    "R7": Row("removal never deletes what is needed; trash"),
    "R8": Row("deletes of a foreign or older store; an unplugged disk"),
    "R9": Row("health by file", "why, and the next command"),
    "R10": Row("parity", NOT_YET),
    "R11": Row("maintenance and nights", NOT_YET),
    "R12": Row("fire drill", NOT_YET),
    # the seven tests on real files of real size
    "T1": Row("a 1 GB upload is split correctly"),
    "T2": Row("chunks are spread as planned"),
    "T3": Row("a full download with all peers up"),
    "T4": Row("a partial download with one peer offline"),
    "T5": Row("resume when the peer comes back"),
    "T6": Row("every chunk's hash is valid"),
    "T7": Row("a peer lost while it is being sent to"),
}


def marked() -> dict[str, list[str]]:
    """Row -> its tests, as pytest takes them: `tests/unit/test_placement.py::test_even`."""
    found: dict[str, list[str]] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        if "mark.row(" not in (text := path.read_text()):
            continue
        for name, row in _marks(ast.parse(text)):
            found.setdefault(row, []).append(f"{path.relative_to(TESTS.parent)}::{name}")
    return found


def _marks(module: ast.AST) -> Iterator[tuple[str, str]]:
    """(test, row) for each row that a function's decorators name."""
    for node in ast.walk(module):
        if not isinstance(node, ast.FunctionDef):
            continue
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.row":
                yield from ((node.name, ast.literal_eval(row)) for row in mark.args)


def main() -> None:
    tests = marked()
    for name, row in ROWS.items():
        print(f"{name}  {row.what}" + (f"  (missing: {row.missing})" if row.missing else ""))
        for test in tests.get(name, ()):
            print(f"      {test}")


if __name__ == "__main__":
    main()
