"""Table 9: image augmentation parameters.

Source: section 7.3, Table 9.

Runs: none. The paper's settings are printed next to the defaults of this suite, which are read from
`reproduce/data/augmentation.py`. Expect the two to agree in every row.
"""

from __future__ import annotations

from reproduce.data.augmentation import Augmentation
from reproduce.report.table import Cell, Column, Reported, Row, Table

ALWAYS = 1.0
"""Probability of a crop: every view is one, so this is not a setting."""
MERGED = (
    "BYOL draws its two views from two distributions T and T' (deepmind-research byol/). The paper's one "
    "column has the blur of T (1.0; T' .1) and the solarization of T' (.2; T 0)."
)


def table() -> Table:
    """Return the ten parameters, with the paper's names and in its order."""
    ours = Augmentation()
    return Table(
        name="table9",
        number="9",
        title="Image augmentation parameters.",
        columns=(Column(key="value", title="Values", unit="", digits=1, better=""),),
        rows=(
            _row("1. Random Crop Probability", "1.0", ALWAYS),
            _row("2. Flip Probability", "0.5", ours.flip),
            _row("3. Color Jittering Probability", "0.8", ours.jitter),
            _row("4. Brightness Adjustment Max Intensity", "0.4", ours.brightness),
            _row("5. Contrast Adjustment Max Intensity", "0.4", ours.contrast),
            _row("6. Saturation Adjustment Max Intensity", "0.2", ours.saturation),
            _row("7. Hue Adjustment Max Intensity", "0.1", ours.hue),
            _row("8. Color Dropping Probability", "0.2", ours.grey),
            _row("9. Gaussian Blurring Probability", "1.0", ours.blur, note=MERGED),
            _row("10. Solarization Probability", "0.2", ours.solarize, note=MERGED),
        ),
        notes=(
            "Our values are the defaults of the suite, not measurements; all K views are drawn with them.",
            "Section 7.3 counts “lighting” as a colour distortion. Neither it nor this table gives its "
            "parameters, so it is not applied.",
        ),
        row_title="Image augmentation parameter",
    )


def _row(label: str, printed: str, setting: float, note: str = "") -> Row:
    return Row(label=label, cells={"value": Cell(paper=Reported(value=printed, note=note), setting=setting)})
