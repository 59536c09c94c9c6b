"""Kinds of files in place of the one that a name promises, each with what would work.

found = kinds.by_content(head)      # ("compressed by gzip", "unpack it with `gunzip`"), or None
kinds.by_mode(status.st_mode)       # "a folder"

Readers of data and of weights name such a file, because it is a frequent result of an incomplete download.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping

HEAD = 64
"""Number of bytes at the beginning of a file that tell a kind in STARTS."""
STARTS: Mapping[bytes, tuple[str, str]] = {
    b"version https://git-lfs.github.com/spec/": (
        "a Git LFS pointer, not the file that it stands for",
        "run `git lfs pull` in its repository, or download the file itself",
    ),
    b"/annex/objects/": (
        "a git-annex pointer, not the file that it stands for",
        "run `git annex get` in its repository",
    ),
    b"\x1f\x8b": ("compressed by gzip", "unpack it with `gunzip`"),
    b"BZh": ("compressed by bzip2", "unpack it with `bunzip2`"),
    b"\xfd7zXZ\x00": ("compressed by xz", "unpack it with `unxz`"),
    b"\x28\xb5\x2f\xfd": ("compressed by zstd", "unpack it with `unzstd`"),
    b"PK\x03\x04": ("a zip archive", "unpack it with `unzip`"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "unpack it"),
    b"Rar!": ("a RAR archive", "unpack it"),
}
"""Pointers, compressed files and archives by their first bytes, each with what would work."""


def by_content(head: bytes, starts: Mapping[bytes, tuple[str, str]] = STARTS) -> tuple[str, str] | None:
    """Return what a file is, and what would work; None if its first bytes are not among `starts`."""
    return next((kind for start, kind in starts.items() if head.startswith(start)), None)


def by_mode(mode: int) -> str:
    """Return what the mode of something that is not a regular file means, in words."""
    names = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
    return names.get(stat.S_IFMT(mode), "a device")
