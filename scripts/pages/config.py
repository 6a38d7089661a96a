"""config.md: every key with its default, what is allowed (zchunk/config.py) and what it means
(config.yaml); and what each changes on the wire, for protocol.md."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from pages.template import Filler, code, meanings, one_line, table
from zchunk import config

_FILE = Path(config.__file__).parents[1] / "config.yaml"


def defaults() -> dict[str, str]:
    """As config.yaml has them, which a test compares with the code."""
    shipped = yaml.load(_FILE.read_text(), yaml.BaseLoader)
    return {
        f"{section}.{key}": "[]" if value == [] else value
        for section, keys in shipped.items()
        for key, value in keys.items()
    }


def comments() -> dict[str, str]:
    """What config.yaml says above each key; keys that stand together share it."""
    found: dict[str, str] = {}
    said: list[str] = []
    section = last = ""
    for line in _FILE.read_text().splitlines():
        if head := re.match(r"(\w+):", line):
            section, said = head[1], []
        elif comment := re.match(r"  # (.*)", line):
            said.append(comment[1])
        elif key := re.match(r"  (\w+):", line):
            last = " ".join(said) if said else last
            found[f"{section}.{key[1]}"] = last
            said = []
    return found


def effects(words: str) -> str:
    """What each key changes for others."""
    said, known = meanings(words), defaults()
    if list(said) != list(known):
        raise ValueError(f"the template names {sorted(set(said) ^ set(known))} wrongly, or in another order")
    return table(["key", "default", "effect"], [[code(key), known[key], what] for key, what in said.items()])


def _keys(heading: str, section: str) -> str:
    known, said = defaults(), comments()
    rows = []
    for key in config.keys_of(section):
        path = f"{section}.{key}"
        rows.append([code(path), known[path], said[path], config.allowed(section, key).replace("|", "\\|")])
    return table(["key", "default", "meaning", "allowed"], rows)


def _sections(heading: str, words: str) -> str:
    parts = []
    for section, model in config.SECTIONS.items():
        parts.append(f"## {section}\n\n{one_line(model.__doc__)}\n\n{_keys(heading, section)}")
    return "\n\n".join(parts)


FILLERS: dict[str, Filler] = {"sections": _sections}
