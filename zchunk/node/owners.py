"""Whose a file is, in words."""

from __future__ import annotations

import sys


def owner_name(uid: int) -> str:
    if sys.platform != "win32":
        import pwd

        try:
            return f"the user {pwd.getpwuid(uid).pw_name}"
        except KeyError:
            pass
    return f"the user with the number {uid}"
