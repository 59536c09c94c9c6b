"""The processes that hold a lock on a file, in words.

holders(path)       # "process 4711 (python -m reproduce.worker)"
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from reproduce.messages import without_secrets

LOCKS = Path("/proc/locks")
"""List of all locks on Linux."""
LONGEST_COMMAND = 80
"""Maximum characters of a holder's command."""


def holders(path: Path) -> str:
    """Return the other processes that hold a lock on a file, in words."""
    found = [f"process {pid}{_command(pid)}" for pid in _pids(path)]
    return " and ".join(found) or "another process"


def _pids(path: Path) -> list[int]:
    """Return the ids of the other processes that hold a lock on a file, as far as this machine shows them."""
    try:
        inode, lines = path.stat().st_ino, LOCKS.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    pids = set()
    for line in lines:  # "1: POSIX ADVISORY WRITE 4711 fe:00:1234 0 EOF"; an arrow marks one that waits
        fields = line.split()
        if "->" not in fields and len(fields) > 5 and fields[5].rpartition(":")[2] == str(inode):
            pids.add(int(fields[4]))
    return sorted(pid for pid in pids if pid > 0 and pid != os.getpid())


def _command(pid: int) -> str:
    """Return the command of a process in brackets, or "" if it is not visible."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
        command = without_secrets(" ".join(words).strip())
        return f" ({command[:LONGEST_COMMAND]})" if command else ""
    return ""
