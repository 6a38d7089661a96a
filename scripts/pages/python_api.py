"""python.md: the public names of `zchunk`, with signatures and docstrings as they are in the code."""

from __future__ import annotations

import ast
import inspect

import zchunk
from pages.template import Filler
from zchunk import client

_WIDTH = 100
#: Methods that modules of the package call on a client; not for other programs.
INTERNAL = {"ask", "get_located", "locate_job", "opened", "run_job", "stream"}


def _class(name: str) -> ast.ClassDef:
    """One of the package's names, or one that the client's module knows."""
    found = getattr(zchunk, name) if name in zchunk.__all__ else getattr(client, name)
    [node] = ast.parse(inspect.getsource(found)).body
    assert isinstance(node, ast.ClassDef)
    return node


def _parameters(arguments: ast.arguments) -> list[str]:
    plain = arguments.posonlyargs + arguments.args
    given = [None] * (len(plain) - len(arguments.defaults)) + arguments.defaults
    shown = [
        _parameter(*pair) for pair in zip(plain, given, strict=True) if pair[0].arg not in ("self", "cls")
    ]
    named = [_parameter(*pair) for pair in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    return [*shown, *(["*", *named] if named else [])]


def _parameter(argument: ast.arg, default: ast.expr | None) -> str:
    return ast.unparse(argument) + (f" = {ast.unparse(default)}" if default is not None else "")


def _signature(node: ast.FunctionDef, name: str) -> str:
    returns = ast.unparse(node.returns) if node.returns is not None else "None"
    end = f" -> {returns}" if returns != "None" else ""
    if any(ast.unparse(mark) == "property" for mark in node.decorator_list):
        return f"{name}: {returns}"
    parameters = _parameters(node.args)
    line = f"{name}({', '.join(parameters)}){end}"
    if len(line) <= _WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {parameter},\n" for parameter in parameters) + f"){end}"


def _is_public(node: ast.stmt, owner: str) -> bool:
    if not isinstance(node, ast.FunctionDef):
        return False
    hidden = node.name.startswith("_") or (owner == "Client" and node.name in INTERNAL)
    return not hidden or (owner == "Client" and node.name == "__init__")


def _fields(node: ast.ClassDef) -> str:
    lines = [
        ast.unparse(part).replace(" = field(repr=False)", "")
        for part in node.body
        if isinstance(part, ast.AnnAssign) and not ast.unparse(part.target).startswith("_")
    ]
    return "```python\n" + "\n".join(lines) + "\n```" if lines else ""


def _documented(node: ast.ClassDef | ast.FunctionDef) -> str:
    return ast.get_docstring(node) or ""


def _described(heading: str, name: str) -> str:
    node = _class(name)
    parts = [f"## {name}", _documented(node), _fields(node)]
    for method in node.body:
        if _is_public(method, name):
            assert isinstance(method, ast.FunctionDef)
            is_init = method.name == "__init__"
            parts += [f"### {name}" + ("()" if is_init else f".{method.name}")]
            parts += [f"```python\n{_signature(method, name if is_init else method.name)}\n```"]
            parts += [_documented(method)]
    return "\n\n".join(part for part in parts if part)


def undocumented() -> list[str]:
    """Public methods of the client without a docstring."""
    methods = [part for part in _class("Client").body if isinstance(part, ast.FunctionDef)]
    return [part.name for part in methods if _is_public(part, "Client") and not _documented(part)]


FILLERS: dict[str, Filler] = {"described": _described}
