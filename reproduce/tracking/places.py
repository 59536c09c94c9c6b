"""Places of the artifacts of a sqlite store that was moved or copied.

    settle(file, artifacts)

MLflow records each artifact folder by its absolute path. A moved store would not find its artifacts, and a
copy would write into the original. `settle` therefore corrects the paths before anything else is done.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from urllib.parse import unquote, urlsplit

from reproduce.tracking.errors import of_file
from reproduce.tracking.tags import COMPLETE

TIMEOUT = 30.0
"""Seconds to wait while another process writes."""


def settle(file: Path, artifacts: Path, prefix: str) -> str:
    """Make the records of this project's experiments point into `artifacts`.

    A finished run keeps its recorded folder if only that one exists: sites with different folders of runs
    may share a store.

    Args:
        prefix: beginning of the names of the experiments.

    Returns:
        The former folder of one of them; empty if nothing had to change.

    Raises:
        StoreError: the file cannot be read or is locked.
    """
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=rw", uri=True, timeout=TIMEOUT)) as database:
            rows = database.execute(
                "SELECT experiment_id, name, artifact_location FROM experiments WHERE name GLOB ?",
                (f"{prefix}*",),
            ).fetchall()
            strayed = [
                (experiment, (artifacts / name).as_uri(), location)
                for experiment, name, location in rows
                if location.startswith("file:") and location != (artifacts / name).as_uri()
            ]
            if strayed:
                with database:
                    database.execute("BEGIN IMMEDIATE")
                    for experiment, new, _ in strayed:
                        _move(database, experiment, new)
    except sqlite3.Error as error:
        if "readonly" in str(error):  # then nothing can be written to the wrong place either
            return ""
        raise of_file(error, file) from None
    return str(_path(strayed[0][2])) if strayed else ""


def _move(database: sqlite3.Connection, experiment: int, new: str) -> None:
    """Make the records of one experiment and its runs point to the address `new`."""
    database.execute(
        "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?", (new, experiment)
    )
    runs = database.execute(
        "SELECT run_uuid, artifact_uri, EXISTS (SELECT 1 FROM tags WHERE tags.run_uuid = runs.run_uuid AND "
        "key = ?) FROM runs WHERE experiment_id = ?",
        (COMPLETE, experiment),
    ).fetchall()
    for run_id, old, complete in runs:
        place = f"{new}/{run_id}/artifacts"
        only_there = complete and not _path(place).exists() and _path(old).exists()
        if old != place and not only_there:
            database.execute("UPDATE runs SET artifact_uri = ? WHERE run_uuid = ?", (place, run_id))


def _path(address: str) -> Path:
    """Return the path of a folder's address."""
    return Path(unquote(urlsplit(address).path))
