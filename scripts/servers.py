"""Trackers, nodes and commands as processes of their own, for the demonstration and the benchmarks.

Everything lies in one folder and listens on 127.0.0.1. Only processes started here are
ever signalled.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

ZCHUNK = [sys.executable, "-m", "zchunk"]
READY_S = 30.0


class Failed(Exception):
    """Something did not do what it must; said in a line."""


class Server:
    """A tracker or node in the background, ready when the constructor returns."""

    def __init__(self, *arguments: str, log: Path, env: Mapping[str, str] | None = None) -> None:
        self.log = log
        self._file = log.open("ab")
        #: where this start's lines begin in the log
        self.log_begin = self._file.tell()
        #: wall time just before the process was made
        self.started = time.time()
        self._process = subprocess.Popen(
            [*ZCHUNK, *arguments], stdout=subprocess.PIPE, stderr=self._file, text=True, env=env
        )
        self.pid = self._process.pid
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.startswith("ready "):
            self._process.wait()
            raise Failed(f"{arguments[0]} did not start:\n{log.read_text()}")
        self.ready: dict[str, Any] = json.loads(line.removeprefix("ready "))

    def kill(self) -> float:
        """What a power cut does. Returns the moment (monotonic seconds)."""
        at = time.monotonic()
        self._process.kill()
        self._process.wait()
        return at

    def stop(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(READY_S)
            except subprocess.TimeoutExpired:
                self.kill()
        self._file.close()


class Cluster:
    """A tracker, nodes, and a home for commands, in `root`; all stopped with `stack`.

    `settings` are variables of the environment that all its processes have besides ours.
    """

    def __init__(self, root: Path, stack: ExitStack, settings: Mapping[str, str] | None = None) -> None:
        self.root = root
        self._settings = dict(settings or {})
        self.home = root / "you"
        self.nodes: dict[str, Server] = {}
        self._stack = stack
        home = str(root / "tracker-pc")
        command = ("tracker", "-v", "--home", home, "--bind", "127.0.0.1:0")
        self.tracker = Server(*command, log=root / "tracker.log", env=self.env)
        stack.callback(self.tracker.stop)

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, **self._settings}

    def join(self) -> None:
        """Makes `home` a member, as a client."""
        self.json("join", self.token("client"))

    def start_node(self, name: str, *more: str) -> Server:
        home = self.root / name
        known = (home / "node" / "membership.json").exists()
        words = [*more] if known else ["--join", self.token("node"), *more]
        bind = self.nodes[name].ready["endpoint"].removeprefix("tcp://") if known else "127.0.0.1:0"
        command = ("node", "-v", "--home", str(home), "--name", name, "--bind", bind, *words)
        self.nodes[name] = Server(*command, log=self.root / f"{name}.log", env=self.env)
        self._stack.callback(self.nodes[name].stop)
        return self.nodes[name]

    def token(self, role: str) -> str:
        command = [*ZCHUNK, "token", "--home", str(self.root / "tracker-pc"), "--role", role, "--once"]
        result = subprocess.run(command, check=True, capture_output=True, text=True, env=self.env)
        return result.stdout.strip()

    def json(self, *arguments: str, expect: int = 0) -> list[Any]:
        """A command with --json; its output, line by line. Raises Failed."""
        command = [*ZCHUNK, *arguments, "--home", str(self.home), "--json"]
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=self.env)
        if result.returncode != expect:
            words = " ".join(arguments)
            raise Failed(f"zchunk {words} ended with {result.returncode}: {result.stderr}")
        return [json.loads(line) for line in result.stdout.splitlines()]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A command with --json that goes on meanwhile; ended with the cluster."""
        command = [*ZCHUNK, *arguments, "--home", str(self.home), "--json"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=self.env)
        self._stack.callback(_end, process)
        return process


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def wait_for(condition: Callable[[], Any], what: str, deadline_s: float = READY_S) -> Any:
    """The first true value of `condition`. Raises Failed."""
    end = time.monotonic() + deadline_s
    while not (value := condition()):
        if time.monotonic() > end:
            raise Failed(f"not within {deadline_s:g} s: {what}")
        time.sleep(0.005)
    return value


def make_file(path: Path, size: int) -> None:
    """Random bytes."""
    with path.open("wb") as file:
        left = size
        while left:
            block = os.urandom(min(left, 1 << 24))
            file.write(block)
            left -= len(block)
