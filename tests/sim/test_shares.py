"""A PC that falls asleep in mid-transfer keeps what it asked of nodes; others do not wait for it."""

from __future__ import annotations

from pathlib import Path

from tests.sim.cluster import CHUNK, SETTINGS, Cluster, SimClient

#: Each of the sleepers asks for all of it.
_TIGHT = {**SETTINGS, "transfer": {**SETTINGS["transfer"], "send_budget": 2 * CHUNK}}
_TIGHT_IN = {**SETTINGS, "transfer": {**SETTINGS["transfer"], "receive_budget": 2 * CHUNK}}
_SOON_S = 2.0


def asleep(cluster: Cluster, client: SimClient) -> None:
    """Its connections stand, and nothing passes."""
    for node in cluster.nodes:
        cluster.network.cut(client.host.name, node.name)


def test_downloads_do_not_wait_for_two_that_fell_asleep(root: Path) -> None:
    cluster = Cluster(root, 7, nodes=2, settings=_TIGHT)
    path = cluster.make_file("film", 40 * CHUNK)
    put = cluster.client().put(path)
    cluster.run(lambda: put.ended, "the upload")
    for number in range(2):
        client = cluster.client()
        get = client.get("film", root / f"asleep-{number}")
        cluster.run(lambda get=get: any(e.get("bytes") for e in get.events), "some bytes")  # type: ignore[misc]
        asleep(cluster, client)
    assert all(node.parts.service._outgoing.on_the_way for node in cluster.nodes)
    get = cluster.client().get("film", root / "copy")
    cluster.run(lambda: get.ended, "the download", _SOON_S)
    assert get.expect_done()["bytes_received"] == 40 * CHUNK
    cluster.verify({"film": path})


def test_uploads_do_not_wait_for_one_that_fell_asleep(root: Path) -> None:
    cluster = Cluster(root, 9, nodes=2, settings=_TIGHT_IN)
    client = cluster.client()
    client.put(cluster.make_file("asleep", 400 * CHUNK))
    admitted = [node.parts.service._incoming for node in cluster.nodes]
    cluster.run(lambda: any(incoming.reserved >= 2 * CHUNK for incoming in admitted), "all that is admitted")
    asleep(cluster, client)
    path = cluster.make_file("film", 40 * CHUNK)
    put = cluster.client().put(path)
    cluster.run(lambda: put.ended, "the upload", _SOON_S)
    assert put.expect_done()["bytes_sent"] == 40 * CHUNK
