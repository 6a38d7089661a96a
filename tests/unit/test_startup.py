"""startup.py and system/interrupts.py: Ctrl-C while the command is being imported, tokens in the
arguments."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from zchunk import startup
from zchunk.transport import auth

#: Interrupts its own process when a module of this name is looked for.
SITECUSTOMIZE = """
import os, signal, sys
at = os.environ["INTERRUPT_AT"]

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == at:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
"""
MODULES = [
    "zchunk.errors",
    "click",
    "zchunk.cli",
    "zchunk.cli.files",
    "zchunk.client",
    "zmq",
    "msgspec",
    "zchunk.node.control.event_feed",
]


def run_interrupted(tmp_path: Path, module: str, *words: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    root = str(Path(startup.__file__).parents[1])
    env = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}", "INTERRUPT_AT": module}
    command = [sys.executable, "-m", "zchunk", "ls", "--home", str(tmp_path / "home"), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env)


@pytest.mark.parametrize("module", MODULES)
def test_ctrl_c_during_an_import_is_130_in_words(tmp_path: Path, module: str) -> None:
    ended = run_interrupted(tmp_path, module)
    assert (ended.returncode, ended.stderr, ended.stdout) == (130, "zchunk: interrupted\n", "")


def test_ctrl_c_during_an_import_is_told_to_scripts_too(tmp_path: Path) -> None:
    ended = run_interrupted(tmp_path, "click", "--json")
    assert ended.returncode == 130
    assert json.loads(ended.stdout) == {
        "event": "error",
        "code": "interrupted",
        "exit_code": 130,
        "message": "interrupted",
    }


def test_ctrl_c_that_is_ignored_stays_so(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        ended = run_interrupted(tmp_path, "click")
    finally:
        signal.signal(signal.SIGINT, before)
    assert ended.returncode == 7, "as without it: this home has not joined"


def test_an_interrupt_that_would_be_lost_is_made_again() -> None:
    """In a destructor, where Python shows a traceback and goes on."""
    code = """
        import sys, threading
        from zchunk.system.interrupts import keep_interrupts
        sys.unraisablehook = keep_interrupts

        class Lost:
            def __del__(self):
                raise KeyboardInterrupt

        try:
            Lost()
            threading.Event().wait(60)
        except KeyboardInterrupt:
            print("heard")
    """
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60
    )
    assert (ended.stdout, ended.stderr) == ("heard\n", "")


# -- tokens -------------------------------------------------------------------------------

_SHOWS = """
    import sys
    from zchunk import startup
    startup.hide_tokens()
    print(sys.argv[1:])
    print(open("/proc/self/cmdline").read().split("\\0"))
"""


def shown(*arguments: str) -> tuple[list[str], list[str]]:
    """(what the process has, what others see of it)."""
    command = [sys.executable, "-c", textwrap.dedent(_SHOWS), *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    own, others = (ast.literal_eval(line) for line in ended.stdout.splitlines())
    return own, others[3 : 3 + len(arguments)]


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="not Linux")
@pytest.mark.parametrize(
    "words",
    [
        ("node", "--join", "zchunk1-abcDEF_-9", "--name", "A"),
        ("join", "zchunk1-abcDEF_-9"),
        ("node", "--join=zchunk1-abcDEF_-9"),
        ("join", "zchunk1-ab", "zchunk1-abcDEF_-9"),
        ("join", "\u65e5 zchunk1-abcDEF_-9"),
    ],
)
def test_others_see_stars_for_a_token(words: tuple[str, ...]) -> None:
    own, others = shown(*words)
    assert own == list(words)
    stars = [w if "zchunk1-" not in w else "*" * len(w.encode()) for w in words]
    assert others == stars


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="not Linux")
def test_what_is_no_token_stays() -> None:
    words = ("ls", "--home", "/x", "zchunk-1", "@zchunk")
    assert shown(*words) == (list(words), list(words))


def test_the_prefix_is_that_of_tokens() -> None:
    assert startup._TOKEN == auth._TOKEN_PREFIX
