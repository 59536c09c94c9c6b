"""The page of deviations from the paper: `docs/deviations.md`, generated from the notes of the tables.

    from reproduce.commands.deviations import page
    text = page()

Notes of tables, rows and cells are read from `tables/`, so the page cannot differ from the reports. Choices
that concern every table are listed in `CHOICES`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from reproduce.plan import SCALES, Request, table_names
from reproduce.report.markup import literal, markdown
from reproduce.report.table import Cell, Table

HEAD = """# Deviations from the paper

The paper leaves settings open, contradicts itself in places, and some cells of its scan cannot be read. This
page lists what this suite does in each case. It is generated: `invoke docs` writes it from the notes of the
tables, which every report prints too. Do not edit it by hand.

The paper's numbers are always stored as printed. A doubt about a number is a footnote, never a correction.
"""
CHOICES = (
    r"Precision: the small and paper scales train networks in bfloat16. The paper does not state its "
    r"precision, and its V100 GPUs do not support bfloat16. Only the backbones compute in bfloat16: "
    r"parameters, heads, losses and the optimiser stay in float32, and so does every evaluation. "
    r"`--set precision=float32` trains the backbones in float32, too. On recent GPUs the convolutions of "
    r"float32 use TF32, PyTorch's default.",
    r"Decay rate of the target: the paper does not state the initial $\tau$. It is 0.99 in all runs with "
    r"the paper's settings, as in the protocol of the small runs (htdt/self-supervised `cfg.py`) and in "
    r"BYOL's presets for up to 300 epochs (deepmind-research `byol/configs/byol.py`). Rows of BYOL with its "
    r"own settings have the $\tau$ of their preset.",
    r"BatchNorm: the paper does not state whether its 8 GPUs synchronise the statistics. Ours are those of "
    r"the whole batch over all devices.",
    r"Weights of the losses: section 4.5 states $\lambda_b = 0.5$ and $\lambda_s = 0.004$ for "
    r"ImageNet-100 only. The other data sets use the same values, a choice. For white noise, "
    r"$\mathcal{L}_s$ is $d (d + 1) / (n - 1)$: 32 on ImageNet-100 and STL-10, 129 on ImageNet, and 65 "
    r"in Table 6.",
    r"Eq. 1 is one direction of BYOL's loss; training sums both directions.",
    r"Eq. 3: the centroid is the mean of normalised projections and is not normalised again.",
    r"Eq. 4: each image has one random unit vector in each step, which its K views share.",
    r"Eq. 5: $n$ is the number of images in the whole batch over all processes, and the predictions "
    r"$p$ are not normalised.",
    r"Moving average: section 3.1 calls it bias-corrected but gives the plain formula; the plain one "
    r"is used.",
    r"Features: section 3.1 says that $z$ is used downstream and that the heads are discarded. "
    r"Evaluations use the backbone's pooled features.",
    r"Baselines: by default only MSBReg and BYOL are trained, and rows of other methods are quoted from "
    r"the paper. `--baselines released` evaluates released encoders, and `--baselines trained` trains the "
    r"methods that this suite has.",
    r"Paper scale: this project has not run anything at paper scale.",
)
"""Decisions that concern several tables; the code states each of them where it applies it."""
MANY = 4
"""Maximum number of cells that are listed by name; more are counted."""


def page() -> str:
    """Return the page as Markdown; tables that are not the paper's are left out."""
    built = {scale: [Request(table=name, scale=scale).build() for name in table_names()] for scale in SCALES}
    tables = {scale: [each for each in found if each.number] for scale, found in built.items()}
    blocks = [HEAD.strip(), "## In several tables", _bullets(CHOICES)]
    blocks += ["## Below paper scale", _bullets(_stand_ins(tables))]
    for table in tables["paper"]:
        blocks += [_heading(table), markdown(table.title)]
        lines = [*_notes(table), *_failing_claims(table), *_missing_numbers(table)]
        blocks.append(_bullets(lines) if lines else "Nothing deviates.")
    return "\n\n".join(blocks) + "\n"


def _bullets(texts: Iterable[str]) -> str:
    """Return texts, which are markup, as a list."""
    return "\n".join(f"- {_with_code(text)}" for text in texts)


def _with_code(text: str) -> str:
    """Return markup as Markdown, with the text between backticks as code."""
    pieces = text.split("`")
    return "".join(f"`{piece}`" if index % 2 else markdown(piece) for index, piece in enumerate(pieces))


def _heading(table: Table) -> str:
    return f"## Table{'' if table.number.isdigit() else 's'} {table.number}"


def _stand_ins(tables: Mapping[str, list[Table]]) -> Iterator[str]:
    """Yield what replaces the paper's data, networks and protocols at each scale, and what is left out."""
    for scale in SCALES:
        sentences: dict[str, None] = {}
        for paper, table in zip(tables["paper"], tables[scale], strict=True):
            caveats = [ours.spec.protocol.caveat for *_, ours in table.measured()]
            left_out = [table.cell(row.label, column.key).why_not_ours for row, column, _ in paper.measured()]
            sentences |= dict.fromkeys([table.stand_in, *caveats, *left_out])
        yield from (f"{scale.capitalize()} scale: {sentence}" for sentence in sentences if sentence)


def _notes(table: Table) -> Iterator[str]:
    """Yield the notes of the table, of its rows and of the paper's numbers."""
    yield from table.notes
    names = _names(table)
    for row in table.rows:
        if row.note:
            yield f"{names[row.label]}: {row.note}"
    yield from _by_text(table, lambda cell: cell.paper.note if cell.paper and cell.paper.value else "")


def _failing_claims(table: Table) -> Iterator[str]:
    """Yield the paper's sentences that its own printed numbers contradict."""
    for claim, verdict in zip(table.claims, table.judge_paper(), strict=True):
        if verdict == "fails":
            yield f"Fails on the paper's own numbers ({claim.source}): {claim.text}"


def _missing_numbers(table: Table) -> Iterator[str]:
    """Yield the reasons why cells lack the paper's number or ours."""
    yield from _by_text(table, lambda cell: cell.paper.note if cell.paper and not cell.paper.value else "")
    yield from _by_text(table, lambda cell: cell.why_not_ours)


def _by_text(table: Table, text_of: Callable[[Cell], str]) -> Iterator[str]:
    """Yield each text of the table's cells once, with the cells that have it."""
    names = _names(table)
    columns = {column.key: f"{column.group} {column.title}".strip() for column in table.columns}
    places: dict[str, list[str]] = {}
    for row in table.rows:
        for key, cell in row.cells.items():
            if text := text_of(cell):
                places.setdefault(text, []).append(f"{names[row.label]}, {columns[key]}")
    for text, where in places.items():
        yield f"{'; '.join(where) if len(where) <= MANY else f'{len(where)} cells'}: {text}"


def _names(table: Table) -> dict[str, str]:
    """Return the name of each row: as shown, or its label if several rows show the same name."""
    shown = {row.label: row.shown or literal(row.label) for row in table.rows}
    unique = len(set(shown.values())) == len(shown)
    return shown if unique else {label: literal(label) for label in shown}
