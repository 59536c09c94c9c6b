"""Errors of the tracking store as one line: what was asked, what was found, what would work.

    with translated(address, site.without_secrets):
        client.set_tag(...)         # raises StoreError in place of an exception of MLflow or another library

An error that may be temporary is worth a retry (`retry.py`). An error that only a person can mend is raised
at once, such as a damaged file. The texts of libraries are shown without secrets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from reproduce.messages import UserError, first_line, without_secrets
from reproduce.tracking.address import Address
from reproduce.tracking.locks import holders

LIBRARIES = ("mlflow", "requests", "urllib3", "sqlalchemy", "alembic", "sqlite3", "google", "json", "http")
"""Packages whose exceptions are the store's; `http` and `json` read a server's answer."""
FULL = ("database or disk is full", "disk I/O error")
"""SQLite's messages for a file that cannot grow because the disk is full or a quota is reached."""
DAMAGED = ("malformed", "not a database", "unsupported file format")
STATUS = re.compile(r"error code (\d{3}) !=|too many (\d{3}) error|\b(\d{3}) (?:Client|Server) Error")
"""HTTP status in a text of MLflow or requests."""
NOT_MLFLOW = ("valid JSON", "Expecting value", "Exceeded 30 redirects", "BadStatusLine", "ParseError")
"""Texts of libraries about an answer that no MLflow server gives."""
NO_SERVER = ("NewConnectionError", "NameResolutionError", "Connection refused")
SLOW = ("timed out", "timeout exception", "Timeout")
CLOSED = ("Connection aborted", "Connection reset", "RemoteDisconnected", "Connection broken", "Broken pipe")
TRANSIENT = frozenset({401, 403, 408, 429, 500, 502, 503, 504})
"""HTTP status codes of errors that may be temporary; an administrator may renew a password, too."""
ADVICE = {
    401: "it asks for a valid user and password. Set them in the address (user:password@ before the host), "
    "or in MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    403: "this user may not do this, or the server does not accept this name of its host (--allowed-hosts)",
    429: "it receives too many requests. Try again later",
}
"""Problem and remedy, by HTTP status."""
LONGEST_TEXT = 200
"""Maximum characters of a library's text."""
NOT_FOUND = frozenset({"RESOURCE_DOES_NOT_EXIST", "NOT_FOUND", "ENDPOINT_NOT_FOUND"})
"""MLflow's error codes for something that does not exist."""


class StoreError(UserError, ConnectionError):
    """The tracking store does not do what was asked.

    Attributes:
        temporary: True if a later attempt may succeed.
        code: MLflow's error code; empty if there is none.
        original: message of the library's exception; empty if there is none.
    """

    def __init__(self, message: str, *, temporary: bool = False, code: str = "", original: str = "") -> None:
        super().__init__(message)
        self.temporary, self.code, self.original = temporary, code, original


class UnreachableError(StoreError):
    """The store did not answer within the waiting time."""


@contextmanager
def translated(address: Address, clean: Callable[[str], str]) -> Iterator[None]:
    """Raise StoreError in place of a library's exception; every other exception passes.

    Args:
        clean: function that removes secrets from a text.

    Raises:
        StoreError: a library raised an exception, which is its cause.
    """
    try:
        yield
    except StoreError:
        raise
    except Exception as error:
        if not _of_library(error):
            raise
        if address.file is not None:
            raise of_file(error, address.file) from error
        text = in_short(error, clean)
        raise (_of_server if address.server else _of_database)(error, text, address) from error


def temporary(error: BaseException) -> bool:
    """Return True if a later attempt may succeed where this error was raised."""
    return error.temporary if isinstance(error, StoreError) else isinstance(error, ConnectionError)


def of_file(error: Exception, file: Path) -> StoreError:
    """Return the error of a sqlite file as one line.

    Args:
        error: exception of sqlite3, SQLAlchemy or MLflow.
    """
    text, code = in_short(error), str(getattr(error, "error_code", ""))
    whole = str(error)
    store = f"The tracking store {file}"
    if "locked" in whole:
        return StoreError(
            f"{store} is locked by {holders(file)}: wait until it ends, or stop it.", temporary=True
        )
    if problem := next((words for words in FULL if words in whole), ""):
        return StoreError(
            f"{store} cannot be written ({problem}): free some disk space or quota, and the same command "
            "resumes from the last checkpoint."
        )
    if any(words in whole for words in DAMAGED):
        return StoreError(
            f"{store} is damaged ({text}): restore a copy, or move it away and start with a new one."
        )
    if "readonly" in whole:
        return StoreError(f"{store} is read-only: change its permissions, or set another store.")
    if "unable to open" in whole:
        return StoreError(f"{store} cannot be opened ({text}): it must be a file that you may read.")
    if line := _other_schema(whole, store, f"sqlite:///{file}"):
        return StoreError(line)
    return StoreError(f"{store} refuses a request: {text}", code=code, original=text)


def in_short(error: BaseException, clean: Callable[[str], str] = without_secrets) -> str:
    """Return the first line of an exception without its name and without secrets; a library's is cut."""
    text = clean(first_line(error) or type(error).__name__)
    return text if isinstance(error, UserError) else text[:LONGEST_TEXT]


def _of_library(error: Exception) -> bool:
    package = type(error).__module__.partition(".")[0]
    return package in LIBRARIES or isinstance(error, ConnectionError | TimeoutError)


def _other_schema(text: str, store: str, uri: str) -> str:
    """Return a line about tables of another MLflow version, or "" if the error is a different one."""
    if "out-of-date database schema" not in text and "Can't locate revision" not in text:
        return ""
    found = re.search(r"found version (\w+), but expected (\w+)", text)
    versions = f" (schema {found[1]}, here {found[2]})" if found else ""
    return (
        f"{store} has tables of another MLflow version{versions}: install the version that wrote it. If that "
        f"one is older, `mlflow db upgrade '{uri}'` converts them; copy the store before."
    )


def _of_database(error: Exception, text: str, address: Address) -> StoreError:
    """Return the error of a database, whose text is given, as one line."""
    code = str(getattr(error, "error_code", ""))
    store = f"The tracking store {address.shown}"
    if line := _other_schema(str(error), store, address.shown):
        return StoreError(line)
    if type(error).__name__ in ("OperationalError", "InterfaceError") or code == "TEMPORARILY_UNAVAILABLE":
        return StoreError(
            f"{store} does not answer: {text}. Start it, or check its address, user and password.",
            temporary=True,
        )
    return StoreError(f"{store} refuses a request: {text}", code=code, original=text)


def _of_server(error: Exception, text: str, address: Address) -> StoreError:
    """Return the error of a server, or of what answers at its address, as one line."""
    code = str(getattr(error, "error_code", ""))
    whole = f"{type(error).__name__}: {error}"
    found = STATUS.search(whole)
    status = int(next(filter(None, found.groups()))) if found else _status(error)
    store = f"The tracking server {address.shown}"
    if "JSON" in type(error).__name__ or any(words in whole for words in NOT_MLFLOW):
        return _not_mlflow(address)
    if any(words in whole for words in NO_SERVER):
        return StoreError(
            f"No tracking server answers at {address.shown}. Start it, or set another MLFLOW_TRACKING_URI.",
            temporary=True,
        )
    if "SSL" in whole:
        return StoreError(f"{store} has no valid certificate for https, or expects http: check the address.")
    if any(words in whole for words in SLOW):
        return StoreError(f"{store} did not answer in time: see its log, or try again.", temporary=True)
    if any(words in whole for words in CLOSED) or isinstance(error, ConnectionError):
        return StoreError(f"{store} closed the connection: see its log, or try again.", temporary=True)
    if status in TRANSIENT:
        return _failing(status, address)
    if found and found[1]:  # neither an answer nor an error of MLflow, such as 404 with a page
        return _not_mlflow(address)
    code = "NOT_FOUND" if status == 404 and not code else code
    return StoreError(f"{store} refuses a request: {text}", code=code, original=text)


def check_answer(status: int, body: bytes, address: Address) -> None:
    """Raise StoreError unless a server's answer to a question about its health is MLflow's."""
    if status in TRANSIENT:
        raise _failing(status, address)
    if status != 200 or body.strip() != b"OK":
        raise _not_mlflow(address)


def _failing(status: int, address: Address) -> StoreError:
    """Return the error of a server that answers with a status in TRANSIENT."""
    problem = f"refuses the request ({status}): {ADVICE[status]}" if status in ADVICE else f"fails ({status})"
    remedy = "." if status in ADVICE else ": see its log, or try again."
    return StoreError(f"The tracking server {address.shown} {problem}{remedy}", temporary=True)


def _not_mlflow(address: Address) -> StoreError:
    """Return the error of something else that answers at the address, such as a login page."""
    return StoreError(
        f"The tracking server {address.shown} answers, but not as MLflow does: check the address, and any "
        "proxy or login.",
        temporary=True,
    )


def _status(error: Exception) -> int:
    """Return the HTTP status of MLflow's or requests' exception, or 0 if it has none."""
    if (response := getattr(error, "response", None)) is not None:
        return int(response.status_code)
    status = getattr(error, "get_http_status_code", None)  # recognises MLflow's exceptions without an import
    return int(status()) if status is not None else 0
