"""Every error a user, a tool or a peer can meet, under one base.

Each class has a `code` (the wire's and the JSON output's name for it), an
`exit_code` (SPEC "Command line") and says whether trying again unchanged may
help (`retryable`). `to_wire` and `from_wire` are the one table between classes
and codes. A bug is never one of these: machines that meet an event which their
state forbids raise `IllegalEvent`, which nothing catches on purpose.
"""

from __future__ import annotations

from typing import Any, ClassVar


class ZchunkError(Exception):
    """What happened, to which peer or file, and what to do, in one line.

    `details` are JSON-able facts for tools (`missing_peers`, `job_id`, ...);
    they travel with the error over the wire and into `--json` output.
    """

    code: ClassVar[str] = "unexpected"
    exit_code: ClassVar[int] = 1
    retryable: ClassVar[bool] = False

    def __init__(self, message: str, **details: Any) -> None:
        super().__init__(message)
        self.message = message
        self.details = details

    def to_json(self) -> dict[str, Any]:
        """The object that `--json` prints: `{"event": "error", "code", "exit_code", "message", ...}`."""
        known = {
            "event": "error",
            "code": self.code,
            "exit_code": self.exit_code,
            "message": self.message,
        }
        # Details may come from a peer: none of them stands in for what the error is.
        return {**known, **self.details, **known}


class IllegalEvent(RuntimeError):
    """A pure machine was given an event its state forbids: a bug of ours."""

    def __init__(self, message: str, history: object = "") -> None:
        """`history`: what led to it, the last line the latest (node/bulk/history.py)."""
        told = str(history)
        super().__init__(f"{message}; what led to it:\n{told}" if told else message)


# -- exit 1: what no user can mend by a better command --------------------------------


class StorageFailure(ZchunkError):
    """The disk, or the file system on it, is broken (EIO and the like), or a file of ours is
    damaged; the data is not trusted."""

    code = "storage_failure"


class StorageUnavailable(ZchunkError):
    """The operating system refuses for now: no descriptors or memory are left, or a mount is stale.
    No data is known to be lost."""

    code = "storage_unavailable"
    retryable = True


class Unreadable(ZchunkError):
    """The node holds the chunk and cannot read it now (its disk, descriptors, memory or rights): it is
    neither damaged nor lost."""

    code = "unreadable"
    retryable = True


class StoreOffline(ZchunkError):
    """The disk with a node's chunks is unplugged, or the node is stopping: nothing is read or deleted."""

    code = "store_offline"
    retryable = True


class PeerUnreachable(ZchunkError):
    """No connection to a peer, or no answer in time."""

    code = "peer_unreachable"
    retryable = True


class Busy(ZchunkError):
    """At a limit, or another program has the tracker's database locked; try again after a pause."""

    code = "busy"
    retryable = True


class MalformedMessage(ZchunkError):
    """Not a message of this protocol, or one that contradicts itself."""

    code = "malformed"


class UnknownMessage(ZchunkError):
    """An unknown type, or one this side does not answer."""

    code = "unknown_message"


class OutputLost(ZchunkError):
    """A command only: its result could not be written to standard output (`no_space` where that is
    why)."""

    code = "output_lost"


class HelloFirst(ZchunkError):
    """The tracker does not know this connection yet: say hello again."""

    code = "hello_first"
    retryable = True


class StaleIncarnation(ZchunkError):
    """Another process runs as this node, from a copied home; this one must stop."""

    code = "stale_incarnation"


class NotYetStored(ZchunkError):
    """A commit names chunks without a confirmed copy on a peer that is up."""

    code = "not_yet_stored"
    retryable = True


class OpenDoor(ZchunkError):
    """A process's check of its own ports: one accepted an unknown key, or could not be checked. The
    process ends."""

    code = "open_door"


class ForeignStore(ZchunkError):
    """A deletion ordered by another or an older tracker store."""

    code = "foreign_store"


# -- exit 2: usage --------------------------------------------------------------------


class InvalidUsage(ZchunkError):
    """A wrong argument."""

    code = "usage"
    exit_code = 2


class ConfigError(InvalidUsage):
    """A wrong configuration."""

    code = "config"


class TargetExists(InvalidUsage):
    """The target has other content."""

    code = "target_exists"


class AmbiguousName(InvalidUsage):
    """A name or prefix that several files have."""

    code = "ambiguous_name"


class NameTaken(InvalidUsage):
    """Another node has this name; `details["suggestion"]` is free."""

    code = "name_taken"


class AlreadyRunning(InvalidUsage):
    """Another process works on this home, or on this target."""

    code = "already_running"


class ClientClosed(InvalidUsage):
    """A `zchunk.Client` was closed, by this thread or another one."""

    code = "client_closed"


class ForeignProcess(InvalidUsage):
    """A `zchunk.Client`, or a file it opened, was used after a fork, without its threads."""

    code = "foreign_process"


class StateLost(InvalidUsage):
    """A part of a home is missing that existed before: it is not created again unasked."""

    code = "state_lost"


class KeyNeeded(InvalidUsage):
    """The file is encrypted, and neither passphrase nor key file was given."""

    code = "key_needed"


# -- exits 3 to 10, 130 ----------------------------------------------------------------


class TooFewPeers(ZchunkError):
    """Fewer peers than it takes."""

    code = "too_few_peers"
    exit_code = 3
    retryable = True


class PeersUnsure(TooFewPeers):
    """A tracker that has just started cannot answer yet: nodes that it knows still have time to
    register. `details["unsure"]` names them, `details["unsure_s"]` is how long they have."""

    code = "peers_unsure"


class PartialDownload(ZchunkError):
    """A download ended with chunks missing; the part is kept."""

    code = "partial"
    exit_code = 4
    retryable = True


class IntegrityError(ZchunkError):
    """Content that does not match its hashes."""

    code = "integrity"
    exit_code = 5


class ChunkCorrupt(IntegrityError):
    """The bytes of a chunk do not match its hash."""

    code = "chunk_corrupt"


class FileChanged(IntegrityError):
    """The file was written to while it was being uploaded."""

    code = "file_changed"


class ManifestInvalid(IntegrityError):
    """No canonical manifest, or not that of the file id."""

    code = "manifest_invalid"


class TrackerUnreachable(ZchunkError):
    """The tracker does not answer."""

    code = "tracker_unreachable"
    exit_code = 6
    retryable = True


class NotAllowed(ZchunkError):
    """No member, revoked, or a role that may not do this; also a key that was refused in the
    handshake."""

    code = "not_allowed"
    exit_code = 7


class TokenRefused(NotAllowed):
    """A token that is unknown, damaged, expired, withdrawn or used up."""

    code = "token_refused"


class NotJoined(NotAllowed):
    """This home has not joined a cluster."""

    code = "not_joined"


class TransportMismatch(NotAllowed):
    """One side uses curve, the other plain (never sent: the connecting side finds it out)."""

    code = "transport_mismatch"


class WrongServer(NotAllowed):
    """What listens there has another key than it should, or is another program (never sent)."""

    code = "wrong_server"


class WrongKey(NotAllowed):
    """The passphrase or key file is not the one that the file was encrypted with."""

    code = "wrong_key"


class UnsupportedVersion(NotAllowed):
    """Another version of protocol or of a store."""

    code = "unsupported_version"


class NoSpace(ZchunkError):
    """No room."""

    code = "no_space"
    exit_code = 8
    retryable = True


class NotFound(ZchunkError):
    """No such file, chunk or peer."""

    code = "not_found"
    exit_code = 9


class Cancelled(ZchunkError):
    """A download was cancelled: nothing of it is kept, so it starts over when run again."""

    code = "cancelled"
    exit_code = 10


class Interrupted(ZchunkError):
    """Stopped by the user; resumable."""

    code = "interrupted"
    exit_code = 130
    retryable = True


def _all_classes(base: type[ZchunkError]) -> list[type[ZchunkError]]:
    found = [base]
    for child in base.__subclasses__():
        found += _all_classes(child)
    return found


#: wire code <-> class; codes are unique (tests/unit/test_errors.py).
BY_CODE: dict[str, type[ZchunkError]] = {cls.code: cls for cls in _all_classes(ZchunkError)}


def from_wire(code: str, message: str, details: dict[str, Any]) -> ZchunkError:
    """The error a peer sent; a code of a newer version becomes the plain base class."""
    error = BY_CODE.get(code, ZchunkError)(message)
    error.details = details
    return error
