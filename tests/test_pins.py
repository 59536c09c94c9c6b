"""What each column measures, and what decides each claim, written out a second time.

The contrasts of each claim were transcribed from its sentence, not printed from the tables. Made-up numbers
just inside, at and just outside of each contrast decide the claim, where all its other contrasts hold and the
other cells are far off. A rival that is left out, a weaker margin or an `or` in place of `and` fails there.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import product
from typing import NamedTuple

import numpy as np
import pytest
from scipy.optimize import linprog
from toys import fill_from

from configs.baselines import barlow_twins_imagenet, vicreg_imagenet
from reproduce.plan import Request
from reproduce.report.table import Measured, Table

NAMES = tuple(f"table{number}" for number in range(1, 13))


def table(name: str) -> Table:
    found: Table = importlib.import_module(f"tables.{name}").table()
    return found


# Columns

# Column, protocol, metric, unit, decimals, and the better extreme (`-` if it has none or is not measured).
COLUMNS = """
table1   imagenet100_top1  linear          top1           %  2  higher
table1   imagenet100_top5  linear          top5           %  2  higher
table1   imagenet100_5nn   knn             top1           %  2  higher
table1   stl10_top1        linear          top1           %  2  higher
table1   stl10_5nn         knn             top1           %  2  higher
table2   e100              linear_sgd      top1           %  1  higher
table2   e200              linear_sgd      top1           %  1  higher
table2   e400              linear_sgd      top1           %  1  higher
table3   top1_1percent     semi            top1           %  1  higher
table3   top1_10percent    semi            top1           %  1  higher
table3   top5_1percent     semi            top5           %  1  higher
table3   top5_10percent    semi            top5           %  1  higher
table4   top1_20           weighted_knn    top1_20        %  1  higher
table4   top1_200          weighted_knn    top1_200       %  1  higher
table5   voc07             svm             map            %  1  higher
table5   places            linear_sgd      top1           %  1  higher
table5   inat18            linear_sgd      top1           %  1  higher
table5   ap50              voc_detection   ap50           %  1  higher
table5   ap75              voc_detection   ap75           %  1  higher
table5   ap                voc_detection   ap             %  1  higher
table6   acc               linear          top1           %  1  higher
table7   e100              linear_sgd      top1           %  1  higher
table7   e200              linear_sgd      top1           %  1  higher
table7   e300              linear_sgd      top1           %  1  higher
table8   acc               linear          top1           %  2  higher
table9   value             -               -              -  1  -
table10  box_ap            coco_mask_rcnn  box_ap         %  1  higher
table10  mask_ap           coco_mask_rcnn  mask_ap        %  1  higher
table11  k2                linear          top1           %  1  higher
table11  k4                linear          top1           %  1  higher
table11  k8                linear          top1           %  1  higher
table12  acc               linear          top1           %  1  higher
table12  alignment         alignment       alignment      -  2  -
table12  uniformity        alignment       uniformity     -  2  lower
"""


@pytest.mark.parametrize("name", NAMES)
def test_every_column_shows_this_metric_of_this_protocol(name: str) -> None:
    """In every row: in those of ours, of released encoders and of trained baselines."""
    plan, found = table(name), []
    for column in plan.columns:
        cells = [row.cells[column.key] for row in plan.rows if column.key in row.cells]
        all_measured = [each for cell in cells for each in (cell.ours, cell.released, cell.trained)]
        measured = [each for each in all_measured if isinstance(each, Measured)]
        protocols = ",".join(sorted({each.spec.protocol.name for each in measured}))
        metrics = ",".join(sorted({each.metric for each in measured}))
        shown = (protocols, metrics, column.unit, str(column.digits), column.better)
        found.append(" ".join((name, column.key, *(text or "-" for text in shown))))
    assert found == [" ".join(line.split()) for line in COLUMNS.splitlines() if line.startswith(f"{name} ")]


# Claims

# A line that is not indented is a table and words of the claim's text; claims are in the order of the table.
# Each indented line stands for the contrasts of everything on its left with everything on its right, in every
# column behind the `@`, or in `acc`. A cell of another column has it in brackets.
# A line that ends in `;` continues on the next.
CLAIMS = r"""
table1: outperforms all other methods on both data sets
    Ours (K=4); Ours (K=8) > BYOL; MoCo; Wang and Isola; W-MSE 4  @ imagenet100_top1; imagenet100_top5
    Ours (K=4); Ours (K=8) > BYOL; W-MSE 4                        @ imagenet100_5nn
    Ours (K=4); Ours (K=8) > BYOL; SimCLR; W-MSE 4                @ stl10_top1; stl10_5nn
table1: significantly outperforms prior work
    Ours (K=4); Ours (K=8) > BYOL; MoCo; Wang and Isola; W-MSE 4  @ imagenet100_top1
    Ours (K=4); Ours (K=8) > BYOL; SimCLR; W-MSE 4                @ stl10_top1
table1: outperforms BYOL in every column
    Ours (K=4); Ours (K=8) > BYOL                                 @ imagenet100_top1; imagenet100_top5;
                                                    imagenet100_5nn; stl10_top1; stl10_5nn
table1: With a ResNet-18
    Ours (K=4); Ours (K=8) > MoCo; Wang and Isola                 @ imagenet100_top1
    Ours (K=4); Ours (K=8) > SimCLR                               @ stl10_top1
table1: leads W-MSE 4
    Ours (K=8)[stl10_top1] minus W-MSE 4[stl10_top1] >;
    Ours (K=8)[imagenet100_top1] minus W-MSE 4[imagenet100_top1]
table1: leads BYOL
    Ours (K=8)[stl10_top1] minus BYOL[stl10_top1] > Ours (K=8)[imagenet100_top1] minus BYOL[imagenet100_top1]
table1: improves with the number of views
    Ours (K=8) > Ours (K=4)                                       @ imagenet100_top1; imagenet100_top5;
                                                    imagenet100_5nn; stl10_top1; stl10_5nn

table2: outperforms the other methods
    Ours (K=4) > BYOL; SimCLR; MoCo-v2; SwAV (w.o. multi-crop); SimSiam  @ e100; e200; e400
    Ours (K=4) > W-MSE 4                                                 @ e100; e400
table2: compatible with that of SwAV with multi-crop
    Ours (K=4) minus SwAV (with multi-crop) >= -2                        @ e100; e200; e400
table2: only 300 epochs
    Ours (K=4) >= BYOL; SimCLR; MoCo-v2; W-MSE 4; SwAV (w.o. multi-crop); SwAV (with multi-crop);
                  SimSiam                                                @ e400
table2: smaller batch than all others but MoCo-v2
    4096; 4096; 1024; 4096; 4096; 256 > 512
    Ours (K=4) >= BYOL; SimCLR; MoCo-v2; W-MSE 4; SwAV (w.o. multi-crop); SwAV (with multi-crop);
                  SimSiam                                                @ e400
table2: methods with a larger batch
    Ours (K=4) >= BYOL; SimCLR; W-MSE 4; SwAV (w.o. multi-crop); SwAV (with multi-crop)  @ e400

table3: best top-1 with 1 % and with 10 %
    Ours (K=4) > SimCLR; BYOL; VICReg; SwAV (with multi-crop); Barlow Twins  @ top1_1percent; top1_10percent
table3: by a large margin
    Ours (K=4) minus SimCLR; Ours (K=4) minus BYOL; Ours (K=4) minus VICReg;
    Ours (K=4) minus SwAV (with multi-crop); Ours (K=4) minus Barlow Twins > 2   @ top1_1percent
table3: matches OBoW's
    Ours (K=4) minus OBoW >= -2                                              @ top5_1percent; top5_10percent
table3: all but OBoW
    Ours (K=4) > SimCLR; BYOL; VICReg; SwAV (with multi-crop); Barlow Twins  @ top5_1percent; top5_10percent
table3: read as: all of them
    Ours (K=4) > SimCLR; BYOL; VICReg; SwAV (with multi-crop); Barlow Twins;
                 OBoW                                                        @ top5_1percent; top5_10percent

table4: those that the paper prints
    Ours (K=4) > PCL; VICReg; SwAV (with multi-crop)                      @ top1_20
    Ours (K=4) > NPID; LA; VICReg; SwAV (with multi-crop)                 @ top1_200
table4: including BYOL and Barlow Twins
    Ours (K=4) > PCL; VICReg; SwAV (with multi-crop); BYOL; Barlow Twins  @ top1_20
    Ours (K=4) > NPID; LA; VICReg; SwAV (with multi-crop); BYOL; Barlow Twins  @ top1_200

table5: In classification MSBReg matches
    Ours (K=4) >= BoWNet minus 2; MoCo v2 minus 2; PIRL minus 2; OBoW minus 2; BYOL minus 2;
                  Barlow Twins minus 2; SwAV minus 2                              @ voc07; places
    Ours (K=4) >= MoCo v2 minus 2; BYOL minus 2; Barlow Twins minus 2; SwAV minus 2  @ inat18
table5: In detection it matches all but PixPro
    Ours (K=4) >= BoWNet minus 2; MoCo v2 minus 2; PIRL minus 2; OBoW minus 2; BYOL minus 2;
                  SimSiam minus 2; Barlow Twins minus 2; SwAV minus 2             @ ap50; ap75; ap
table5: read as: all of them
    Ours (K=4) > BoWNet; MoCo v2; PIRL; OBoW; BYOL; SimSiam; Barlow Twins; SwAV; PixPro  @ ap50
table5: read as: all but PixPro
    Ours (K=4) > BoWNet; MoCo v2; PIRL; OBoW; BYOL; SimSiam; Barlow Twins; SwAV   @ ap50
table5: matched or slightly lower
    Ours (K=4) >= BoWNet minus 2; MoCo v2 minus 2; PIRL minus 2; OBoW minus 2; BYOL minus 2;
                  SimSiam minus 2; Barlow Twins minus 2; SwAV minus 2             @ ap75; ap

table6: collapses to chance when LN replaces BN
    BYOL (BN) > 15
    BYOL (LN) <= 15
table6: with a batch of 1024
    BYOL (LN, batch 1024) <= 15
table6: keeps BYOL with LN from collapsing
    BYOL + our L_b (LN, lambda_b=5e-3) > 15
    BYOL (LN) <= 15
table6: improves other methods and stabilises their training
    BYOL + our L_b (LN, lambda_b=5e-3) > BYOL (LN); 15
table6: Ours with LN does not collapse
    Ours (LN, lambda_b=5e-4) > 15
table6: degrades ours slightly
    Ours (BN, lambda_b=5e-2) > Ours (LN, lambda_b=5e-4)
    Ours (BN, lambda_b=5e-2) minus Ours (LN, lambda_b=5e-4) <= 10
table6: The quality depends on
    Ours (LN, lambda_b=5e-4) > Ours (LN, lambda_b=5e-2)
table6: larger than
    Ours (LN, lambda_b=5e-4) > Ours (LN, lambda_b=5e-3); Ours (LN, lambda_b=5e-2)
    Ours (LN, lambda_b=5e-4) minus Ours (LN, lambda_b=5e-3) <= 10
    Ours (LN, lambda_b=5e-4) minus Ours (LN, lambda_b=5e-2) <= 10
table6: smaller than
    Ours (LN, lambda_b=5e-4) > Ours (LN, lambda_b=5e-5)
    Ours (LN, lambda_b=5e-4) minus Ours (LN, lambda_b=5e-5) <= 10

table7: Multi-crop degrades BYOL
    BYOL + multi-crop < BYOL         @ e100; e200; e300
table7: by a large margin
    Ours (K=4) minus BYOL > 2        @ e100; e200; e300

table8: alone improves on BYOL at $K = 4$ and at $K = 8$
    Ours (K=4); Ours (K=8) > BYOL
table8: gains more than 6 percentage points
    Ours (K=4) minus BYOL > 6
table8: $K = 4$ beats BYOL
    Ours (K=4) > BYOL
    Ours (K=4) + L_s > BYOL + L_s
    Ours (K=4) + L_b > BYOL + L_b
    Ours (K=4) + L_b + L_s > BYOL + L_b + L_s
table8: $K = 8$ beats $K = 4$
    Ours (K=8) > Ours (K=4)
    Ours (K=8) + L_s > Ours (K=4) + L_s
    Ours (K=8) + L_b > Ours (K=4) + L_b
    Ours (K=8) + L_b + L_s > Ours (K=4) + L_b + L_s
table8: alone improves BYOL
    BYOL + L_s; BYOL + L_b > BYOL
table8: alone improves ours at $K = 4$
    Ours (K=4) + L_s; Ours (K=4) + L_b > Ours (K=4)
table8: alone improves ours at $K = 8$
    Ours (K=8) + L_s; Ours (K=8) + L_b > Ours (K=8)
table8: each loss alone, and both together, improve BYOL
    BYOL + L_s; BYOL + L_b; BYOL + L_b + L_s > BYOL
table8: when combined with
    BYOL + L_b + L_s > BYOL + L_s
    Ours (K=4) + L_b + L_s > Ours (K=4) + L_s
    Ours (K=8) + L_b + L_s > Ours (K=8) + L_s
table8: each gain more with
    Ours (K=4) + L_s minus Ours (K=4) > BYOL + L_s minus BYOL
    Ours (K=4) + L_b minus Ours (K=4) > BYOL + L_b minus BYOL
table8: gain 0.92 points each on BYOL
    BYOL + L_b minus BYOL; BYOL + L_s minus BYOL >= 0.42
    BYOL + L_b minus BYOL; BYOL + L_s minus BYOL <= 1.42
    Ours (K=4) + L_b minus Ours (K=4) >= 1.0
    Ours (K=4) + L_b minus Ours (K=4) <= 2.0
    Ours (K=4) + L_s minus Ours (K=4) >= 0.94
    Ours (K=4) + L_s minus Ours (K=4) <= 1.94
table8: best at $K = 4$
    Ours (K=4) + L_b + L_s > Ours (K=4) + L_s; Ours (K=4) + L_b; Ours (K=4)
table8: best at $K = 8$
    Ours (K=8) + L_b + L_s > Ours (K=8) + L_s; Ours (K=8) + L_b; Ours (K=8)

table10: is competitive with the other methods
    Ours (K=4) >= SimCLR minus 2; MoCo minus 2; BYOL minus 2; VICReg minus 2; SwAV minus 2;
                  Barlow Twins minus 2; OBoW minus 2   @ box_ap; mask_ap
table10: better than BYOL
    Ours (K=4) > BYOL                                  @ box_ap; mask_ap
table10: SwAV shows similar performance
    Ours (K=4) minus SwAV >= -0.5                      @ box_ap; mask_ap
    Ours (K=4) minus SwAV <= 0.5                       @ box_ap; mask_ap

table11: is best for $K = 4$
    .004 .5 > 0 0; 0 .25; 0 .5; 0 1; 0 2; .002 0; .002 .25; .002 .5; .002 1; .002 2; .004 0; .004 .25;
              .004 1; .004 2; .01 0; .01 .25; .01 .5; .01 1; .01 2  @ k4
table11: is best for $K = 8$
    .004 .5 > 0 0; 0 .25; 0 .5; 0 1; 0 2; .002 0; .002 .25; .002 .5; .002 1; .002 2; .004 0; .004 .25;
              .004 1; .004 2; .01 0; .01 .25; .01 .5; .01 1; .01 2  @ k8
table11: At $K = 4$ the accuracy increases with $\lambda_b$
    .004 .25 > .004 0          @ k4
    .004 .5 > .004 .25         @ k4
    .004 .5 >= .004 1; .004 2  @ k4
table11: At $K = 8$ the accuracy increases with $\lambda_b$
    .004 .25 > .004 0          @ k8
    .004 .5 > .004 .25         @ k8
    .004 .5 >= .004 1; .004 2  @ k8
table11: At $K = 4$ the accuracy increases with $\lambda_s$
    .002 .5 > 0 .5             @ k4
    .004 .5 > .002 .5          @ k4
    .004 .5 >= .01 .5          @ k4
table11: At $K = 8$ the accuracy increases with $\lambda_s$
    .002 .5 > 0 .5             @ k8
    .004 .5 > .002 .5          @ k8
    .004 .5 >= .01 .5          @ k8
table11: each alone at its default weight
    .004 0; 0 .5 > 0 0         @ k2

table12: uniformity loss improves BYOL and lowers
    BYOL + L_uniform > BYOL                               @ acc
    BYOL + L_uniform < BYOL                               @ uniformity
table12: needs no other embedding's coordinates
    BYOL + L_b + L_s > BYOL + L_uniform                   @ acc
table12: make negative pairs more dissimilar
    Ours (K=4) < BYOL; BYOL + L_uniform; BYOL + L_b + L_s  @ uniformity
    BYOL + L_b + L_s < BYOL                               @ uniformity
table12: the lowest uniformity loss
    Ours (K=4) < BYOL; BYOL + L_uniform; BYOL + L_b + L_s  @ uniformity
table12: the highest alignment loss
    Ours (K=4) > BYOL; BYOL + L_uniform; BYOL + L_b + L_s  @ alignment
table12: the best accuracy
    Ours (K=4) > BYOL; BYOL + L_uniform; BYOL + L_b + L_s  @ acc
table12: spread more uniformly are better
    BYOL + L_b + L_s > BYOL                               @ acc
    BYOL + L_uniform > BYOL + L_b + L_s                   @ acc
    Ours (K=4) > BYOL + L_uniform                         @ acc
    BYOL + L_b + L_s < BYOL                               @ uniformity
    BYOL + L_uniform < BYOL + L_b + L_s                   @ uniformity
    Ours (K=4) < BYOL + L_uniform                         @ uniformity
"""
IMPLIED = {("table12", "make negative pairs more dissimilar"): 1}
"""Number of contrasts that follow from the others of their claim and decide nothing: ours < BYOL + L_b + L_s
and BYOL + L_b + L_s < BYOL."""

Place = tuple[str, str]
"""(row, column)."""


class Bound(NamedTuple):
    """A contrast: the sum of cells with their weights lies above the margin, or at it if `or_equal`."""

    weights: Mapping[Place, float]
    margin: float
    or_equal: bool


def expression(text: str, column: str) -> tuple[dict[Place, float], float]:
    """Return the weights of the cells and the constant of `a minus b`."""
    weights: dict[Place, float] = {}
    constant = 0.0
    for index, part in enumerate(text.split(" minus ")):
        sign = -1.0 if index else 1.0
        if re.fullmatch(r"-?[\d.]+", part):
            constant += sign * float(part)
            continue
        row, key = re.fullmatch(r"(.+?)(?:\[(\w+)\])?", part).groups()  # type: ignore[union-attr]
        if pair := re.fullmatch(r"(0|\.\d+) (0|\.25|\.5|1|2)", row):  # Table 11: lambda_s and lambda_b
            lambda_b = {".25": "0.25", ".5": "0.5", "1": "1.0", "2": "2.0"}.get(pair[2], "0")
            row = f"lambda_s={pair[1].replace('.', '0.')} lambda_b={lambda_b}"
        weights[row, key or column] = weights.get((row, key or column), 0.0) + sign
    return weights, constant


def bounds(line: str) -> Iterator[Bound]:
    """Yield the contrasts of a line of the transcription."""
    line, _, given = (part.strip() for part in line.partition(" @ "))
    left, sign, right = re.split(r" (>=|<=|>|<) ?", line)
    keys = (given or "acc").split("; ")
    for key, one, other in product(keys, left.split("; "), right.split("; ")):
        (above, more), (below, less) = (expression(text.strip(), key) for text in (one, other))
        if sign[0] == "<":
            above, more, below, less = below, less, above, more
        weights = dict(above)
        for place, weight in below.items():
            weights[place] = weights.get(place, 0.0) - weight
        yield Bound(weights, less - more, sign.endswith("="))


def transcribed() -> dict[str, list[tuple[str, list[Bound]]]]:
    """Return the claims of each table: words of the text, and the contrasts."""
    found: dict[str, list[tuple[str, list[Bound]]]] = {name: [] for name in NAMES}
    for line in filter(None, re.sub(r";\n +", "; ", CLAIMS).replace(">; ", "> ").splitlines()):
        if not line.startswith(" "):
            name, words = line.split(": ", 1)
            found[name].append((words, []))
        else:
            found[name][-1][1].extend(bounds(line.strip()))
    return found


TRANSCRIBED = transcribed()
CASES = [(name, index) for name in NAMES for index in range(len(TRANSCRIBED[name]))]
STEP = 0.01
"""Distance of just inside and just outside from a margin."""
FAR = 100
"""Smallest limit of a made-up number; the largest is twice as high."""
DRAWS = 3
"""Number of draws of the other cells for each value of a contrast."""


def numbers(
    cells: Sequence[Place], one: Bound, value: float, others: Sequence[Bound], random: np.random.Generator
) -> dict[Place, float] | None:
    """Return numbers at which one contrast has a value and the others hold, or None if there are none.

    Apart from that the numbers are as high or as low as limits allow that are drawn for each cell.
    """

    def line(bound: Bound) -> list[float]:
        return [bound.weights.get(cell, 0.0) for cell in cells]

    holds = [each.margin + (0 if each.or_equal else STEP) for each in others]
    found = linprog(
        random.normal(size=len(cells)),
        A_ub=-np.array([line(each) for each in others]) if others else None,
        b_ub=-np.array(holds) if others else None,
        A_eq=[line(one)],
        b_eq=[value],
        bounds=[(-low, high) for low, high in random.integers(FAR, 2 * FAR, (len(cells), 2))],
    )
    return dict(zip(cells, np.round(found.x, 6).tolist(), strict=True)) if found.success else None


@pytest.mark.parametrize(("name", "index"), CASES)
def test_a_claim_is_decided_by_each_of_its_contrasts_and_by_nothing_else(name: str, index: int) -> None:
    plan, (words, all_bounds) = table(name), TRANSCRIBED[name][index]
    claim = plan.claims[index]
    assert words in claim.text
    cells = [(row.label, column.key) for row in plan.rows for column in plan.columns]
    assert {cell for bound in all_bounds for cell in bound.weights} <= {*cells}
    tested = [bound for bound in all_bounds if bound.weights]
    decided_by_cells = replace(claim, contrasts=tuple(each for each in claim.contrasts if each.terms))
    random = np.random.default_rng(index)
    implied = 0
    for one in tested:
        others = [each for each in tested if each is not one]
        for value, expected in (
            (one.margin + STEP, "holds"),
            (one.margin, "holds" if one.or_equal else "fails"),
            (one.margin - STEP, "fails"),
        ):
            for _ in range(DRAWS):
                made_up = numbers(cells, one, value, others, random)
                if made_up is None:
                    implied += value < one.margin
                    break
                found = decided_by_cells.judge(lambda *cell, made_up=made_up: made_up[cell])
                assert found == expected, f"{one} at {value}: {made_up}"
    assert implied == IMPLIED.get((name, words), 0)


@pytest.mark.parametrize(("name", "index"), CASES)
def test_the_facts_of_a_claim_are_those_of_its_sentence(name: str, index: int) -> None:
    facts = [each for each in TRANSCRIBED[name][index][1] if not each.weights]
    found = [each for each in table(name).claims[index].contrasts if not each.terms]
    assert sorted(each.margin for each in found) == sorted(fact.margin for fact in facts)
    assert [each.holds_at(0.0) for each in found] == [each.margin < 0 for each in found]


@pytest.mark.parametrize("name", NAMES)
def test_every_claim_of_a_table_is_transcribed(name: str) -> None:
    assert len(table(name).claims) == len(TRANSCRIBED[name])


# Captions and emphasis


@pytest.mark.parametrize("name", NAMES)
def test_a_caption_states_what_stands_in_for_the_papers_data_and_only_there(name: str) -> None:
    """Table 9 measures nothing, and Table 6 has its STL-10 at small scale, too."""
    sentences = {
        "smoke": "Synthetic scenes stand in for every data set and a small network for the backbone.",
        "small": "Imagenette (10 classes of ImageNet) stands in for ImageNet and ImageNet-100, at 64 px, and "
        "a ResNet-18 for the backbone.",
    }
    without = {"smoke": ["table9"], "small": ["table6", "table9"], "paper": NAMES}
    for scale, left_out in without.items():
        built = Request(table=name, scale=scale).build()
        caption = fill_from(built, 1, {}, {}).caption
        expected = [] if name in left_out else [scale]
        assert [each for each, sentence in sentences.items() if sentence in caption] == expected
        assert bool(built.stand_in) == (name not in left_out), "claims are judged by it"


def test_the_paper_emphasises_only_numbers_that_it_prints() -> None:
    for name in NAMES:
        for row in fill_from(table(name), 1, {}, {}).rows:
            for key, cell in row.cells.items():
                assert cell.paper is not None or not cell.paper_emphasis, (name, row.label, key)


def test_the_quoted_runs_of_barlow_twins_and_vicreg_have_1000_epochs() -> None:
    """`invoke pretrain` trains them, too (main.py of both repositories; the paper's Table 3)."""
    assert [run().epochs for run in (barlow_twins_imagenet, vicreg_imagenet)] == [1000, 1000]
