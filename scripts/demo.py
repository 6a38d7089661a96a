"""The demonstration that `scripts/demo` runs: the main job through the public commands.

Everything lies in a temporary folder and runs on 127.0.0.1; both are cleaned up at the
end, also after Ctrl-C or a failure. Exit code 0 means that every step showed what it says.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from servers import Cluster, Failed, make_file, wait_for

from zchunk.config import Chunking, parse_size
from zchunk.errors import ZchunkError

NODES = ("PC-A", "PC-B", "PC-C")


def say(text: str, end: str = "\n") -> None:
    print(text, end=end, flush=True)


def check(held: bool, otherwise: str) -> None:
    if not held:
        raise Failed(otherwise)


class Demo:
    def __init__(self, root: Path, size: int, stack: ExitStack) -> None:
        self.root = root
        self.size = size
        if size < Chunking().min_file_size_for_distribution:
            # A file of any size shows the same, if it counts as one that is distributed.
            os.environ["ZCHUNK_CHUNKING__MIN_FILE_SIZE_FOR_DISTRIBUTION"] = str(size)
        self.cluster = Cluster(root, stack)

    def run(self) -> None:
        self.start_cluster()
        source = self.make_file()
        self.put(source)
        self.show_chunks(source.name)
        target = self.root / "copy.bin"
        get, missing = self.get_without_one(source.name, target)
        self.get_the_rest(get, missing)
        self.compare(source, target)

    def start_cluster(self) -> None:
        for name in NODES:
            self.cluster.start_node(name)
        self.cluster.join()
        peers = self.cluster.json("peers")[0]
        say(f"1. A tracker and {len(peers)} nodes are up: " + ", ".join(p["name"] for p in peers) + ".")

    def make_file(self) -> Path:
        path = self.root / "recording.bin"
        make_file(path, self.size)
        say(f"2. Created {path.name}: {self.size / 1e9:.1f} GB of random bytes.")
        return path

    def put(self, source: Path) -> None:
        done = self.cluster.json("put", str(source), "--yes")[-1]
        check(done["event"] == "done", f"the upload ended with {done}")
        speed = self.size / done["seconds"] / 1e6
        say(f"3. zchunk put: {done['chunks_count']} chunks, durable on {len(done['peers'])} nodes,", end=" ")
        say(f"in {done['seconds']:.1f} s ({speed:.0f} MB/s).")

    def show_chunks(self, name: str) -> None:
        info = self.cluster.json("info", name)[0]
        names = {peer["peer_id"]: peer["name"] for peer in self.cluster.json("peers")[0]}
        counts: dict[str, int] = {}
        for chunk in info["chunks"]:
            counts[names[chunk["peer_id"]]] = counts.get(names[chunk["peer_id"]], 0) + 1
        where = ", ".join(f"{peer} {count}" for peer, count in sorted(counts.items()))
        say(f"4. Chunks by node: {where}.")

    def get_without_one(self, name: str, target: Path) -> tuple[subprocess.Popen[str], dict[str, Any]]:
        """A download that waits for the node that was killed."""
        self.cluster.nodes["PC-C"].kill()
        wait_for(lambda: self.status("PC-C") == "down", "PC-C is listed as down")
        get = self.cluster.start("get", name, "-o", str(target))
        waiting = self.event(get, "waiting")
        names = ", ".join(row["name"] for row in waiting["missing"])
        say(f"5. Killed PC-C (kill -9). zchunk get has {waiting['chunks_completed']} of", end=" ")
        say(f"{waiting['chunks_count']} chunks, and waits for the", end=" ")
        say(f"{waiting['chunks_missing']} chunks on {names}.")
        return get, waiting

    def status(self, name: str) -> str:
        return str(next(p["status"] for p in self.cluster.json("peers")[0] if p["name"] == name))

    def event(self, process: subprocess.Popen[str], kind: str, at_least: int = 0) -> dict[str, Any]:
        """The next event of that kind (with so many chunks) of a command that runs."""
        assert process.stdout is not None
        for line in process.stdout:
            event: dict[str, Any] = json.loads(line)
            check(event["event"] != "error", f"the download ended with {event}")
            if event["event"] == kind and event.get("chunks_completed", at_least) >= at_least:
                return event
        raise Failed(f"the download ended without the event {kind!r}")

    def get_the_rest(self, get: subprocess.Popen[str], waiting: dict[str, Any]) -> None:
        """Nobody touches the download: the tracker's event does."""
        started = time.monotonic()
        self.cluster.start_node("PC-C")
        self.event(get, "resumed")
        self.event(get, "progress", at_least=waiting["chunks_completed"] + 1)
        first = time.monotonic() - started
        done = self.event(get, "done")
        check(get.wait() == 0, "the download ended with an error")
        check(done["bytes_received"] == self.size, "something came twice, or not at all")
        say(f"6. Started PC-C again. {1000 * first:.0f} ms after the start of its process the first", end=" ")
        say("new chunks were on this disk: the tracker's event woke the download, which then", end=" ")
        say("completed by itself.")

    def compare(self, source: Path, target: Path) -> None:
        digests = []
        for path in (source, target):
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        check(digests[0] == digests[1], "the files differ")
        say(f"7. SHA-256 of both files: {digests[0]}. They are identical.")


def size(text: str) -> int:
    """An argument like 300MB: at least a chunk for each node."""
    try:
        value = parse_size(text)
    except ZchunkError as error:
        raise argparse.ArgumentTypeError(error.message) from None
    least = len(NODES) * Chunking().chunk_size
    if value < least:
        raise argparse.ArgumentTypeError(f"at least {least} bytes, a chunk for each node")
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=size, default="1.5GB", help="size of the file (1.5GB)")
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    root = Path(tempfile.mkdtemp(prefix="zchunk-demo-"))
    try:
        with ExitStack() as stack:
            Demo(root, options.size, stack).run()
    except Failed as error:
        raise SystemExit(f"the demonstration failed: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("stopped") from None
    finally:
        if options.keep:
            say(f"The files are kept in {root}.")
        else:
            shutil.rmtree(root, ignore_errors=True)
    if not options.keep:
        say("All processes are stopped, and all files are removed.")


if __name__ == "__main__":
    main()
