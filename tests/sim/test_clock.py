"""The tracker's clock is set back between two uploads of one name."""

from __future__ import annotations

from pathlib import Path

from tests.sim.cluster import CHUNK, Cluster


def test_a_name_means_what_was_put_last_whatever_the_clock_says(root: Path) -> None:
    cluster = Cluster(root, seed=1)
    writer, ids = cluster.client(), []
    for hours in (0, 1, 2):
        path = cluster.make_file("plan.bin", 3 * CHUNK)
        cluster.clock._wall -= 3600 * hours
        outcome = writer.put(path)
        cluster.run(lambda outcome=outcome: outcome.ended, "the upload")  # type: ignore[misc]
        ids.append(outcome.expect_done()["file_id"])
    records, _ = cluster.store.list_files("")
    assert [record.file_id for record in records] == ids[::-1]
    assert [record.created_at_ms for record in records] == sorted(r.created_at_ms for r in records)
    read = writer.get("plan.bin", cluster.root / "got")
    cluster.run(lambda: read.ended, "the download")
    read.expect_done()
    assert (cluster.root / "got").read_bytes() == path.read_bytes()
    first, page = cluster.store.list_files("", limit=2)
    assert [r.file_id for r in first + cluster.store.list_files(page)[0]] == ids[::-1], "page by page too"
