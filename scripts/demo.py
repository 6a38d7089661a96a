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
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from zchunk.config import parse_size

ZCHUNK = [sys.executable, "-m", "zchunk"]
READY_S = 30.0
NODES = ("PC-A", "PC-B", "PC-C")


def say(text: str, end: str = "\n") -> None:
    print(text, end=end, flush=True)


class Server:
    """A tracker or node in the background, ready when the constructor returns."""

    def __init__(self, *arguments: str, log: Path) -> None:
        self._log = log.open("ab")
        self._process = subprocess.Popen(
            [*ZCHUNK, *arguments], stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("ready "):
            self._process.wait()
            raise SystemExit(f"{arguments[0]} did not start:\n{log.read_text()}")
        self.ready: dict[str, Any] = json.loads(line.removeprefix("ready "))

    def kill(self) -> None:
        """What a power cut does."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(READY_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._log.close()


class Demo:
    def __init__(self, root: Path, size: int, stack: ExitStack) -> None:
        self.root = root
        self.size = size
        self.stack = stack
        self.nodes: dict[str, Server] = {}
        self.home = root / "you"

    def run(self) -> None:
        self.start_cluster()
        source = self.make_file()
        self.put(source)
        self.show_chunks(source.name)
        target = self.root / "copy.bin"
        missing = self.get_without_one(source.name, target)
        self.get_the_rest(source.name, target, missing)
        self.compare(source, target)

    def start_cluster(self) -> None:
        self.tracker = Server(
            "tracker",
            "--home",
            str(self.root / "tracker-pc"),
            "--bind",
            "127.0.0.1:0",
            log=self.root / "tracker.log",
        )
        self.stack.callback(self.tracker.stop)
        for name in NODES:
            self.start_node(name, "--join", self.token("node"))
        self.json("join", self.token("client"))
        peers = self.json("peers")[0]
        say(f"1. A tracker and {len(peers)} nodes are up: " + ", ".join(p["name"] for p in peers) + ".")

    def start_node(self, name: str, *more: str) -> None:
        arguments = ("node", "--home", str(self.root / name), "--name", name, "--bind", "127.0.0.1:0", *more)
        self.nodes[name] = Server(*arguments, log=self.root / f"{name}.log")
        self.stack.callback(self.nodes[name].stop)

    def token(self, role: str) -> str:
        home = str(self.root / "tracker-pc")
        command = [*ZCHUNK, "token", "--home", home, "--role", role, "--once"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    def make_file(self) -> Path:
        path = self.root / "recording.bin"
        with path.open("wb") as file:
            left = self.size
            while left:
                block = os.urandom(min(left, 1 << 24))
                file.write(block)
                left -= len(block)
        say(f"2. Made {path.name}: {self.size / 1e9:.1f} GB of random bytes.")
        return path

    def put(self, source: Path) -> None:
        done = self.json("put", str(source), "--yes")[-1]
        self.check(done["event"] == "done", f"the upload ended with {done}")
        speed = self.size / done["seconds"] / 1e6
        say(f"3. zchunk put: {done['chunks_count']} chunks, durable on {len(done['peers'])} nodes,", end=" ")
        say(f"in {done['seconds']:.1f} s ({speed:.0f} MB/s).")

    def show_chunks(self, name: str) -> None:
        info = self.json("info", name)[0]
        names = {peer["peer_id"]: peer["name"] for peer in self.json("peers")[0]}
        counts: dict[str, int] = {}
        for chunk in info["chunks"]:
            counts[names[chunk["peer_id"]]] = counts.get(names[chunk["peer_id"]], 0) + 1
        where = ", ".join(f"{peer} {count}" for peer, count in sorted(counts.items()))
        say(f"4. Where the chunks went: {where}.")

    def get_without_one(self, name: str, target: Path) -> int:
        self.nodes["PC-C"].kill()
        self.wait_until_down("PC-C")
        end = self.json("get", name, "-o", str(target), "--no-wait", expect=4)[-1]
        self.check(end["code"] == "partial", f"the download ended with {end}")
        say(f"5. PC-C is killed. zchunk get --no-wait keeps {end['chunks_completed']} of", end=" ")
        say(f"{end['chunks_count']} chunks and says: {end['message']}.")
        return int(end["chunks_missing"])

    def wait_until_down(self, name: str) -> None:
        """The tracker's event says when."""
        deadline = time.monotonic() + READY_S
        while any(p["name"] == name and p["status"] == "up" for p in self.json("peers")[0]):
            self.check(time.monotonic() < deadline, f"{name} is still listed as up")

    def get_the_rest(self, name: str, target: Path, missing: int) -> None:
        self.start_node("PC-C")
        done = self.json("get", name, "-o", str(target))[-1]
        self.check(done["event"] == "done", f"the download ended with {done}")
        self.check(done["bytes_received"] < self.size, "chunks that were kept came again")
        received = done["bytes_received"] / 1e9
        say(f"6. PC-C is back. The same get fetches only the {missing} missing chunks", end=" ")
        say(f"({received:.1f} GB, {done['seconds']:.1f} s) and completes the file.")

    def compare(self, source: Path, target: Path) -> None:
        digests = []
        for path in (source, target):
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        self.check(digests[0] == digests[1], "the files differ")
        say(f"7. SHA-256 of both files: {digests[0]}. They are identical.")

    def json(self, *arguments: str, expect: int = 0) -> list[Any]:
        """A command with --json; its output, line by line."""
        command = [*ZCHUNK, *arguments, "--home", str(self.home), "--json"]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        message = f"zchunk {' '.join(arguments)} ended with {result.returncode}: {result.stderr}"
        self.check(result.returncode == expect, message)
        return [json.loads(line) for line in result.stdout.splitlines()]

    def check(self, held: bool, otherwise: str) -> None:
        if not held:
            raise SystemExit(f"the demonstration failed: {otherwise}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", default="1.5GB", help="size of the file (1.5GB)")
    parser.add_argument("--keep", action="store_true", help="keep the temporary folder")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    root = Path(tempfile.mkdtemp(prefix="zchunk-demo-"))
    try:
        with ExitStack() as stack:
            Demo(root, parse_size(options.size), stack).run()
    finally:
        if options.keep:
            say(f"Kept: {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)
    if not options.keep:
        say("Everything was stopped and removed.")


if __name__ == "__main__":
    main()
