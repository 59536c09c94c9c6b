"""Rows that set the paper's numbers next to ours, as most tables have them.

    _row = partial(paper_row, COLUMNS)
    _row("PIRL", ("81.1", "49.8"))                                          # quoted: nothing is run
    _row("OBoW", ("89.3", "56.8"), released=_measured(released.OBOW_200))   # quoted, with a released encoder
    _row("BYOL", ("86.6", "54.0"), ours=_measured(byol_tuned_imagenet(1000)))

`invoke table5` leaves our side of a quoted row empty. `invoke table5 --baselines released` fills it where the
row has a released encoder, one that the method's authors have published. `invoke table5 --baselines trained`
fills it where this suite has the method.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from reproduce.report.table import Cell, Column, Margin, Measured, Reported, Row

EMPTY = "The paper leaves this cell empty."
"""Note on a number that the paper does not have."""
QUOTED = "This method's numbers are quoted, and nothing is run for it here."
OFFERED = "This method's numbers are quoted, but {}."
RELEASED = "--baselines released evaluates the released encoder"
TRAINED = "--baselines trained trains it here"
UNTRAINED = "This suite does not train this method, whose numbers are quoted."
NOT_PRINTED = "The paper has no number here, and no recipe for one."
"""Reasons for a cell without a run of ours."""
EPOCHS = (
    "Epochs are those of pretraining, at paper scale. The baselines' epochs are those of their own papers."
)
SMALL_DETECTORS = (
    "At small scale, detectors are trained for a quarter of the iterations; those with a 3x3 stem see images "
    "of half the side. At smoke scale, they are trained for 200 steps on images of 64 pixels."
)
CHOICES = (
    r"The paper does not state the initial decay rate $\tau$ of the target network. In runs with the paper's "
    "settings it is 0.99, a choice (0.95 at smoke scale). Section 1 only calls the time constant of that "
    "network “typically thousands to tens of thousands of time steps”. The precision is a choice, too: "
    "backbones are trained in bfloat16, and heads, losses and evaluations are in float32 (at smoke scale, "
    "everything is). So is the BatchNorm of BYOL and ours: its statistics are those of the whole batch, over "
    "all devices."
)
OWN_TAU = r"BYOL with its own settings has the $\tau$ of its preset, 0.99 or 0.996 (byol/configs/byol.py)."
LAMBDAS_ON_IMAGENET = (
    r"Section 4.5 states $\lambda_b = 0.5$ and $\lambda_s = 0.004$ for ImageNet-100 only. Their use on "
    r"ImageNet is a choice. For white noise, $\mathcal{L}_s$ is $d (d + 1) / (n - 1)$: at batch $n = 512$, "
    r"129 with the $d = 256$ of ImageNet, but 32 with the $d = 128$ of ImageNet-100."
)
HALF_AT_TWO_VIEWS = (
    r"BYOL's loss sums two directions, but $\mathcal{L}_b$ and $\mathcal{L}_s$ are means over its two views "
    r"(Eqs. 4 and 6). At $K = 2$ a $\lambda$ therefore counts half of what it counts next to "
    r"$\mathcal{L}_c$. We read Eq. 2 so, literally; --set dispersive=sum sums both losses over the views."
)
"""Notes that several tables share."""
IMAGENET_MARGIN = Margin(
    0.4,
    "twice the standard deviation, 0.22, of five trainings of MoCo v1 (0.16 of MoCo v2): "
    "facebookresearch/moco README.md",
)
"""Margin of linear evaluation on ImageNet."""
MARGINS_ON_VOC = {
    key: Margin(
        2 * std,
        f"twice the standard deviation, {std:g}, of detectors: facebookresearch/moco detection/README.md",
    )
    for key, std in (("ap50", 0.2), ("ap75", 0.4), ("ap", 0.2))
}
COCO_MARGIN = Margin(
    0.3,
    "a gap within the random variation on COCO, by the author of MoCo: facebookresearch/moco issue 39",
)
"""Margins of detection on VOC and COCO."""


def paper_row(
    columns: Iterable[Column],
    label: str,
    printed: Iterable[str | None],
    facts: Mapping[str, str] = {},
    *,
    ours: Mapping[str, Measured] = {},
    released: Mapping[str, Measured] = {},
    trained: Mapping[str, Measured] | str = UNTRAINED,
    recipe: str = "",
    quoted: str = QUOTED,
    note: str = "",
    doubts: Mapping[str, str] = {},
    emphasis: Mapping[str, Literal["bold", "underline"]] = {},
    shown: str = "",
    added: bool = False,
    rule_before: bool = False,
) -> Row:
    """Return a row with the paper's number and our evaluation in each column.

    Args:
        columns: All columns of the table.
        printed: The paper's number in each column; None if the paper has none, usually an empty cell.
        facts: The descriptive columns by title, such as the backbone.
        ours: The evaluations that fill our side, by column key; empty in a quoted row.
        released: The evaluations of a released encoder, by column key.
        trained: The evaluations of the method as this suite trains it, by column key, or the reason why it
            does not.
        recipe: The note on the row with `--baselines trained`.
        quoted: The reason that a cell with neither evaluation shows.
        doubts: Notes on single numbers, by column key; on a missing number, why it is missing.
        emphasis: The emphasis of the paper's numbers as printed, by column key.
        shown: The printed name of the row. If empty, the label with its number of views as a formula.
    """

    def reason(key: str) -> str:
        if key in ours:
            return ""
        offers = [
            text
            for text, runs in ((RELEASED, released), (TRAINED, trained))
            if not isinstance(runs, str) and key in runs
        ]
        return OFFERED.format(", and ".join(offers)) if offers else quoted

    cells = {
        column.key: Cell(
            paper=Reported(
                value=number,
                note=doubts.get(column.key, "" if number else EMPTY),
                emphasis=emphasis.get(column.key, ""),
            ),
            ours=ours.get(column.key),
            released=released.get(column.key),
            trained=trained if isinstance(trained, str) else trained.get(column.key, NOT_PRINTED),
            why_not_ours=reason(column.key),
        )
        for column, number in zip(columns, printed, strict=True)
    }
    return Row(
        label=label,
        shown=shown or with_formula(label),
        cells=cells,
        facts=facts,
        note=note,
        recipe=recipe,
        added=added,
        rule_before=rule_before,
    )


def with_formula(label: str) -> str:
    """Return a label with its number of views as a formula: `Ours (K=4)` becomes `Ours ($K = 4$)`."""
    return re.sub(r"\(K=(\d+)\)", r"($K = \1$)", label)
