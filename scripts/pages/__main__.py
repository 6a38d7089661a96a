"""Writes docs/reference; with --check says which pages are not as the code is, and changes nothing."""

from __future__ import annotations

import sys
from pathlib import Path

from pages import commands, config, errors, events, messages, python_api
from pages.template import fill

TEMPLATES = Path(__file__).parent
TARGET = TEMPLATES.parents[1] / "docs" / "reference"
FILLERS = {
    "commands": commands.FILLERS,
    "config": config.FILLERS,
    "errors": errors.FILLERS,
    "events": events.FILLERS,
    "protocol": messages.FILLERS,
    "python": python_api.FILLERS,
}


def page(name: str) -> str:
    """As it should be."""
    return fill((TEMPLATES / f"{name}.md").read_text(), FILLERS[name])


def main() -> None:
    paths = {TARGET / f"{name}.md": page(name) for name in FILLERS}
    stale = [path for path, text in paths.items() if not path.exists() or path.read_text() != text]
    if "--check" in sys.argv[1:]:
        sys.exit("\n".join(f"{path} is not current: run scripts/reference" for path in stale) or 0)
    TARGET.mkdir(parents=True, exist_ok=True)
    for path in stale:
        path.write_text(paths[path])
        print(f"wrote {path.relative_to(TARGET.parents[1])}")


if __name__ == "__main__":
    main()
