"""Whose a file is, in words."""

from __future__ import annotations

import os
import sys

if sys.platform == "win32":

    def own_uid() -> int:
        return 0

    def owner_name(uid: int) -> str:
        return "another user"

else:
    import pwd

    def own_uid() -> int:
        return os.geteuid()

    def owner_name(uid: int) -> str:
        try:
            return f"the user {pwd.getpwuid(uid).pw_name}"
        except KeyError:
            return f"the user with the uid {uid}"
