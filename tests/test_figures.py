"""Figures: their numbers are compared with hand-computed ones, their files with what readers need."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from reproduce.plan import Request, table_names
from reproduce.report import figures, render
from reproduce.report.drawing import Drawing, Panel, Series, Strip, check
from reproduce.report.filled import Filled, Illustration, fill, loads
from reproduce.report.illustrate import MOST_POINTS, History, illustrate, no_histories
from reproduce.report.observe import Finished, frame
from reproduce.report.plots import Agreement, Curves
from reproduce.report.publish import damaged, publish
from reproduce.report.record import RunRecord
from reproduce.report.table import Table

ROOT = Path(__file__).parent.parent
SVG = "{http://www.w3.org/2000/svg}"


def table(name: str, scale: str = "paper") -> Table:
    return Request(table=name, scale=scale).build()


def finished(of: Table, top1: Mapping[str, float]) -> dict[str, Finished]:
    """Return the runs of the rows with these labels: each evaluation has the row's number in every metric."""
    runs = {}
    for row, _, ours in of.measured():
        if row.label in top1:
            spec = ours.spec
            metrics = dict.fromkeys(spec.protocol.metrics, top1[row.label])
            runs[spec.id] = Finished(spec_id=spec.id, run_id=f"run of {row.label}", metrics=metrics)
            encoder = spec.encoder.id
            runs[encoder] = Finished(spec_id=encoder, run_id=f"training of {row.label}", metrics={})
    return runs


def drawn(
    of: Table, top1: Mapping[str, float], histories: Mapping[str, Mapping[str, History]] | None = None
) -> Filled:
    runs = finished(of, top1)
    filled = fill(of, 1, frame(of, 1, runs, {}))

    def read(wanted: Collection[str], names: Collection[str]) -> Mapping[str, Mapping[str, History]]:
        return {run: (histories or {}).get(run, {}) for run in wanted}

    def records(ids: Iterable[str]) -> Mapping[str, RunRecord | None]:
        return {spec_id: record(spec_id) for spec_id in ids}

    return illustrate(of, filled, 1, runs, read, records)


def record(spec_id: str) -> RunRecord:
    """Return the record of a run that was executed on two GPUs."""
    facts = {"title": "", "is_pretraining": True, "started": 0, "ended": 1, "attempts": 1, "commit": ""}
    facts |= {"dirty": False, "settings": {}, "final": {}, "histories": {}}
    return RunRecord(spec_id=spec_id, environments=[{"kind": "GPU", "processes": 2}], **facts)


def figure(filled: Filled, name: str) -> Illustration:
    return next(each for each in filled.figures if each.name == f"{filled.table}-{name}")


def test_the_heat_maps_of_table_11_have_the_papers_digits_ours_and_their_difference() -> None:
    filled = drawn(
        table("table11"),
        {
            "lambda_s=0 lambda_b=0": 0.719,
            "lambda_s=0.002 lambda_b=0.25": 0.8,
            "lambda_s=0.01 lambda_b=2.0": 0.6,
        },
    )
    found = figure(filled, "lambdas")
    second = found.drawing.strips[1].panels
    assert [panel.title for panel in second] == ["$K = 4$, paper", "$K = 4$, ours", "$K = 4$, ours − paper"]
    paper, ours, difference = (panel.grid for panel in second)
    assert paper
    assert ours
    assert difference
    assert paper.texts[0] == ("78.2", "78.9", "79.7", "79.3")
    assert paper.texts[1][1] == "?"
    assert paper.values[1][1] is None
    assert ours.texts[0] == ("71.9", "–", "–", "–")
    assert (ours.texts[1][1], difference.texts[1][1]) == ("80.0", "–")
    assert difference.texts[0][0] == "-6.3"
    assert difference.values[0][0] == pytest.approx(71.9 - 78.2)
    assert difference.texts[4][3] == "-19.0"
    assert "$K = 4$" not in found.alternative
    assert (
        "K = 4, paper: from 78.2 (λ_s 0, λ_b 0) to 80.4 (λ_s 0.004, λ_b 0.5); missing: λ_s 0.002, λ_b 0.25."
        in (found.alternative)
    )


def test_at_other_scales_no_difference_from_the_paper_is_drawn() -> None:
    found = figure(drawn(table("table11", "smoke"), {"lambda_s=0 lambda_b=0": 0.2}), "lambdas")
    titles = [panel.title for strip in found.drawing.strips for panel in strip.panels]
    assert len(titles) == 6
    assert not [title for title in titles if "−" in title]
    assert "(smoke scale)" in found.title
    assert "not comparable" in found.title


def test_agreement_has_a_point_for_each_cell_with_both_numbers() -> None:
    filled = drawn(table("table8"), {"BYOL": 0.72, "Ours (K=4) + L_s": 0.8})
    (panel,) = figure(filled, "agreement").drawing.strips[0].panels
    others, own = panel.series
    assert (others.x, others.y, others.low, others.dashed) == ((71.92,), (72.0,), (), True)
    assert (own.x, own.y, own.low, own.dashed) == ((79.68,), (80.0,), (), False)
    assert panel.diagonal
    assert "BYOL 71.92 and 72.00; Ours (K=4) + L_s 79.68 and 80.00" in figure(filled, "agreement").alternative
    smoke = drawn(table("table8", "smoke"), {"BYOL": 0.2, "BYOL + L_s": 0.3})
    (panel,) = figure(smoke, "agreement").drawing.strips[0].panels
    assert not panel.diagonal


def test_a_figure_without_numbers_is_left_out_with_its_reason() -> None:
    filled = drawn(table("table8"), {"BYOL": 0.72})
    assert [each.name for each in filled.figures] == ["table8-views"]
    assert filled.not_drawn[-1] == (
        "The paper's numbers against ours, over all cells that have both: at least two cells with both "
        "numbers are needed, and there are 1."
    )
    assert "has logged loss, probe/top1, rank." in filled.not_drawn[0]
    page = render.html(filled)
    assert page.count("Not drawn. ") == len(filled.not_drawn) == 4


def test_curves_are_logged_points_and_name_what_is_missing() -> None:
    history = [(step, 1 / step) for step in range(1, 1001)]
    filled = drawn(
        table("table8"),
        {"BYOL": 0.7, "BYOL + L_s": 0.71},
        {"training of BYOL": {"loss": history, "rank": [(1, float("nan")), (2, 3.0)]}},
    )
    found = figure(filled, "curves")
    (strip,) = found.drawing.strips
    loss, rank = strip.panels
    (series,) = loss.series
    assert len(series.x) == MOST_POINTS
    assert (series.x[0], series.x[-1]) == (1, 1000)
    assert all(y == float(f"{1 / x:.6g}") for x, y in zip(series.x, series.y, strict=True))
    assert (rank.series[0].x, rank.series[0].y) == ((2,), (3.0,))  # NaN is not a point
    assert "Not logged by these runs: 20-NN top-1." in found.title
    assert "Ours (K=8) + L_b + L_s (not run yet)" in found.title
    assert "loss 1 at 1, 0.001 at 1000." in found.alternative


def test_an_accuracy_is_logged_as_a_fraction_and_drawn_in_per_cent() -> None:
    curves = [
        (curve.title, curve.percent)
        for name in table_names()
        for plot in table(name).figures
        if isinstance(plot, Curves)
        for curve in plot.curves
    ]
    assert [title for title, percent in curves if percent] == ["20-NN top-1"] * 2
    assert [title for title, percent in curves if not percent and "top-1" in title] == []


def test_the_spectrum_has_one_panel_for_each_method() -> None:
    spectrum = [(1, 0.75), (2, 0.25), (3, 0.0)]
    logged = {f"training of {label}": {"spectrum": spectrum} for label in ("BYOL", "Ours (K=4) + L_s")}
    filled = drawn(table("table8"), {"BYOL": 0.7, "Ours (K=4) + L_s": 0.8}, logged)
    (strip,) = figure(filled, "spectrum").drawing.strips
    assert [panel.title for panel in strip.panels] == ["BYOL ($K = 2$)", "Ours ($K = 4$)"]
    points = (strip.panels[1].series[0].x, strip.panels[1].series[0].y)
    assert points == ((1, 2), (0.75, 0.25))  # zero has no place on a logarithmic axis
    assert strip.panels[1].series[0].style == 1


def test_the_cost_of_training_follows_from_the_logged_speed_and_the_devices() -> None:
    one = table("table8")
    batch = next(ours.spec.encoder.batch_size for row, _, ours in one.measured() if row.label == "BYOL")
    assert batch == 512
    # 10 steps of 512 images at 100 images/s, then 10 at 50.
    speed = {"training of BYOL": {"images_per_second": [(10, 100.0), (20, 50.0)]}}
    found = figure(drawn(one, {"BYOL": 0.7}, speed), "views")
    hours = found.drawing.strips[0].panels[-1]
    assert (hours.title, hours.y_title) == ("cost of training", "GPU-minutes")
    assert hours.series[0].y == (float(f"{2 * (51.2 + 102.4) / 60:.6g}"),)
    # A report of equal runs on another machine has the same text.
    printed = "no ℒ_b, no ℒ_s, paper: 71.92 at K = 2, 78.24 at K = 4, 79.54 at K = 8."
    assert found.alternative.startswith(printed)
    assert "no ℒ_b, no ℒ_s, ours: 70.00 at K = 2." in found.alternative
    assert "minutes" not in found.alternative


def test_average_precision_by_class_is_that_of_the_detector() -> None:
    logged = {
        "run of BYOL": {
            "ap_class/person": [(24000, 0.5)],
            "ap_class/dog": [(24000, 0.25)],
            "loss": [(1, 9.0)],
        }
    }
    (panel,) = figure(drawn(table("table5"), {"BYOL": 0.5}, logged), "classes").drawing.strips[0].panels
    assert panel.y_names == ("person", "dog")
    assert dict(zip(panel.series[0].y, panel.series[0].x, strict=True)) == {0: 50.0, 1: 25.0}


def test_the_plane_of_table_12_has_the_paper_and_ours() -> None:
    (paper, ours) = figure(drawn(table("table12"), {"BYOL": 0.5}), "plane").drawing.strips[0].panels
    assert [(each.x[0], each.y[0], each.texts) for each in paper.series][-1] == (0.36, -3.8, ("80.4",))
    assert [(each.x, each.y, each.texts) for each in ours.series] == [((0.5,), (0.5,), ("50.0",))]


def test_a_mistake_in_a_figure_is_found_before_anything_runs() -> None:
    one = table("table8")
    with pytest.raises(LookupError, match="The figure 'views' of table8: There is no row 'BYOL"):
        replace(one, rows=one.rows[1:], claims=())
    with pytest.raises(ValueError, match="more than one figure 'agreement'"):
        replace(one, figures=(Agreement(), Agreement()))
    with pytest.raises(ValueError, match="lower-case words"):
        Agreement(name="../x")


# Files
# ------------------------------------------------------------------------------------------------------------

LINES = Drawing(
    strips=(
        Strip(
            title=r"Ours ($K = 4$), $\mathcal{L}_\text{uniform}$ & 5 \$",
            panels=(
                Panel(
                    kind="lines",
                    title=r"$\lambda_s$ <b>",
                    series=tuple(
                        Series(
                            label=f"row {style}",
                            style=style,
                            x=(1, 2),
                            y=(style, 2.5),
                            low=(0, 1),
                            high=(9, 9),
                        )
                        for style in range(8)
                    ),
                ),
            ),
        ),
    )
)


@pytest.mark.parametrize(("strips", "panels"), [(13, 1), (1, 7), (0, 1), (1, 0)])
def test_a_figure_of_too_many_parts_or_none_is_refused(strips: int, panels: int) -> None:
    (strip,) = LINES.strips[:1]
    check(replace(LINES, strips=(replace(strip, panels=strip.panels[:1] * 6),) * 12))
    wrong = replace(LINES, strips=(replace(strip, panels=strip.panels[:1] * panels),) * strips)
    with pytest.raises(ValueError, match=r"a figure has (0|7|13) parts where 1 to (6|12) are drawn"):
        check(wrong)


DRAW = """
import sys
from test_figures import LINES
from reproduce.report import figures
for ending, content in figures.files("a-b", LINES, 'x < "y"').items():
    open(f"{sys.argv[1]}.{ending}", "wb").write(content)
"""


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_machines_settings(tmp_path: Path) -> None:
    contents = []
    for index, settings in enumerate(
        ("", "font.size: 30\nfont.family: serif\nlines.linewidth: 9\nsvg.fonttype: none\n")
    ):
        home = tmp_path / str(index)
        home.mkdir()
        (home / "matplotlibrc").write_text(settings)
        environment = os.environ | {
            "MPLCONFIGDIR": str(home),
            "PYTHONHASHSEED": str(index),
            "PYTHONPATH": f"{ROOT}:{ROOT}/tests",
        }
        subprocess.run(
            [sys.executable, "-c", DRAW, str(home / "figure")], cwd=home, env=environment, check=True
        )
        contents.append([(home / f"figure.{ending}").read_bytes() for ending in figures.ENDINGS])
    assert contents[0] == contents[1]


def test_an_svg_has_the_readers_colours_paths_for_text_and_a_text_alternative() -> None:
    files = figures.files("a-b", LINES, 'x < "y"')
    svg = files["svg"].decode()
    root = ElementTree.fromstring(svg)
    assert root.tag == f"{SVG}svg"
    assert (root.get("role"), root.get("aria-label")) == ("img", 'x < "y"')
    assert not list(root.iter(f"{SVG}text"))
    assert "font" not in svg
    assert svg.count("currentColor") > 20
    assert svg.count(figures.INK) == 1
    assert "prefers-color-scheme:dark" in svg
    assert not re.search(r"20\d\d-\d\d|<metadata|#ffffff", svg)
    ids = [each.get("id") for each in root.iter() if each.get("id")]
    assert len(set(ids)) == len(ids)
    assert all(each.startswith("a-b-") for each in ids if each)
    assert set(re.findall(r'(?:href="|url\()#([^")]+)', svg)) <= set(ids)
    assert files["png"].startswith(b"\x89PNG")


def test_styles_of_one_legend_differ_also_without_colours() -> None:
    looks = [figures._look(Series(label="", style=style, x=(0,), y=(0,))) for style in range(24)]
    assert len({str(look) for look in looks}) == 24
    assert len({str(look[1:]) for look in looks[:7]}) == 7


def test_figures_are_published_recorded_and_removed_with_their_table(tmp_path: Path) -> None:
    one = table("table8", "smoke")
    asked: list[Collection[str]] = []

    def read(runs: Collection[str], names: Collection[str]) -> Mapping[str, Mapping[str, History]]:
        asked.append(runs)
        return {}

    def published(numbers: Mapping[str, float]) -> Filled:
        return publish(one, 1, finished(one, numbers), {}, tmp_path, "", lambda: [one], read)[0]

    both = {"BYOL": 0.2, "BYOL + L_s": 0.3}
    first = published(both)
    names = [f"table8-{name}.{ending}" for name in ("agreement", "views") for ending in ("png", "svg")]
    folder = tmp_path / "figures"
    assert sorted(path.name for path in folder.iterdir()) == names
    assert sorted(asked[0]) == ["training of BYOL", "training of BYOL + L_s"]
    for name in names:
        assert f"figures/{name}" in (tmp_path / "table8.html").read_text() or name.endswith("png")
        assert f"figures/{name}" in (tmp_path / "table8.md").read_text() or name.endswith("svg")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert published(both) == first
    assert len(asked) == 1
    (folder / names[0]).write_bytes(b"edited")
    (folder / names[1]).unlink()
    assert damaged(tmp_path) == [folder / names[0], folder / names[1]]
    published(both)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert damaged(tmp_path) == []
    (folder / "table88-other.svg").write_text("of another table")
    published({"BYOL": 0.2})
    assert sorted(path.name for path in folder.iterdir()) == [
        "table8-views.png",
        "table8-views.svg",
        "table88-other.svg",
    ]


def test_a_report_from_elsewhere_can_neither_leave_its_folder_nor_break_the_drawing(tmp_path: Path) -> None:
    text = render.json(drawn(table("table8"), {"BYOL": 0.72, "BYOL + L_s": 0.73}))
    assert render.json(loads(text, "x")) == text
    data = json.loads(text)
    (tmp_path / "table8.json").write_text(text)
    assert render.read(tmp_path / "table8.json").figures
    bad = (
        ("name", "table8-../../x"),
        ("name", "table9-views"),
        ("title", "$"),
        ("drawing", {"strips": []}),
        ("drawing", {"strips": [{"title": "", "panels": []}]}),
    )
    for key, value in bad:
        (tmp_path / "table8.json").write_text(
            json.dumps(data | {"figures": [data["figures"][0] | {key: value}]})
        )
        with pytest.raises(ValueError, match="render the table again"):
            render.read(tmp_path / "table8.json")
    for key, value in (("x", [1]), ("y", ["1", "2"]), ("style", -1), ("y", [1e300] * 3)):
        found = json.loads(text)
        found["figures"][-1]["drawing"]["strips"][0]["panels"][0]["series"][0][key] = value
        with pytest.raises(ValueError, match="render the table again"):
            loads(json.dumps(found), "x")


def test_no_table_has_figures_without_runs() -> None:
    one = table("table8")
    assert illustrate(one, fill(one, 1, frame(one, 1, {}, {})), 1, {}, no_histories).figures == ()
