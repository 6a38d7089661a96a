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


#: A class with more does too much: a part of it is a class of its own.
MOST_METHODS = 40
#: A file with more says in its docstring why it is one, in a sentence that begins with this.
MOST_LINES = 500
LONG = "This file is long because "


def own_classes() -> dict[str, tuple[set[str], list[str]]]:
    """module.Class -> its methods, and its bases as they are written."""
    found = {}
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                methods = {part.name for part in node.body if isinstance(part, ast.FunctionDef)}
                bases = [ast.unparse(base).partition("[")[0].rpartition(".")[2] for base in node.bases]
                found[f"{module}.{node.name}"] = (methods, bases)
    return found


def methods_of(name: str, classes: dict[str, tuple[set[str], list[str]]]) -> set[str]:
    """Inherited ones counted, where a class of ours has them."""
    methods, bases = classes[name]
    inherited = [
        methods_of(other, classes) for other in classes if other != name and other.rpartition(".")[2] in bases
    ]
    return methods.union(*inherited)


def test_no_class_does_too_much() -> None:
    classes = own_classes()
    assert len(classes) > 300
    counts = {name: len(methods_of(name, classes)) for name in classes}
    assert {name: count for name, count in counts.items() if count > MOST_METHODS} == {}


def test_a_long_file_says_why() -> None:
    for module, path in MODULES.items():
        text = path.read_text()
        lines = len(text.splitlines())
        reason = LONG in " ".join((ast.get_docstring(ast.parse(text)) or "").split())
        assert lines <= MOST_LINES or reason, f"{module} has {lines} lines"
        assert not reason or lines > MOST_LINES, f"{module} is not long (any more)"
