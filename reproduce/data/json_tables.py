"""JSON files with tables of images, annotations and categories, the format of COCO and iNaturalist.

    with json_tables.faults(path, source):
        content = json_tables.parse(path)
        images = json_tables.by_id(json_tables.table(content, "images"), "image")

A fault in the file becomes one line that names the file and the row.
"""

from __future__ import annotations

import json
import reprlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reproduce.data.lists import BOM
from reproduce.messages import InvalidError, grouped
from reproduce.runs import kinds
from reproduce.runs.files import read_regular

Row = Mapping[str, Any]
LONGEST = 60
"""Maximum number of characters of a value in a message."""
LARGEST = 1_000_000_000
"""Maximum number of bytes of a file: twice those of COCO's instances_train2017.json."""
MOST: Mapping[bytes, tuple[str, int]] = {
    b"{": ("objects", 10_000_000),
    b"[": ("lists", 20_000_000),
    b",": ("values", 200_000_000),
}
"""Maximum numbers of objects, lists and values of a file, by the sign that begins or separates them. COCO's
instances_train2017.json has 1, 3.5 and 70 million. A file that has only these takes a few GB."""
MOST_BITS = 63
"""Maximum number of bits of an id, as in the arrays of the benchmarks."""
SHORTENED = reprlib.Repr()
"""Representation of a value that does not write all of a large one."""
SHORTENED.maxlist = SHORTENED.maxdict = SHORTENED.maxarray = SHORTENED.maxtuple = LONGEST
SHORTENED.maxstring = SHORTENED.maxother = SHORTENED.maxlong = 2 * LONGEST


@contextmanager
def faults(path: Path, source: str) -> Iterator[None]:
    """Name the file in each error about it.

    Args:
        source: where to get the file, for the message.

    Raises:
        ValueError: the block found a fault.
    """
    try:
        yield
    except InvalidError as error:
        raise InvalidError(f"{path}: {error}. Get it: {source}.") from None


def _other_format(path: Path) -> str:
    """Return what the file is in place of JSON, and what would work; empty if that is unknown."""
    with path.open("rb") as file:
        head = file.read(kinds.HEAD)
    if head.startswith(BOM):
        return "begins with a byte order mark: save it as UTF-8 without one"
    found = kinds.by_content(head)
    return f"is {': '.join(found)}" if found else ""


def parse(path: Path, compact: Callable[[dict[str, Any]], dict[str, Any]] = lambda row: row) -> Row:
    """Return the content of the file.

    Args:
        compact: applied to each object of the file while it is parsed, to save memory.

    Raises:
        ValueError: the file is not JSON, is not an object, or an object has a key twice.
    """

    def hook(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        row = dict(pairs)
        if len(row) != len(pairs):
            counts = Counter(key for key, _ in pairs)
            twice = next(key for key in row if counts[key] > 1)
            raise InvalidError(
                f"an object with the id {quoted(row.get('id'))} has the key {quoted(twice)} twice"
            )
        return compact(row)

    try:
        content = json.loads(_text(path), object_pairs_hook=hook)
    except InvalidError:
        raise
    except (ValueError, RecursionError) as error:
        kind = "text" if isinstance(error, UnicodeDecodeError) else "JSON"
        raise InvalidError(f"it {_other_format(path) or f'is not {kind}: {error}'}") from None
    if not isinstance(content, Mapping):
        raise InvalidError(f"it is {quoted(content)}, not an object with images, annotations and categories")
    return content


def _text(path: Path) -> str:
    """Return the text of a file of limited size, with a limited number of values.

    Raises:
        ValueError: the file cannot be read, is too large, has too many values, or is not UTF-8.
    """
    try:
        content, _ = read_regular(path, LARGEST)
    except OSError as error:
        raise InvalidError(f"it cannot be read ({error.strerror})") from None
    for sign, (kind, most) in MOST.items():
        if (found := content.count(sign)) > most:
            raise InvalidError(f"it has about {grouped(found)} {kind}, but at most {grouped(most)} are read")
    return content.decode()


def table(content: Row, name: str) -> Sequence[Row]:
    """Return a table, each of whose rows is an object.

    Raises:
        ValueError: the table is missing, or it or one of its rows is something else.
    """
    if name not in content:
        raise InvalidError(f"it has no table of {name}")
    rows = content[name]
    if not isinstance(rows, list):
        raise InvalidError(f"its table of {name} is {quoted(rows)}, not a list")
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise InvalidError(f"row {number} of its {name} is {quoted(row)}, not an object")
    return rows


def by_id(rows: Sequence[Row], kind: str, *, least: int = 0) -> dict[int, Row]:
    """Return the rows of a table by id.

    Args:
        kind: name of a row, for the message.

    Raises:
        ValueError: two rows have the same id, or an id is not a whole number of at least `least`.
    """
    found: dict[int, Row] = {}
    for number, row in enumerate(rows, start=1):
        id_ = value(row, "id", f"{kind} number {number}")
        if type(id_) is not int or id_ < least:
            raise InvalidError(f"the {kind} id {quoted(id_)} is not a whole number of at least {least}")
        if id_.bit_length() > MOST_BITS:
            raise InvalidError(f"the {kind} id {quoted(id_)} has more than {MOST_BITS} bits")
        if id_ in found:
            raise InvalidError(f"more than one {kind} has the id {id_}")
        found[id_] = row
    return found


def value(row: Row, key: str, owner: str) -> Any:
    """Return a value of a row.

    Args:
        owner: name of the row, for the message.

    Raises:
        ValueError: the row has no such key.
    """
    if key not in row:
        raise InvalidError(f"{owner} has no {key}")
    return row[key]


def reference(row: Row, key: str, known: Mapping[int, Any], owner: str, kind: str) -> int:
    """Return the id of another row that a row refers to.

    Args:
        known: rows of the other table by id.
        owner, kind: names of both rows, for the message.

    Raises:
        ValueError: the other row does not exist.
    """
    id_ = value(row, key, owner)
    if type(id_) not in (int, float) or id_ not in known:  # a bool would count as 0 or 1
        raise InvalidError(f"{owner} refers to {kind} {quoted(id_)}, not one of the {len(known)} in the file")
    return int(id_)


def file_names(images: Mapping[int, Row]) -> dict[int, str]:
    """Return the file of each image, as a path relative to the folder of the images.

    Raises:
        ValueError: a name is not a path in that folder, or two images have the same file.
    """
    owners: dict[str, int] = {}
    for id_, row in images.items():
        name = value(row, "file_name", f"image {id_}")
        if not isinstance(name, str) or not _is_inside(name):
            raise InvalidError(f"image {id_} has the file name {quoted(name)}, which is not valid")
        if name in owners:
            raise InvalidError(f"the images {owners[name]} and {id_} have the same file, {name}")
        owners[name] = id_
    return {id_: name for name, id_ in owners.items()}


def _is_inside(name: str) -> bool:
    """Return True if a path stays in its folder and is written as on every system."""
    return name.isprintable() and "\\" not in name and not {"", ".", ".."} & set(name.split("/"))


def quoted(found: Any) -> str:
    """Return a value of the file for a message: short, on one line."""
    text = SHORTENED.repr(found)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."
