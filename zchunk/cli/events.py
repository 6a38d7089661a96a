"""`zchunk events`: what happens in the cluster, line by line, for people and for tools."""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any

import click

from zchunk.cli import render
from zchunk.cli.common import Invocation, everywhere, json_option, pass_invocation
from zchunk.cli.output import emit_json


@click.command()
@click.option(
    "--topic",
    "topics",
    multiple=True,
    metavar="TOPIC",
    help="Show only this topic (e.g. peer.up) or kind (e.g. peer); may be repeated.",
)
@click.option(
    "--since",
    type=click.IntRange(min=0),
    metavar="SEQ",
    help="Start after event SEQ of the tracker's current run; 0 starts with the oldest one that it keeps.",
)
@json_option
@everywhere()
@pass_invocation
def events(invocation: Invocation, topics: tuple[str, ...], since: int | None) -> None:
    """Follow the events of the cluster, until Ctrl-C.

    With --json, prints one object per line: topic, epoch, seq, time and the topic's own
    fields (docs/reference/events.md). No event is skipped: lost ones are fetched from the tracker, and a
    line with the topic `missed` reports those that it no longer has.
    """
    # Ctrl-C is how following ends.
    with invocation.client() as client, suppress(KeyboardInterrupt):
        for event in client.events(since):
            if is_wanted(event["topic"], topics):
                _print(invocation, event)


def is_wanted(topic: str, topics: tuple[str, ...]) -> bool:
    """Whether the topic, or its kind, is among those asked for; nothing asked is all."""
    kind = topic.partition(".")[0]
    return not topics or topic in topics or kind in topics or topic == "missed"


def _print(invocation: Invocation, event: dict[str, Any]) -> None:
    if invocation.json:
        emit_json(event)
    else:
        click.echo(render.event_line(event))
        sys.stdout.flush()
