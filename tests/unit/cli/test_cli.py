"""zchunk/cli: arguments, exit codes, errors as JSON (SPEC "Command line")."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from zchunk import cli as program
from zchunk import errors
from zchunk.cli import cli, common, joining
from zchunk.cli.common import Invocation, parse_duration, token_text
from zchunk.cli.put import _agree
from zchunk.errors import Interrupted, InvalidUsage, NotFound, ZchunkError

#: SPEC "Command line", the exit codes.
EXIT_CODES = {
    "ZchunkError": 1,
    "StorageFailure": 1,
    "InvalidUsage": 2,
    "TargetExists": 2,
    "AmbiguousName": 2,
    "NameTaken": 2,
    "AlreadyRunning": 2,
    "ConfigError": 2,
    "TooFewPeers": 3,
    "PartialDownload": 4,
    "IntegrityError": 5,
    "ChunkCorrupt": 5,
    "TrackerUnreachable": 6,
    "NotAllowed": 7,
    "NotJoined": 7,
    "TokenRefused": 7,
    "NoSpace": 8,
    "NotFound": 9,
    "Cancelled": 10,
    "Interrupted": 130,
}


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No setting of this machine, no home of its user; the log's level as it was."""
    for name in ("ZCHUNK_HOME", "ZCHUNK_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


def run(*args: str, **extra: Any) -> Result:
    return CliRunner().invoke(cli, args, **extra)


def fail_with(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Every command that asks the cluster meets `error`."""

    def client(self: Invocation, overrides: object = None) -> Any:
        raise error

    monkeypatch.setattr(Invocation, "client", client)


def last_json(result: Result) -> dict[str, Any]:
    value = json.loads(result.stdout.splitlines()[-1])
    assert isinstance(value, dict)
    return value


# -- errors -----------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "code"), EXIT_CODES.items())
def test_an_error_becomes_its_exit_code_and_one_line(
    name: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(monkeypatch, getattr(errors, name)("what happened: what to do"))
    result = run("ls")
    assert result.exit_code == code
    assert result.stderr == "zchunk: what happened: what to do\n"
    assert result.stdout == ""


def test_with_json_an_error_is_an_object_on_stdout_too(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, errors.TooFewPeers("1 online", online=["A"], needed=2))
    result = run("put", "x", "--yes", "--json")
    assert result.exit_code == 3
    assert last_json(result) == {
        "event": "error",
        "code": "too_few_peers",
        "exit_code": 3,
        "message": "1 online",
        "online": ["A"],
        "needed": 2,
    }
    assert result.stderr == "zchunk: 1 online\n"


def test_a_bug_is_one_line_and_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, KeyError("two\nlines"))
    result = run("ls", "--json")
    assert result.exit_code == 1
    assert last_json(result)["code"] == "unexpected"
    assert len(result.stderr.splitlines()) == 1
    assert "KeyError" in result.stderr


def test_a_bug_shows_its_traceback_with_vv(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, KeyError("x"))
    assert "Traceback" in run("ls", "-vv").stderr
    assert "Traceback" not in run("ls", "-v").stderr


@pytest.mark.parametrize(
    ("number", "code"), [(errno.EACCES, 7), (errno.EROFS, 7), (errno.ENOSPC, 8), (errno.EIO, 1)]
)
def test_a_folder_that_cannot_be_used(number: int, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, OSError(number, "why", "/some/where"))
    result = run("ls")
    assert result.exit_code == code
    assert result.stderr.startswith("zchunk: ")
    assert "/some/where" in result.stderr
    assert result.stderr.count("\n") == 1


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, KeyboardInterrupt())
    result = run("ls", "--json")
    assert result.exit_code == 130
    assert last_json(result)["code"] == "interrupted"


@pytest.mark.row("S4")
def test_no_terminal_escape_of_a_message_reaches_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, NotFound("no \x1b[31mred\nfile\u202e"))
    result = run("ls", "--json")
    assert result.stderr == "zchunk: no \\x1b[31mred\\nfile\\u202e\n"
    assert last_json(result)["message"] == "no \x1b[31mred\nfile\u202e"


# -- usage ------------------------------------------------------------------------------

WRONG: list[Sequence[str]] = [
    ["frob"],
    ["ls", "--frob"],
    ["get"],
    ["cat"],
    ["cat", "x", "--offset=-1"],
    ["cat", "x", "--length", "-1"],
    ["cat", "x", "--length", "much"],
    ["put", "x", "--yes", "--replicas", "0"],
    ["put", "x", "--yes", "--replicas", "two"],
    ["put", "x", "--yes", "--min-peers", "0"],
    ["put", "x", "--yes", "--strategy", "random"],
    ["put", "x", "--yes", "--chunk-size", "5000"],
    ["put", "x", "--yes", "--chunk-size", "1MB"],
    ["put", "x", "--yes", "--chunk-size", "128MiB"],
    ["put", "x", "--yes", "--chunk-size", "much"],
    ["put", "x"],
    ["rm", "x"],
    ["token", "--role", "king"],
    ["token", "--expires", "soon"],
    ["token", "--expires", "0h"],
    ["node", "--capacity", "lots"],
]


@pytest.mark.parametrize("args", WRONG, ids=" ".join)
def test_wrong_arguments_are_exit_2_before_anything(
    args: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(monkeypatch, AssertionError("the cluster was asked"))
    result = run(*args)
    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 1
    assert result.stderr.startswith("zchunk: ")
    assert result.stdout == ""


@pytest.mark.parametrize("args", [a for a in WRONG if a[0] not in ("node", "frob")], ids=" ".join)
def test_wrong_arguments_with_json(args: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, AssertionError("the cluster was asked"))
    result = run(*args, "--json")
    assert result.exit_code == 2
    error = last_json(result)
    assert (error["event"], error["code"], error["exit_code"]) == ("error", "usage", 2)


def test_a_wrong_setting_names_file_and_line(tmp_path: Path) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("chunking:\n  chunk_size: 5000\n")
    result = run("ls", "--config", str(config))
    assert result.exit_code == 2
    assert f"{config} line 2" in result.stderr


def test_json_behind_a_double_dash_is_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    fail_with(monkeypatch, NotFound("no such file"))
    result = run("get", "--", "--json")
    assert result.exit_code == 9
    assert result.stdout == ""


def test_help_and_version_are_no_errors() -> None:
    for args in (["--help"], ["-h"], ["put", "--help"], ["peers", "list", "--help"], ["--version"]):
        assert run(*args).exit_code == 0


def test_without_a_command_the_help_is_shown() -> None:
    result = run()
    assert result.exit_code == 2
    assert "Commands:" in result.stderr


# -- home and config ----------------------------------------------------------------------


def home_of(monkeypatch: pytest.MonkeyPatch, *args: str, **extra: Any) -> tuple[Path, Path | None]:
    """The home and configuration that a command line of `args` means."""
    seen: list[Invocation] = []

    def client(self: Invocation, overrides: object = None) -> Any:
        seen.append(self)
        raise NotFound("enough")

    monkeypatch.setattr(Invocation, "client", client)
    assert run(*args, **extra).exit_code == 9
    return seen[0].home, seen[0].config


@pytest.mark.parametrize("args", [["--home", "/h", "ls"], ["ls", "--home", "/h"], ["peers", "--home", "/h"]])
def test_home_stands_before_or_behind_the_command(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert home_of(monkeypatch, *args) == (Path("/h"), None)


def test_the_later_home_wins_and_both_win_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    env = {"ZCHUNK_HOME": "/e"}
    assert home_of(monkeypatch, "ls", env=env)[0] == Path("/e")
    assert home_of(monkeypatch, "--home", "/a", "ls", "--home", "/b", env=env)[0] == Path("/b")
    assert home_of(monkeypatch, "peers", "--home", "/a", "list", env=env)[0] == Path("/a")


def test_the_home_by_default_is_the_data_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert home_of(monkeypatch, "ls")[0] == tmp_path / "data" / "zchunk"


def test_the_configuration_of_the_home_is_taken_if_it_exists(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "config.yaml").touch()
    env = {"ZCHUNK_CONFIG": "/e.yaml"}
    assert home_of(monkeypatch, "ls", "--home", str(tmp_path))[1] == tmp_path / "config.yaml"
    assert home_of(monkeypatch, "ls", "--home", str(tmp_path), env=env)[1] == Path("/e.yaml")
    assert home_of(monkeypatch, "ls", "--config", "/o.yaml", env=env)[1] == Path("/o.yaml")


def test_a_home_that_has_not_joined(tmp_path: Path) -> None:
    result = run("ls", "--home", str(tmp_path), "--json")
    assert (result.exit_code, last_json(result)["code"]) == (7, "not_joined")


# -- durations, tokens ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("30m", 1800), ("24h", 86400), ("7d", 604800), ("1.5h", 5400), ("90 s", 90), ("2W", 1209600)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "24", "h", "-1h", "0m", "1h30m", "nan", "1e3s", "99999d", "1y"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(InvalidUsage, match="not a valid duration"):
        parse_duration(text)


def test_a_token_comes_as_it_is_or_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("zchunk1-abc\n")
    assert token_text("zchunk1-abc") == "zchunk1-abc"
    assert token_text(f"@{path}") == "zchunk1-abc\n"
    with pytest.raises(NotFound):
        token_text(f"@{tmp_path / 'none'}")
    with pytest.raises(InvalidUsage, match="Is a directory"):
        token_text(f"@{tmp_path}")
    path.write_bytes(b"\xff")
    with pytest.raises(InvalidUsage, match="not text"):
        token_text(f"@{path}")


@pytest.mark.parametrize("args", [["join", "-"], ["node", "--join", "-", "--bind", "127.0.0.1:0"]])
def test_a_token_from_stdin_that_is_none(args: list[str], tmp_path: Path) -> None:
    result = run(*args, "--home", str(tmp_path), input="no token\n")
    assert result.exit_code == 7
    assert "not a zchunk join token" in result.stderr


def test_a_node_without_a_token_has_nowhere_to_go(tmp_path: Path) -> None:
    result = run("node", "--home", str(tmp_path), "--bind", "127.0.0.1:0")
    assert result.exit_code == 7
    assert "`zchunk node --join -`" in result.stderr


def test_tokens_need_a_tracker(tmp_path: Path) -> None:
    result = run("token", "--home", str(tmp_path))
    assert result.exit_code == 9
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_this_pc_can_be_a_node_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {"lab-pc3.example.org": "lab-pc3", "": "node", "x" * 90: "x" * 48, "a\tb": "ab"}
    for host, name in names.items():
        monkeypatch.setattr(socket, "gethostname", lambda host=host: host)
        assert joining.host_name() == name


# -- logs ----------------------------------------------------------------------------


def test_logs_are_safe_lines(capsys: pytest.CaptureFixture[str]) -> None:
    common.set_up_logs(0)
    try:
        raise ValueError("inner\nline")
    except ValueError as error:
        logging.getLogger("zchunk.test").warning("name %s", "a\nb\x1b[0m", exc_info=error)
    logging.getLogger("zchunk.test").info("not told")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert "a\\nb\\x1b[0m" in lines[0]
    assert "ValueError" in lines[0]


def test_a_name_in_a_question_cannot_break_out_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of members and files, which others named."""
    asked: list[str] = []
    monkeypatch.setattr(click, "confirm", lambda text, **how: asked.append(text))
    common.agreed("Cut x\x1b[2J\ny off?", default=False)
    assert asked == ["Cut x\\x1b[2J\\ny off?"]


def test_every_question_is_asked_so() -> None:
    folder = Path(common.__file__).parent
    asking = {path.name for path in folder.glob("*.py") if "click.confirm(" in path.read_text()}
    assert asking == {"common.py"}


def test_a_traceback_is_safe_lines_too(capsys: pytest.CaptureFixture[str]) -> None:
    common.set_up_logs(2)
    try:
        raise ValueError("a\x1b[2Jb")
    except ValueError as error:
        logging.getLogger("zchunk.test").warning("failed", exc_info=error)
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert "a\\x1b[2Jb" in said
    assert "\x1b" not in said


# -- an upload that waits, or is declined -------------------------------------------------------


class FakePlan:
    def __init__(self) -> None:
        self.abandoned = 0

    def plan_event(self) -> dict[str, str]:
        return {"event": "plan"}

    def abandon(self) -> None:
        self.abandoned += 1
        raise ZchunkError("the tracker is gone")


def test_a_declined_plan_is_abandoned(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = FakePlan()
    monkeypatch.setattr(click, "confirm", lambda *args, **extra: False)
    with pytest.raises(Interrupted, match="nothing was stored"):
        _agree(Invocation(json=True), None, plan, yes=False)  # type: ignore[arg-type]
    assert plan.abandoned == 1


def test_a_command_ends_at_once_but_not_before_what_must_be_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ended: list[int] = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.main_thread()])
    program._leave(6)
    assert ended == [6]
    waited = threading.Thread()
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.main_thread(), waited])
    program._leave(6)
    program._leave("a text, which the interpreter prints")
    assert ended == [6]


@pytest.mark.parametrize("args", [(), ("key",), ("peers",), ("tokens",)])
def test_the_list_of_commands_says_of_each_what_it_does_in_80_columns(args: tuple[str, ...]) -> None:
    result = CliRunner().invoke(cli, [*args, "--help"], terminal_width=80)
    _, _, commands = result.output.partition("Commands:\n")
    assert commands
    assert "..." not in commands, "no sentence is cut"


def test_a_suggested_option_is_part_of_the_sentence() -> None:
    result = CliRunner().invoke(cli, ["get", "--no-wai", "x"])
    assert result.exit_code == 2
    assert result.stderr == (
        "zchunk: No such option '--no-wai' (did you mean '--no-wait'?); see `zchunk get --help`\n"
    )
