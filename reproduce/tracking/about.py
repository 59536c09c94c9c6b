"""The description of a run in MLflow's UI: what it is, which cells use it, and the command that makes it.

about.shown(spec, "small", Purpose(table="table8", uses=uses, command="invoke table8"))
"""

from __future__ import annotations

from dataclasses import dataclass

from reproduce.nn.weights import Weights
from reproduce.spec import Evaluate, Spec
from reproduce.tracking import views
from reproduce.tracking.tags import NOTE, SOURCE, SOURCE_TYPE, TABLES, title
from reproduce.tracking.uses import Use, as_tag

MOST_CELLS = 20
"""Maximum number of cells of a table that a description lists."""


@dataclass(frozen=True, kw_only=True)
class Purpose:
    """The request that a run is executed for."""

    table: str = ""
    """Name of the table; empty for a single evaluation."""
    named: str = ""
    """Name of the table in words, such as `Table 8`."""
    uses: tuple[Use, ...] = ()
    """Cells that use the run, of every table at its scale."""
    command: str = ""
    """Command that makes the run."""


def shown(spec: Spec, scale: str, purpose: Purpose | None, tables: str = "") -> dict[str, str]:
    """Return the tags that describe a run in the UI.

    Args:
        tables: MLflow's id of the experiment with the records of tables, to which the description links.
    """
    purpose = purpose or Purpose()
    lines = [_words(spec)]
    for use in purpose.uses:
        more = len(use.cells) - MOST_CELLS
        cells = [f"- {_code(cell)}" for cell in use.cells[:MOST_CELLS]]
        whose = f"{use.named}, with changed settings or in a row of your own" if use.changed else use.named
        lines.append("\n".join([f"Used by {whose}:", "", *cells, *([f"- {more} more"] * (more > 0))]))
    if purpose.command:
        lines.append(f"Made by {_code(purpose.command)}.")
    if purpose.table:
        # On the same server, and also where no view of the table was saved.
        records = views.filtered(".", tables, views.of_record(purpose.table)).removeprefix("./")
        lines.append(
            f"Report: an artifact of [the records of {purpose.named}]({records}), "
            f"also {_code(f'reports/{scale}/{purpose.table}.html')}."
        )
    found = {NOTE: "\n\n".join(lines)}
    if purpose.command:
        found |= {SOURCE: purpose.command, SOURCE_TYPE: "LOCAL"}
    return found | ({TABLES: as_tag(purpose.uses)} if purpose.uses else {})


def imported(name: str, source: str) -> str:
    """Return the description of a run that was executed elsewhere."""
    return f"{_code(name)}, imported from {_code(source)}. Encoders and pictures are not imported."


def _words(spec: Spec) -> str:
    """Return what a run is, in a sentence of Markdown."""
    if isinstance(spec, Evaluate):
        encoder, name = spec.encoder, _code(title(spec.encoder))
        given = isinstance(encoder, Weights)
        what = f"the given encoder {name}" if given else f"the encoder of run {_code(encoder.id)}, {name},"
        return (
            f"Evaluation of {what} by {_code(spec.protocol.name)} on {spec.dataset.title}, seed {spec.seed}."
        )
    method = spec.method
    return (
        f"Pretraining by {_code(method.name)} with {method.num_views} views on {spec.dataset.title}: "
        f"{_code(spec.backbone)}, {spec.epochs} epochs, batch size {spec.batch_size}, seed {spec.seed}."
    )


def _code(text: str) -> str:
    """Return a text that Markdown shows as it is."""
    return "`{}`".format(" ".join(text.replace("`", "'").split()))
