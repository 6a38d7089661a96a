"""Prints the test files that changed since main, or that import a module that did.

Where no test imports a module itself, those count that import it through others. Tests of real
processes, which run all of the product whatever they import, count where they changed themselves.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

import grimp

ROOT = Path(__file__).parents[1]
#: folders of tests that start no processes of their own
QUICK = ("unit", "sim", "fuzz")


def git(*words: str) -> list[str]:
    return subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()


def changed_files() -> set[str]:
    """Since this branch left main; on main itself, or where there is none, since the last commit."""
    since = git("merge-base", "main", "HEAD") or ["HEAD"]
    return {*git("diff", "--name-only", since[0]), *git("ls-files", "--others", "--exclude-standard")}


def module_of(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def is_test(module: str) -> bool:
    return module.startswith("tests.") and module.rpartition(".")[2].startswith("test_")


def is_quick(module: str) -> bool:
    return is_test(module) and module.split(".")[1] in QUICK


def tests_of(module: str, graph: grimp.ImportGraph) -> set[str]:
    """Those that import it, also by what tests share."""
    found: set[str] = set()
    todo = [module]
    while todo:
        importers = graph.find_modules_that_directly_import(todo.pop())
        new = {importer for importer in importers if importer.startswith("tests.")} - found
        found |= new
        todo += new
    return set(filter(is_quick, found)) or set(filter(is_quick, graph.find_downstream_modules(module)))


def chosen(files: Iterable[str], graph: grimp.ImportGraph) -> set[str]:
    modules = {module_of(path) for path in files if path.endswith(".py")} & graph.modules
    return set().union(filter(is_test, modules), *(tests_of(module, graph) for module in modules))


def main() -> None:
    graph = grimp.build_graph("zchunk", "tests", cache_dir=None)
    for module in sorted(chosen(changed_files(), graph)):
        print(module.replace(".", "/") + ".py")


if __name__ == "__main__":
    main()
