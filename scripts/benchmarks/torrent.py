"""libtorrent as a program, for rivals.py: a v2 torrent, its seeders, a download.

    python -m benchmarks.torrent make FILE TORRENT
    python -m benchmarks.torrent seed TORRENT FOLDER         prints its port, runs until stdin ends
    python -m benchmarks.torrent get TORRENT FOLDER PORT...  ends when the file is complete

Its own pace is not held back: no limits, no encryption, no discovery, peers are told by port.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import libtorrent as lt  # type: ignore[import-not-found]

SETTINGS = {
    "listen_interfaces": "127.0.0.1:0",
    "enable_dht": False,
    "enable_lsd": False,
    "enable_upnp": False,
    "enable_natpmp": False,
    "allow_multiple_connections_per_ip": True,
    "enable_incoming_utp": False,
    "enable_outgoing_utp": False,
    "out_enc_policy": 2,
    "in_enc_policy": 2,
    "aio_threads": 4,
    "hashing_threads": 2,
    "unchoke_slots_limit": 64,
    "max_out_request_queue": 1500,
    "max_allowed_in_request_queue": 2000,
    "send_buffer_watermark": 3 << 20,
    "send_buffer_low_watermark": 1 << 20,
    "send_buffer_watermark_factor": 150,
    "max_queued_disk_bytes": 64 << 20,
    "alert_mask": lt.alert.category_t.error_notification | lt.alert.category_t.status_notification,
}


def make(file: Path, torrent: Path) -> None:
    made = lt.create_torrent(
        [lt.create_file_entry(file.name, file.stat().st_size)], 0, lt.create_torrent.v2_only
    )
    lt.set_piece_hashes(made, str(file.parent))
    torrent.write_bytes(lt.bencode(made.generate()))


def _add(torrent: Path, folder: Path, flags: int) -> tuple[lt.session, lt.torrent_handle]:
    session = lt.session(SETTINGS)
    wanted = lt.add_torrent_params()
    wanted.ti = lt.torrent_info(str(torrent))
    wanted.save_path = str(folder)
    wanted.flags = flags
    return session, session.add_torrent(wanted)


def seed(torrent: Path, folder: Path) -> None:
    session, _ = _add(torrent, folder, lt.torrent_flags.seed_mode | lt.torrent_flags.upload_mode)
    while not session.listen_port():
        time.sleep(0.01)
    print(session.listen_port(), flush=True)
    sys.stdin.read()


def get(torrent: Path, folder: Path, ports: list[int]) -> None:
    session, handle = _add(torrent, folder, lt.torrent_flags.default_flags & ~lt.torrent_flags.auto_managed)
    handle.resume()
    for port in ports:
        handle.connect_peer(("127.0.0.1", port))
    while not handle.status().is_seeding:
        session.wait_for_alert(20)
        for alert in session.pop_alerts():
            if "error" in alert.what():
                sys.exit(alert.message())
    handle.flush_cache()


def main() -> None:
    what, first, second, *rest = sys.argv[1:]
    if what == "make":
        make(Path(first), Path(second))
    elif what == "seed":
        seed(Path(first), Path(second))
    else:
        get(Path(first), Path(second), [int(word) for word in rest])


if __name__ == "__main__":
    main()
