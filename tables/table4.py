"""Table 4: accuracy of the 20 and the 200 nearest neighbours on ImageNet.

Source: section 4.1, Table 4; section 8.3. The neighbours' votes are weighted by their similarity, as in the
work that the paper follows.

Runs: 2 pretrainings, both Table 3's, and 2 evaluations, each of which gives both columns. BYOL is not in the
paper's table: it and Barlow Twins stand in VICReg's Table 11, where the paper has its numbers from, and are
added here, marked. The other rows are quoted by the paper; `--baselines released` evaluates released encoders
of them instead. Expect, at paper scale, 66.7 and 64.9 % for BYOL, 66.2 and 63.0 % for ours.
"""

from __future__ import annotations

from collections.abc import Iterable

from configs import released
from configs.evaluate import knn
from configs.pretrain import byol_tuned_imagenet, msbreg_imagenet
from reproduce.nn.weights import Weights
from reproduce.report.table import Cell, Claim, Column, Measured, Reported, Row, Table, Values
from reproduce.spec import Pretrain

COLUMNS = (
    Column(key="top1_20", title="20-NN", digits=1),
    Column(key="top1_200", title="200-NN", digits=1),
)
KEYS = tuple(column.key for column in COLUMNS)
OURS = "Ours (K=4)"
PRINTED = {
    "top1_20": ("PCL", "VICReg", "SwAV (with multi-crop)"),
    "top1_200": ("NPID", "LA", "VICReg", "SwAV (with multi-crop)"),
}
"""The other rows of the paper's table that have a number in each column."""
LEFT_OUT = ("BYOL", "Barlow Twins")
"""The rows of the source that the paper leaves out."""

EMPTY = "The paper leaves this cell empty."
QUOTED = "This method's numbers are quoted; nothing is run for it here."
RELEASED = "This method's numbers are quoted; --baselines released evaluates the released encoder."
OF_VICREG = "VICReg's number (its Table 11), not the paper's."


def table() -> Table:
    """The paper's six rows, and two of its source that it leaves out."""
    rows = (
        _row("NPID", (None, "46.5"), "not stated"),
        _row("LA", (None, "49.4"), "not stated"),
        _row(
            "PCL",
            ("54.5", None),
            "200",
            weights=released.PCL_V1_200,
            note="The paper does not say which of PCL's two versions; of the two released encoders, v1 is evaluated, a choice.",
        ),
        _row("VICReg", ("64.5", "62.8"), "1000", weights=released.VICREG_1000),
        _row("SwAV (with multi-crop)", ("65.7", "62.7"), "800", weights=released.SWAV_800),
        _row("BYOL", ("66.7", "64.9"), "1000", run=byol_tuned_imagenet(1000), added=True),
        _row("Barlow Twins", ("64.8", "62.9"), "1000", weights=released.BARLOW_TWINS_1000, added=True),
        _row(OURS, ("66.2", "63.0"), "300", run=msbreg_imagenet(300)),
    )
    return Table(
        name="table4",
        number="4",
        title="Accuracy of the 20 and of the 200 nearest neighbours on ImageNet.",
        columns=COLUMNS,
        rows=rows,
        claims=CLAIMS,
        notes=(
            "The column Epochs is of pretraining, at paper scale; the baselines' are from their own papers.",
            "Numbers of the added rows, which are not the paper's, are not ranked among the paper's.",
        ),
        measure=_measured,
    )


def _row(
    label: str,
    printed: Iterable[str | None],
    epochs: str,
    *,
    run: Pretrain | None = None,
    weights: Weights | None = None,
    note: str = "",
    added: bool = False,
) -> Row:
    """One row: the paper's numbers (None: an empty cell), and the encoder that gives ours or takes the place
    of a quoted one."""
    ours = _measured(run) if run else {}
    instead = _measured(weights) if weights else {}
    cells = {
        key: Cell(
            paper=Reported(value=text, note=EMPTY if text is None else OF_VICREG if added else ""),
            ours=ours.get(key),
            released=instead.get(key),
            why_not_ours="" if run else RELEASED if weights else QUOTED,
        )
        for key, text in zip(KEYS, printed, strict=True)
    }
    return Row(
        label=label,
        shown=label.replace("(K=4)", "($K = 4$)"),
        cells=cells,
        facts={"Epochs": epochs},
        note=note,
        added=added,
        rule_before=label == OURS,
    )


def _measured(encoder: Pretrain | Weights) -> dict[str, Measured]:
    """By column; both come from one search for neighbours."""
    return {key: Measured(spec=knn(encoder), metric=key) for key in KEYS}


def _beats(v: Values, key: str, others: Iterable[str]) -> bool:
    return all(v(OURS, key) > v(label, key) for label in others)


SECTION = "section 4.1"
CLAIMS = (
    Claim(
        text="MSBReg outperforms the baselines (read as: those that the paper prints, in both columns).",
        holds=lambda v: all(_beats(v, key, PRINTED[key]) for key in KEYS),
        source=SECTION,
    ),
    Claim(
        text="MSBReg outperforms the baselines (read as: also BYOL and Barlow Twins, which stand in the source of the table).",
        holds=lambda v: all(_beats(v, key, (*PRINTED[key], *LEFT_OUT)) for key in KEYS),
        source=SECTION,
    ),
)
