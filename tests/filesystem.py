"""A layer between the code of this process and the operating system: it records, fails, and forgets.

    with Disk(folder) as disk:                   # records the calls below `folder`, in order
        checkpoint.save(folder, ...)
    disk.calls                                   # [Call("open", "epoch-00001.pt"), ..., Call("fsync", ".")]
    for crash in disk.crashes(): ...             # the files that a crash of the machine may leave
    with Disk(folder, before=fault(7, EIO)): ... # the seventh call fails

A crash keeps what was synchronised. A name (a new file, a rename, a deletion) that its folder was not
synchronised after, and content that its file was not synchronised after, may be lost. Names are lost in
reverse order; content is lost as a whole, cut in half, replaced by zeros, or not lost. A killed process loses
neither.

Only the functions of Python's `os`, `io.open` and `flock` are intercepted. `Disk.check` finds what bypassed
them: the files must be those that follow from the record.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

PATHS = (
    *("stat", "lstat", "scandir", "listdir", "unlink", "remove", "mkdir", "rmdir"),
    *("truncate", "utime", "chmod"),
)
"""Functions whose first argument is a path, or the descriptor of an open file."""
DESCRIPTORS = ("read", "pread", "fstat", "fsync", "fdatasync", "ftruncate")
"""Functions whose first argument is the descriptor of an open file."""
LOST, HALF, ZEROS, WHOLE = "lost", "half", "zeros", "whole"
"""What a crash leaves of content that was not synchronised."""


class Call(NamedTuple):
    """A call of the operating system."""

    name: str
    path: str
    """Path relative to the layer's folder."""
    to: str = ""
    """New path of a rename."""
    writes: bool = False
    """True for an `open` for writing."""

    def __str__(self) -> str:
        return f"{self.name} {self.path}{' -> ' + self.to if self.to else ''}"


Before = Callable[[int, Call], None]
"""Function of the number of a call, from 1, and the call. It is called first; an OSError is the outcome."""


def no_fault(number: int, call: Call) -> None:
    """Let a call be made."""


def fault(number: int, code: int, *, lasting: bool = False) -> Before:
    """Return a function that fails one call, or, with `lasting`, that and all later ones."""

    def fail(index: int, call: Call) -> None:
        if index == number or (lasting and index > number):
            named = call.name in PATHS or call.name in ("open", "replace", "rename")
            raise OSError(code, os.strerror(code), *([call.path] if named else []))

    return fail


@dataclass
class Change:
    """A change of a file or a name, for the simulation of a crash."""

    call: Call
    file: int = 0
    """Number of the file that is created, written or synchronised."""
    offset: int = 0
    data: bytes = b""


@dataclass
class Crash:
    """The files that a crash leaves."""

    files: dict[str, bytes]
    after: str
    """Last call before the crash, and what was lost."""
    complete: bool
    """True if the crash follows all calls."""

    def write(self, folder: Path) -> Path:
        """Write the files to an empty folder, and return it."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, content in self.files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder


@dataclass
class Disk:
    """The layer, inside a `with` block; see above."""

    root: Path
    before: Before = no_fault
    shift: float = 0.0
    """Seconds by which the clock of the file system is ahead of the machine's."""
    calls: list[Call] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._open: dict[int, tuple[str, int]] = {}
        """Path and number of the file of each open descriptor."""
        self._real: list[tuple[Any, str, Any]] = []
        self._inside = threading.local()
        self._lock = threading.RLock()
        self.start = {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in sorted(self.root.rglob("*"))
            if path.is_file()
        }
        self._names = {name: number for number, name in enumerate(self.start, start=1)}
        self._next = len(self._names) + 1

    def __enter__(self) -> Self:
        self._system = {name: getattr(os, name) for name in dir(os) if callable(getattr(os, name))}
        self._io_open = io.open
        for name in PATHS:
            self._replace(os, name, self._by_path(name))
        for name in DESCRIPTORS:
            self._replace(os, name, self._by_descriptor(name))
        for name in ("replace", "rename"):
            self._replace(os, name, self._renaming(name))
        self._replace(os, "open", self._opening)
        self._replace(os, "close", self._closing)
        self._replace(os, "write", self._writing)
        for name in ("sendfile", "copy_file_range"):
            self._replace(os, name, self._refused)
        self._replace(io, "open", self._io)
        self._replace(builtins, "open", self._io)
        self._replace(fcntl, "flock", self._locking)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for module, name, real in reversed(self._real):
            setattr(module, name, real)
        self._real.clear()

    def _replace(self, module: Any, name: str, function: Any) -> None:
        self._real.append((module, name, getattr(module, name)))
        setattr(module, name, function)

    @property
    def leaked(self) -> list[str]:
        """Paths of the descriptors that are still open."""
        return [path for path, _ in self._open.values()]

    def check(self) -> None:
        """Assert that the files are those that follow from the record: nothing bypassed the layer."""
        *_, last = self._after(len(self.changes), varieties=(WHOLE,))
        found = {
            str(path.relative_to(self.root)): path.read_bytes()
            for path in self.root.rglob("*")
            if path.is_file()
        }
        assert found == last.files, "something was written that the layer did not see"

    # The intercepted functions

    def _name(self, path: object) -> str | None:
        """Return a path or a descriptor relative to the folder; None if it is elsewhere."""
        if isinstance(path, int):
            return self._open[path][0] if path in self._open else None
        try:
            text = os.fspath(path)  # type: ignore[call-overload]
        except TypeError:
            return None
        text = os.fsdecode(text)
        root = str(self.root)
        return os.path.relpath(text, root) if text == root or text.startswith(f"{root}/") else None

    def _made(self, call: Call, act: Callable[[], Any], change: Callable[[Any], None] | None = None) -> Any:
        """Make a call after `before`, and record it and its change; what `before` does is not intercepted."""
        with self._lock:
            self.calls.append(call)
            number = len(self.calls)
        self._inside.busy = True
        try:
            self.before(number, call)
        except OSError as error:
            if error.filename is not None:
                error.filename = str(self.root / error.filename)
            raise
        finally:
            self._inside.busy = False
        with self._lock:
            result = act()
            if change:
                change(result)
        return result

    @property
    def _busy(self) -> bool:
        return getattr(self._inside, "busy", False)

    def _note(self, call: Call, **fields: Any) -> None:
        self.changes.append(Change(call, **fields))

    def _by_path(self, name: str) -> Callable[..., Any]:
        real = self._system[name]

        def function(path: Any = ".", *rest: Any, **options: Any) -> Any:
            relative = None if self._busy else self._name(path)
            if relative is None or options.get("dir_fd") is not None:
                return real(path, *rest, **options)
            call = Call(name, relative)

            def changed(result: Any) -> None:
                if name == "truncate":
                    number = self._open[path][1] if isinstance(path, int) else self._names[relative]
                    self._note(call, file=number, offset=rest[0])
                elif name in ("unlink", "remove", "mkdir", "rmdir"):
                    self._note(call)
                    self._names.pop(relative, None)

            return self._shifted(self._made(call, lambda: real(path, *rest, **options), changed))

        return function

    def _by_descriptor(self, name: str) -> Callable[..., Any]:
        real = self._system[name]

        def function(descriptor: Any, *rest: Any) -> Any:
            number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
            if self._busy or number not in self._open:
                return real(descriptor, *rest)
            path, file = self._open[number]
            call = Call("fsync" if name == "fdatasync" else name, path)

            def changed(result: Any) -> None:
                if name in ("fsync", "fdatasync"):
                    self._note(call, file=file)
                elif name == "ftruncate":
                    self._note(call._replace(name="truncate"), file=file, offset=rest[0])

            # The disk is simulated: nothing is waited for.
            act = (lambda: None) if call.name == "fsync" else (lambda: real(descriptor, *rest))
            return self._shifted(self._made(call, act, changed))

        return function

    def _shifted(self, result: Any) -> Any:
        """Return a status with the times of the file system's clock; anything else as it is."""
        if not self.shift or not isinstance(result, os.stat_result):
            return result
        fields = {name: getattr(result, name) for name in dir(result) if name.startswith("st_")}
        for name in ("st_atime", "st_mtime", "st_ctime"):
            fields[name] += self.shift
            fields[f"{name}_ns"] += int(self.shift * 1e9)
        named = {name: value for name, value in fields.items() if name not in STATUS}
        return os.stat_result([fields[name] for name in STATUS], named)

    def _renaming(self, name: str) -> Callable[..., Any]:
        real = self._system[name]

        def function(source: Any, target: Any, **options: Any) -> Any:
            old, new = self._name(source), self._name(target)
            if self._busy or old is None or new is None:
                assert self._busy or old == new, "a rename into the folder or out of it"
                return real(source, target, **options)
            call = Call("rename", old, new)

            def changed(result: Any) -> None:
                self._note(call)
                self._names[new] = self._names.pop(old)

            return self._made(call, lambda: real(source, target, **options), changed)

        return function

    def _opening(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        relative = None if self._busy or dir_fd is not None else self._name(path)
        if relative is None:
            return int(self._system["open"](path, flags, mode, dir_fd=dir_fd))
        unnamed = flags & os.O_TMPFILE == os.O_TMPFILE
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR)) and not unnamed
        call = Call("open", relative, writes=writes)

        def opened(descriptor: int) -> None:
            number = self._names.get(relative, 0)
            if writes and not number:
                number = self._names[relative] = self._next
                self._next += 1
                self._note(call._replace(name="create"), file=number)
            if writes and flags & os.O_TRUNC:
                self._note(call._replace(name="truncate"), file=number)
            self._open[descriptor] = (relative, 0 if unnamed else number)

        return int(self._made(call, lambda: self._system["open"](path, flags, mode), opened))

    def _closing(self, descriptor: int) -> None:
        if not self._busy:
            self._open.pop(descriptor, None)
        self._system["close"](descriptor)

    def _writing(self, descriptor: int, data: Any) -> int:
        if self._busy or descriptor not in self._open:
            return int(self._system["write"](descriptor, data))
        path, file = self._open[descriptor]
        call = Call("write", path)

        def written(size: int) -> None:
            end = os.lseek(descriptor, 0, os.SEEK_CUR)
            if file:
                self._note(call, file=file, offset=end - size, data=bytes(memoryview(data).cast("B")[:size]))

        return int(self._made(call, lambda: self._system["write"](descriptor, data), written))

    def _refused(self, *arguments: Any, **options: Any) -> int:
        """Have Python copy a file by reading and writing."""
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    def _locking(self, descriptor: Any, operation: int) -> None:
        real = next(real for module, name, real in self._real if name == "flock")
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        if self._busy or number not in self._open or operation & fcntl.LOCK_UN:
            real(descriptor, operation)
        else:
            self._made(Call("flock", self._open[number][0]), lambda: real(descriptor, operation))

    def _io(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        if self._busy or self._name(file) is None:
            return self._io_open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw: Any = _Raw(file, mode.replace("t", "").replace("b", ""), closefd, opener)
        if buffering == 0:
            return raw
        kind: Any = io.BufferedRandom if "+" in mode else io.BufferedReader
        buffered = (io.BufferedWriter if mode[0] in "wax" and "+" not in mode else kind)(raw)
        return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding, errors, newline)

    # Crashes

    def crashes(self, *, complete: bool = False) -> Iterator[Crash]:
        """Yield what a crash before the first call, after each change, or after all may leave, each once.

        Args:
            complete: True for crashes after all calls alone.
        """
        seen = set()
        for number in range(len(self.changes) if complete else 0, len(self.changes) + 1):
            for crash in self._after(number):
                key = (crash.complete, *sorted(crash.files.items()))
                if key not in seen:
                    seen.add(key)
                    yield crash

    def _after(self, number: int, varieties: tuple[str, ...] = (LOST, HALF, ZEROS, WHOLE)) -> Iterator[Crash]:
        """Yield what a crash after `number` changes may leave; the last one lost nothing."""
        names = {name: index for index, name in enumerate(self.start, start=1)}
        now = dict(enumerate(self.start.values(), start=1))
        safe = dict(now)
        pending: list[Change] = []
        for change in self.changes[:number]:
            call, file = change.call, change.file
            if call.name == "write":
                content = now[file].ljust(change.offset, b"\0")
                now[file] = (
                    content[: change.offset] + change.data + content[change.offset + len(change.data) :]
                )
            elif call.name == "truncate":
                now[file] = now[file][: change.offset].ljust(change.offset, b"\0")
            elif call.name == "fsync" and file:
                safe[file] = now[file]
            elif call.name == "fsync":
                for each in [each for each in pending if call.path in _folders(each.call)]:
                    pending.remove(each)
                    _rename(names, each)
            else:
                if call.name == "create":
                    now[file], safe[file] = b"", b""
                pending.append(change)
        last = str(self.changes[number - 1].call) if number else "the start"
        for kept in range(len(pending) + 1):
            found = dict(names)
            for change in pending[:kept]:
                _rename(found, change)
            for variety in varieties:
                files = {name: _left(safe[file], now[file], variety) for name, file in found.items()}
                after = f"{last}; {kept} of {len(pending)} names kept, content {variety}"
                yield Crash(files, after, number == len(self.changes))


STATUS = (
    *("st_mode", "st_ino", "st_dev", "st_nlink", "st_uid", "st_gid", "st_size"),
    *("st_atime", "st_mtime", "st_ctime"),
)
"""Fields of a status in their order as a tuple."""


def _folders(call: Call) -> set[str]:
    """Return the folders whose names a call changes."""
    return {str(Path(name).parent) for name in (call.path, call.to) if name}


def _rename(names: dict[str, int], change: Change) -> None:
    """Change the names of files as a change does."""
    call = change.call
    if call.name == "create":
        names[call.path] = change.file
    elif call.name == "rename" and call.path in names:
        names[call.to] = names.pop(call.path)
    elif call.name in ("unlink", "remove"):
        names.pop(call.path, None)


def _left(safe: bytes, now: bytes, variety: str) -> bytes:
    """Return what a crash leaves of a file."""
    if variety == LOST or safe == now:
        return safe
    if variety == WHOLE:
        return now
    same = len(safe) if now.startswith(safe) else 0
    return now[: (same + len(now)) // 2] if variety == HALF else now[:same] + bytes(len(now) - same)


class _Raw(io.RawIOBase):
    """A file whose every read and write is a call of `os`."""

    FLAGS = {"r": os.O_RDONLY, "w": os.O_WRONLY | os.O_CREAT | os.O_TRUNC}  # noqa: RUF012
    FLAGS |= {"a": os.O_WRONLY | os.O_CREAT | os.O_APPEND, "x": os.O_WRONLY | os.O_CREAT | os.O_EXCL}

    def __init__(self, file: Any, mode: str, closefd: bool, opener: Any) -> None:
        flags = self.FLAGS[mode[0]] | os.O_CLOEXEC
        if "+" in mode:
            flags = flags & ~(os.O_RDONLY | os.O_WRONLY) | os.O_RDWR
        self._reads, self._writes = mode[0] == "r" or "+" in mode, mode != "r"
        self.name, self.mode, self._closes = file, f"{mode}b", closefd
        if isinstance(file, int):
            self._descriptor = file
        else:
            self._descriptor = opener(file, flags) if opener else os.open(file, flags, 0o666)

    def readable(self) -> bool:
        return self._reads

    def writable(self) -> bool:
        return self._writes

    def seekable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def readinto(self, buffer: Any) -> int:
        data = os.read(self._descriptor, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def write(self, data: Any) -> int:
        return os.write(self._descriptor, data)

    def seek(self, offset: int, whence: int = 0) -> int:
        return os.lseek(self._descriptor, offset, whence)

    def truncate(self, size: int | None = None) -> int:
        size = self.tell() if size is None else size
        os.ftruncate(self._descriptor, size)
        return size

    def close(self) -> None:
        if not self.closed:
            super().close()
            if self._closes:
                os.close(self._descriptor)
