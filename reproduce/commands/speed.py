"""The page of measured speeds: `docs/speed.md`, generated from the results of `bench/device.py`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from reproduce.messages import counted
from reproduce.site import PROJECT

RESULTS = PROJECT / "bench" / "results"
QUICK = ".quick.json"
"""End of the names of results of tiny cases, whose numbers mean nothing."""
HEAD = """# Speed on a GPU

`python -m bench.device` measures a new GPU within nine minutes and writes `bench/results/<card>.json`. It
compares the training step with the backbone alone, the whole pretraining from JPEG files with the step, and
several runs at once with one. If the site file names the images of Imagenette, it also trains a
[first result](small-scale.md#4-first-result-three-rows-40-epochs). Parts that no longer fit in the nine
minutes are skipped; `--only` measures them later. This page shows the results on GPUs. It is generated:
`invoke docs` writes it. Do not edit it by hand."""
NONE = "No GPU has been measured with this script yet."


def page(folder: Path = RESULTS) -> str:
    """Return the page as Markdown.

    Args:
        folder: folder of the results.
    """
    paths = [path for path in sorted(folder.glob("*.json")) if not path.name.endswith(QUICK)]
    found = [json.loads(path.read_text(encoding="utf-8")) for path in paths]
    sections = ["\n\n".join(_section(result)) for result in found if result["kind"] == "GPU"]
    return "\n\n".join([HEAD, *(sections or [NONE])]) + "\n"


def _section(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield the blocks about one device."""
    yield f"## {result['device']}"
    dirty = " with uncommitted changes" if result["dirty"] else ""
    torch = result["packages"]["torch"]
    yield f"{counted(result['cores'], 'core')}, PyTorch {torch}, commit {result['commit'][:7]}{dirty}."
    if result["records"]:
        rows = [
            (record["case"], _value(record), record["bar"] or "", record["detail"])
            for record in result["records"]
        ]
        yield _table(("case", "result", "bar", "detail"), rows)
    if result["table8"]:
        cells = [
            (cell["row"], cell["value"] or "-", cell["unit"], cell["reason"]) for cell in result["table8"]
        ]
        yield _table(("row of Table 8 at small scale, 40 epochs", "value", "unit", "reason"), cells)
    for kind in ("failed", "skipped"):
        if result[kind]:
            parts = "; ".join(f"{name} ({reason})" for name, reason in result[kind].items())
            yield f"{kind.capitalize()}: {parts}."


def _value(record: Mapping[str, Any]) -> str:
    """Return the value of a record with its unit, and a dash if it was not measured."""
    return "-" if record["value"] is None else f"{record['value']:.2f} {record['unit']}"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """Return a table; bars in its cells are escaped."""
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
