"""What all tests share: Hypothesis without time limits, since a busy machine is no bug; and
the figures of tests that measure, shown at the end of every run."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

# A shell that runs the tests in the background, or nohup, has them ignored, and so would the commands
# that tests interrupt: what is handled here is the default in a process started from here.
signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, lambda number, frame: None)

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Of kills and of members who are cut off: when, and what it cost (PROOF.md)."""
    for report in terminalreporter.getreports("passed") + terminalreporter.getreports("failed"):
        for name, text in report.user_properties:
            if name == "figures" and report.when == "call":
                terminalreporter.write_line(f"{report.nodeid}: {text}")
