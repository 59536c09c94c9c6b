"""The address of a tracking store: checked before anything is opened, and split from its password.

    address = parse("http://me:secret@host:5000")
    address.uri, address.shown        # both http://host:5000
    address.login                     # the environment variables by which MLflow finds user and password

No library receives a server's password in an address, which errors, logs and tracebacks would repeat.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import SplitResult, quote, unquote, urlsplit

from reproduce.messages import InvalidError, public, unprintable

WORKS = (
    "Set MLFLOW_TRACKING_URI, or tracking_uri in the site file, to a database (sqlite:////path/mlflow.db) or "
    "a server (http://host:port), or leave both empty."
)
DRIVERS = {
    "postgresql": ("psycopg2", "psycopg2-binary"),
    "postgresql+psycopg2": ("psycopg2", "psycopg2-binary"),
    "postgresql+psycopg": ("psycopg", "psycopg[binary]"),
    "postgresql+pg8000": ("pg8000", "pg8000"),
    "mysql": ("MySQLdb", "mysqlclient"),
    "mysql+mysqldb": ("MySQLdb", "mysqlclient"),
    "mysql+pymysql": ("pymysql", "pymysql"),
    "mysql+mysqlconnector": ("mysql.connector", "mysql-connector-python"),
    "mssql": ("pyodbc", "pyodbc"),
    "mssql+pyodbc": ("pyodbc", "pyodbc"),
    "mssql+pymssql": ("pymssql", "pymssql"),
}
"""Module and package of the driver of each kind of database, by scheme."""
SQLITE = ("sqlite", "sqlite+pysqlite")
OPTION = re.compile(r"\?\w+=[^/]*$")
"""Options at the end of a database's address."""


@dataclass(frozen=True, kw_only=True)
class Address:
    """The checked address of a tracking store."""

    uri: str = field(repr=False)
    """Address for MLflow. A server's contains no password."""
    shown: str
    """Address for texts."""
    file: Path | None = None
    """Path of the sqlite file; None if the store is something else."""
    server: bool = False
    host: str = ""
    """Host of a server or a database; empty if there is none."""
    port: int = 0
    """Port of a server."""
    login: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Environment variables in which MLflow finds a server's user and password."""
    driver: tuple[str, str] = ("", "")
    """Module and package of a database's driver."""

    @property
    def authorization(self) -> dict[str, str]:
        """HTTP header of the login; empty if the address contains none."""
        if not self.login:
            return {}
        login = ":".join(self.login.values())
        return {"Authorization": f"Basic {base64.b64encode(login.encode()).decode()}"}

    @property
    def missing_driver(self) -> str:
        """Package of the database's driver if it is not installed; else empty."""
        module, package = self.driver
        return package if module and find_spec(module.partition(".")[0]) is None else ""


def parse(given: str) -> Address:
    """Return an address from the site file or the environment.

    Raises:
        ValueError: MLflow has no such store; the message names what would work.
    """
    shown = public(given)
    if character := unprintable(given):
        raise InvalidError(f"The tracking store is '{shown}', which contains {character!r}. {WORKS}")
    scheme, separator, _ = given.partition("://")
    scheme = scheme.lower()
    if scheme in SQLITE and separator:
        return _sqlite(given[len(scheme) + 3 :], shown)
    if not separator or scheme == "file":
        raise InvalidError(f"The tracking store is '{shown}', {_instead(given)} {WORKS}")
    if scheme in ("http", "https"):
        return _server(given, shown)
    if scheme in DRIVERS:
        return Address(
            uri=given, shown=shown, host=_split(given, shown).hostname or "", driver=DRIVERS[scheme]
        )
    means = " The scheme is spelt postgresql://." if scheme == "postgres" else ""
    raise InvalidError(
        f"The tracking store is '{shown}', but '{scheme}' is not a scheme of a store.{means} {WORKS}"
    )


def _instead(given: str) -> str:
    """Return what an address without a usable scheme seems to be, and what the user may mean."""
    if re.fullmatch(r"[\w.-]+:\d+(/.*)?", public(given)):
        return f"which has no scheme: perhaps http://{public(given)} is meant."
    if given.partition(":")[0] in ("databricks", "databricks-uc", "uc"):
        return "which this project does not support."
    return "a folder; MLflow no longer writes to folders."


def _sqlite(path: str, shown: str) -> Address:
    """Return the address of a sqlite file, whose path is taken literally."""
    if not path.startswith("/") or path == "/" or Path(path).name == ":memory:":
        raise InvalidError(
            f"The tracking store is '{shown}', which names no file: three slashes start a relative path, "
            f"four an absolute one. {WORKS}"
        )
    if OPTION.search(path):
        raise InvalidError(
            f"The tracking store is '{shown}', but options after '?' are not supported: give the file alone."
        )
    file = Path(path[1:]).absolute()
    return Address(uri=f"sqlite:///{file}", shown=f"sqlite:///{file}", file=file)


def _server(given: str, shown: str) -> Address:
    """Return the address of a server, with its user and password apart."""
    parts = _split(given, shown)
    if not parts.hostname:
        raise InvalidError(f"The tracking store is '{shown}', which names no host. {WORKS}")
    login: dict[str, str] = {}
    uri = given
    if parts.username and parts.password:
        login = {
            "MLFLOW_TRACKING_USERNAME": unquote(parts.username),
            "MLFLOW_TRACKING_PASSWORD": unquote(parts.password),
        }
        uri = parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()
    return Address(
        uri=uri.rstrip("/"),
        shown=shown.rstrip("/"),
        server=True,
        host=parts.hostname,
        port=parts.port or (443 if parts.scheme == "https" else 80),
        login=login,
    )


def _split(given: str, shown: str) -> SplitResult:
    """Return the parts of an address whose host and port are valid."""
    try:
        parts = urlsplit(given)
        _ = parts.port  # raises an error if it is not a port
    except ValueError:
        encoded = " A password must be encoded: / as %2F, @ as %40. The host follows it after @."
        hint = encoded if given != shown else ""
        raise InvalidError(
            f"The tracking store is '{shown}', whose host or port is not valid.{hint} {WORKS}"
        ) from None
    return parts


def spellings(file: Path) -> tuple[str, ...]:
    """Return addresses that may lead SQLAlchemy to a file, the preferred first.

    Its newer versions decode a path and all of them end it at a question mark. MLflow creates the folders of
    an address that starts with `sqlite:///` without decoding them.
    """
    plain = f"sqlite:///{file}"
    return (plain,) if not re.search(r"[%?]", plain) else (f"sqlite+pysqlite:///{quote(str(file))}", plain)
