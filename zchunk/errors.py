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
        """The `{"event": "error", ...}` object of SPEC "Machine-readable output"."""
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
    """A chunk is held but cannot be read now, which does not mean that it is damaged: it is kept,
    and read again later."""

    code = "unreadable"
    retryable = True


class StoreOffline(ZchunkError):
    """A node's store lost its marker file (disk unplugged): nothing is read or deleted."""

    code = "store_offline"
    retryable = True


class PeerUnreachable(ZchunkError):
    code = "peer_unreachable"
    retryable = True


class Busy(ZchunkError):
    """The other side is at its limit; asking again later helps."""

    code = "busy"
    retryable = True


class MalformedMessage(ZchunkError):
    """Bytes that are not a valid message: the other side's mistake."""

    code = "malformed"


class UnknownMessage(ZchunkError):
    code = "unknown_message"


class OutputLost(ZchunkError):
    """A command's result could not be written to stdout."""

    code = "output_lost"


class HelloFirst(ZchunkError):
    """The tracker does not know this connection yet: say hello again."""

    code = "hello_first"
    retryable = True


class StaleIncarnation(ZchunkError):
    """Another process runs as this node, from a copied home; this one must stop."""

    code = "stale_incarnation"


class NotYetStored(ZchunkError):
    """A commit names chunks that no live peer has confirmed."""

    code = "not_yet_stored"
    retryable = True


class OpenDoor(ZchunkError):
    """A process's check of its own ports: they accept an unknown key, or could not be checked."""

    code = "open_door"


class ForeignStore(ZchunkError):
    """A deletion ordered by another or an older tracker store (SPEC R8)."""

    code = "foreign_store"


# -- exit 2: usage --------------------------------------------------------------------


class InvalidUsage(ZchunkError):
    code = "usage"
    exit_code = 2


class ConfigError(InvalidUsage):
    code = "config"


class TargetExists(InvalidUsage):
    code = "target_exists"


class AmbiguousName(InvalidUsage):
    code = "ambiguous_name"


class NameTaken(InvalidUsage):
    """Another peer has this name; `details["suggestion"]` is free."""

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
    code = "too_few_peers"
    exit_code = 3
    retryable = True


class PeersUnsure(TooFewPeers):
    """A tracker that has just started cannot answer yet: nodes that it knows still have time to
    register. `details["unsure"]` names them, `details["unsure_s"]` is how long they have."""

    code = "peers_unsure"


class PartialDownload(ZchunkError):
    code = "partial"
    exit_code = 4
    retryable = True


class IntegrityError(ZchunkError):
    code = "integrity"
    exit_code = 5


class ChunkCorrupt(IntegrityError):
    code = "chunk_corrupt"


class FileChanged(IntegrityError):
    """The file was written to while it was being uploaded."""

    code = "file_changed"


class ManifestInvalid(IntegrityError):
    code = "manifest_invalid"


class TrackerUnreachable(ZchunkError):
    code = "tracker_unreachable"
    exit_code = 6
    retryable = True


class NotAllowed(ZchunkError):
    code = "not_allowed"
    exit_code = 7


class TokenRefused(NotAllowed):
    code = "token_refused"


class NotJoined(NotAllowed):
    """This home has not joined a cluster."""

    code = "not_joined"


class TransportMismatch(NotAllowed):
    """One side encrypts (`transport: curve`) and the other does not."""

    code = "transport_mismatch"


class WrongServer(NotAllowed):
    """The process that listens there is another one: it has another key, or is not zchunk."""

    code = "wrong_server"


class WrongKey(NotAllowed):
    """The passphrase or key file is not the one that the file was encrypted with."""

    code = "wrong_key"


class UnsupportedVersion(NotAllowed):
    code = "unsupported_version"


class NoSpace(ZchunkError):
    code = "no_space"
    exit_code = 8
    retryable = True


class NotFound(ZchunkError):
    code = "not_found"
    exit_code = 9


class Cancelled(ZchunkError):
    """A download was cancelled: nothing of it is kept, so it starts over when run again."""

    code = "cancelled"
    exit_code = 10


class Interrupted(ZchunkError):
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
