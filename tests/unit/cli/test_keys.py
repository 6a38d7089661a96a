"""zchunk/cli/keys.py: where a passphrase or key comes from, who is asked, and `zchunk key`."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from zchunk.cli import cli, keys
from zchunk.cli.keys import VARIABLE, Keys, keys_given
from zchunk.content.encryption import Cost, KeyFile, Lock, Passphrase
from zchunk.content.key_files import read_key_file
from zchunk.errors import InvalidUsage, KeyNeeded, NotFound

BY_PASSPHRASE = Lock(b"s" * 16, cost=Cost(16, 8, 2))
BY_KEY_FILE = Lock(b"s" * 16, key_id=b"12345678")


@pytest.fixture(autouse=True)
def _nothing_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)


@pytest.fixture
def words(tmp_path: Path) -> str:
    path = tmp_path / "words"
    path.write_text("from a file\n")
    path.chmod(0o600)
    return str(path)


def run(*args: str) -> Result:
    return CliRunner().invoke(cli, args)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


# -- where it comes from ------------------------------------------------------------------


def test_an_option_goes_before_the_environment(words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "from the environment")
    assert keys_given(words, None).given == Passphrase("from a file")
    assert keys_given(None, None).given == Passphrase("from the environment")
    assert keys_given(None, None).named is None


def test_an_empty_variable_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")
    assert keys_given(None, None).given is None


def test_stdin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"by a pipe\n")))
    assert keys_given("-", None).given == Passphrase("by a pipe")


def test_a_key_file(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"k" * 32)
    path.chmod(0o600)
    assert keys_given(None, path).given == KeyFile(b"k" * 32)


def test_two_secrets_are_one_too_many(words: str) -> None:
    with pytest.raises(InvalidUsage, match="cannot be used together"):
        keys_given(words, Path(words))


def test_a_lost_file_is_said_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        keys_given(str(tmp_path / "absent"), None)


# -- who is asked --------------------------------------------------------------------------


def test_where_nobody_can_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    nothing = Keys(None, None)
    with pytest.raises(KeyNeeded, match="--passphrase-file, --key-file or ZCHUNK_PASSPHRASE"):
        nothing.for_put()
    with pytest.raises(KeyNeeded, match="with a passphrase: give --passphrase-file"):
        nothing.for_get(BY_PASSPHRASE)


@pytest.mark.parametrize("twice", [True, False])
def test_a_terminal_is_asked_for_a_passphrase(twice: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def prompt(question: str, **how: bool) -> str:
        asked.append((how["hide_input"], how["confirmation_prompt"], how["err"]))
        return "typed"

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr(click, "prompt", prompt)
    found = Keys(None, None).for_put() if twice else Keys(None, None).for_get(BY_PASSPHRASE)
    assert found == Passphrase("typed")
    assert asked == [(True, twice, True)]


def test_nobody_is_asked_for_what_only_a_key_file_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", Terminal())
    with pytest.raises(KeyNeeded, match="the key file 3132333435363738: give it with --key-file"):
        Keys(None, None).for_get(BY_KEY_FILE)


def test_nobody_is_asked_for_what_is_given() -> None:
    given = Keys(Passphrase("given"), None)
    assert given.for_put() == given.for_get(BY_KEY_FILE) == Passphrase("given")


# -- commands --------------------------------------------------------------------------------


def test_secrets_without_encrypt_are_refused(words: str, tmp_path: Path) -> None:
    for options in (["--passphrase-file", words], ["--key-file", words], ["--hide-name"]):
        result = run("put", "--yes", str(tmp_path / "file"), *options)
        assert result.exit_code == 2
        assert "need --encrypt" in result.stderr


def test_encrypt_without_a_secret_is_refused_before_the_tracker_is_asked(tmp_path: Path) -> None:
    result = run("put", "--yes", "--encrypt", str(tmp_path / "file"), "--json", "--home", str(tmp_path))
    assert result.exit_code == 2
    assert json.loads(result.stdout)["code"] == "key_needed"


def test_key_new(tmp_path: Path) -> None:
    path = tmp_path / "team.key"
    made = run("key", "new", str(path))
    assert made.exit_code == 0
    assert made.stdout.strip() == read_key_file(path).key_id.hex()
    assert "keep a copy" in made.stderr
    again = run("key", "new", str(path), "--json")
    assert (again.exit_code, json.loads(again.stdout)["code"]) == (2, "target_exists")
    other = json.loads(run("key", "new", str(tmp_path / "other"), "--json").stdout)
    assert other["key_id"] == read_key_file(tmp_path / "other").key_id.hex()


def test_no_secret_can_stand_on_the_command_line() -> None:
    """Every process of the PC could read it."""
    for command in ("put", "get", "resume", "info"):
        known = cli.get_command(click.Context(cli), command)
        assert known is not None
        names = {name for option in known.params for name in option.opts}
        assert {"--passphrase-file", "--key-file"} <= names
        assert not {"--passphrase", "--password", "--key"} & names
    assert keys.VARIABLE == "ZCHUNK_PASSPHRASE"
