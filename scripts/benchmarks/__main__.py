"""`scripts/bench NAME`: each benchmark is a module of this package with `main(arguments)`."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

from servers import Failed

BENCHMARKS = ("get", "lan", "put", "resume", "tracker")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Figures of zchunk on this machine.")
    parser.add_argument("name", choices=BENCHMARKS)
    options, rest = parser.parse_known_args()
    try:
        return int(import_module(f"benchmarks.{options.name}").main(rest))
    except Failed as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        return 1


sys.exit(main())
