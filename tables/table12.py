"""Table 12: alignment and uniformity of the embeddings on ImageNet-100.

Source: section 11, Table 12; the two losses are Wang and Isola's (ssnl/align_uniform). Top-1 of linear
evaluation, and both losses of the projections of two views of validation images. The views are drawn as in
pretraining. The paper states neither the layer nor the temperature. Uniformity is measured at t = 2, and
L_uniform is trained at t = 3. Pooled ReLU features cannot reach the paper's -3.8; their losses are logged.

Runs: 4 pretrainings, 3 of them shared with Table 8, 4 linear evaluations and 4 evaluations of alignment and
uniformity.

Expect, at paper scale, ours to be the most uniform (near -3.8; the least possible in 128 dimensions is about
-3.94), the least aligned and the most accurate.
"""

from __future__ import annotations

from functools import partial

from configs.evaluate import alignment, linear
from configs.pretrain import byol, imagenet100, msbreg
from configs.rows import CHOICES, HALF_AT_TWO_VIEWS, paper_row
from reproduce.report.claim import Claim, Number, Sum, best, lowest, rising
from reproduce.report.plots import Agreement, Plane
from reproduce.report.table import Column, Measured, Table
from reproduce.spec import Pretrain

COLUMNS = (
    Column(key="acc", title="Acc. (%)", digits=1),
    Column(key="alignment", title="Alignment", unit="", better=""),
    Column(key="uniformity", title="Uniformity", unit="", better="lower"),
)
BASELINES = ("BYOL", "BYOL + L_uniform", "BYOL + L_b + L_s")
OURS = "Ours (K=4)"
LAMBDA_UNIFORM = 2 / 3
"""Weight of L_uniform next to BYOL's two directions: the ratio 3 : 1 of ssnl/moco_align_uniform, at t = 3; a
choice, as the paper gives no weight."""
UNIFORMITY_STAYS = r"$\mathcal{L}_\text{uniform}$ is a mean in both readings."


def table() -> Table:
    """Return the paper's four rows."""
    rows = (
        _row(
            "BYOL",
            ("71.9", "0.25", "-1.52"),
            ours=_measured(byol(imagenet100)),
            doubts={"acc": "71.92 in Table 8, 71.56 in Table 1; each number is kept as printed."},
        ),
        _row(
            "BYOL + L_uniform",
            ("72.1", "0.27", "-2.95"),
            shown=r"BYOL + $\mathcal{L}_\text{uniform}$",
            ours=_measured(byol(imagenet100, lambda_uniform=LAMBDA_UNIFORM)),
        ),
        _row(
            "BYOL + L_b + L_s",
            ("72.8", "0.26", "-2.92"),
            shown=r"BYOL + $\mathcal{L}_b$ + $\mathcal{L}_s$",
            ours=_measured(byol(imagenet100, lambda_b=0.5, lambda_s=4e-3)),
            doubts={"acc": "72.41 in Table 8, 72.4 in Table 11; each number is kept as printed."},
        ),
        _row(OURS, ("80.4", "0.36", "-3.8"), ours=_measured(msbreg(imagenet100, num_views=4))),
    )
    return Table(
        name="table12",
        number="12",
        title="Linear evaluation, alignment loss and uniformity loss on ImageNet-100.",
        columns=COLUMNS,
        rows=rows,
        claims=CLAIMS,
        figures=FIGURES,
        notes=(
            "The paper states neither the layer nor the temperature of the two losses. Ours are measured on "
            "the projections of two views of validation images, at $t = 2$; the losses of the pooled "
            "features are logged as well.",
            r"The weight of $\mathcal{L}_\text{uniform}$ is not stated. Ours is 2/3 next to BYOL's two "
            r"directions, at $t = 3$: the 3 : 1 of ssnl/moco_align_uniform.",
            "A higher alignment loss means a worse alignment, but the paper counts it in favour of its "
            "method. No alignment loss is bold.",
            f"{HALF_AT_TWO_VIEWS} {UNIFORMITY_STAYS}",
            CHOICES,
        ),
    )


_row = partial(paper_row, COLUMNS)


def _measured(run: Pretrain) -> dict[str, Measured]:
    """Return the evaluation of each column; one evaluation fills alignment and uniformity."""
    return {
        "acc": Measured(spec=linear(run), metric="top1"),
        "alignment": Measured(spec=alignment(run), metric="alignment"),
        "uniformity": Measured(spec=alignment(run), metric="uniformity"),
    }


def _numbers(key: str) -> dict[str, Sum]:
    """Return the number of each row in a column."""
    return {label: Number(label, key) for label in (*BASELINES, OURS)}


ACC, ALIGNMENT, UNIFORMITY = map(_numbers, ("acc", "alignment", "uniformity"))
BY_UNIFORMITY = ("BYOL", "BYOL + L_b + L_s", "BYOL + L_uniform", OURS)
"""Rows from the least to the most uniform, by the paper's numbers."""
FIGURES = (
    Plane(
        name="plane",
        title="Alignment and uniformity of the embeddings; lower is more aligned and more uniform",
        x="alignment",
        y="uniformity",
        text="acc",
        lines={
            "BYOL": "BYOL",
            "BYOL + L_uniform": r"BYOL + $\mathcal{L}_\text{uniform}$",
            "BYOL + L_b + L_s": r"BYOL + $\mathcal{L}_b$ + $\mathcal{L}_s$",
            OURS: "Ours ($K = 4$)",
        },
    ),
    Agreement(),
)
SECTION = "section 11"
CLAIMS = (
    Claim(
        text="The uniformity loss improves BYOL and lowers its uniformity loss (1st and 2nd row).",
        contrasts=(
            ACC["BYOL + L_uniform"] > ACC["BYOL"],
            UNIFORMITY["BYOL + L_uniform"] < UNIFORMITY["BYOL"],
        ),
        source=SECTION,
    ),
    Claim(
        text="Brownian motion, which needs no other embedding's coordinates, is better than a dispersive "
        r"loss that needs them (read as: BYOL + $\mathcal{L}_b$ + $\mathcal{L}_s$ against BYOL + "
        r"$\mathcal{L}_\text{uniform}$).",
        contrasts=(ACC["BYOL + L_b + L_s"] > ACC["BYOL + L_uniform"],),
        source="abstract",
    ),
    Claim(
        text="Joint local and global dispersive forces make negative pairs more dissimilar than in the other "
        "approaches (read as: ours has the lowest uniformity loss, and both losses together lower BYOL's).",
        contrasts=(
            *lowest(UNIFORMITY[OURS], (UNIFORMITY[label] for label in BASELINES)),
            UNIFORMITY["BYOL + L_b + L_s"] < UNIFORMITY["BYOL"],
        ),
        source="section 1",
    ),
    Claim(
        text="Ours has the lowest uniformity loss.",
        contrasts=lowest(UNIFORMITY[OURS], (UNIFORMITY[label] for label in BASELINES)),
        source=SECTION,
    ),
    Claim(
        text="Ours has the highest alignment loss.",
        contrasts=best(ALIGNMENT[OURS], (ALIGNMENT[label] for label in BASELINES)),
        source=SECTION,
    ),
    Claim(
        text="Ours has the best accuracy.",
        contrasts=best(ACC[OURS], (ACC[label] for label in BASELINES)),
        source=SECTION,
    ),
    Claim(
        text="Embeddings that are spread more uniformly are better (read as: the four rows have the order of "
        "their printed uniformity by uniformity and by accuracy).",
        contrasts=(
            *rising(*(ACC[label] for label in BY_UNIFORMITY)),
            *rising(*(-UNIFORMITY[label] for label in BY_UNIFORMITY)),
        ),
        source=SECTION,
    ),
)
