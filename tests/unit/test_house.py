"""setup.cfg's contracts say what the modules say of themselves: whoever claims to be pure is checked."""

from __future__ import annotations

import ast
import configparser
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted((ROOT / "zchunk").rglob("*.py"))
}


def contract(name: str) -> configparser.SectionProxy:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup[f"importlinter:contract:{name}"]


def covered(names: list[str]) -> set[str]:
    """A package stands for everything in it."""
    return {module for module in MODULES for name in names if f"{module}.".startswith(f"{name}.")}


def test_who_calls_itself_pure_is_under_the_contract() -> None:
    checked = covered(contract("pure")["source_modules"].split())
    claims = {
        module
        for module, path in MODULES.items()
        if re.search(r"\bPure\.", ast.get_docstring(ast.parse(path.read_text())) or "")
    }
    assert len(claims) > 30
    assert not claims - checked


def test_the_contract_names_modules_that_exist() -> None:
    for name in ("pure", "zmq", "storeless"):
        for module in contract(name)["source_modules"].split():
            assert module in MODULES, f"{name}: {module}"
