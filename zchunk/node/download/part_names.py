"""How the files beside a target are called."""

from __future__ import annotations

import os

PART, JOB, LOCK = ".zpart", ".zjob", ".zlock"

NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
TEMP = ".zjob.tmp"  # one writer per target, so one name: the next save takes a stray one away
ASIDE = ".aside-"
OURS = (PART, JOB, LOCK)
