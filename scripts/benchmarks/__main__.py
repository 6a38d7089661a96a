"""`scripts/bench NAME`: each benchmark is a module of this package with `main(arguments)`."""

from __future__ import annotations

import argparse
import signal
import sys
from importlib import import_module

from servers import Failed

BENCHMARKS = ("get", "lan", "memory", "put", "range", "rest", "resume", "swarm", "tracker")


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/bench", description="Figures of zchunk on this machine.")
    parser.add_argument("name", choices=BENCHMARKS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help="its own options: scripts/bench NAME --help")
    options = parser.parse_args()
    # However it is ended: what it has started and written goes.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return int(import_module(f"benchmarks.{options.name}").main(options.rest))
    except Failed as error:
        print(f"scripts/bench: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("scripts/bench: stopped", file=sys.stderr)
        return 130


sys.exit(main())
