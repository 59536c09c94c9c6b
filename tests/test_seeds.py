"""The plan of `invoke seeds`: plans computed by hand, the commands, and a real store with made-up runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pytest
from conftest import Home
from toys import image_folder

from reproduce.commands.seeds import SMOKE, Candidate, commands, plan, propose
from reproduce.commands.show import show
from reproduce.messages import InvalidError
from reproduce.plan import Request, jobs
from reproduce.site import Site
from reproduce.spec import Evaluate, Pretrain
from reproduce.tracking.store import Store

if TYPE_CHECKING:
    from reproduce.commands.seeds import Choice


def claim(text: str, runs: str, needed: int = 3, cells: Sequence[tuple[str, str]] = ()) -> Candidate:
    """Return an undecided claim with its runs, one letter for each."""
    return Candidate(
        text=text,
        verdict="inconclusive",
        effect=None,
        seeds=2,
        needed=needed,
        cells=tuple(cells),
        runs=tuple(runs),
    )


def order(chosen: Sequence[Choice]) -> list[tuple[str, str, float | None]]:
    return [(each.candidate.text, "".join(each.runs), each.seconds) for each in chosen]


# The plan


def test_claims_come_in_the_order_of_claims_decided_per_hour() -> None:
    """A: 1 claim in 300 s. B: 1 in 100 s. C: 1 in 200 s, and 1 in 100 s once B has `b`."""
    claims = [claim("A", "a"), claim("B", "b"), claim("C", "bc")]
    seconds = {"a": 300.0, "b": 100.0, "c": 100.0}
    chosen, left_out = plan(claims, seconds)
    assert order(chosen) == [("B", "b", 100), ("C", "c", 100), ("A", "a", 300)]
    assert left_out == []


def test_a_run_counts_once_and_a_claim_that_another_one_covers_is_free() -> None:
    """B takes 250 s and decides A, too: 2 / 250 is more than A's 1 / 200."""
    claims = [claim("A", "xy"), claim("B", "xyz")]
    chosen, _ = plan(claims, {"x": 100.0, "y": 100.0, "z": 50.0})
    assert order(chosen) == [("B", "xyz", 250), ("A", "", 0)]


def test_a_budget_leaves_out_what_does_not_fit() -> None:
    """Within 200 s, B (250 s) does not fit; A does, and after it z alone does not."""
    claims = [claim("A", "xy"), claim("B", "xyz")]
    chosen, left_out = plan(claims, {"x": 100.0, "y": 100.0, "z": 50.0}, 200)
    assert order(chosen) == [("A", "xy", 200)]
    assert left_out == [claims[1]]
    assert plan(claims, {"x": 100.0, "y": 100.0, "z": 50.0}, 250)[1] == []


def test_unknown_hours_order_by_the_number_of_runs_and_exceed_every_budget() -> None:
    """By seconds, A would be first; by runs, B is."""
    claims = [claim("A", "ab"), claim("B", "c"), claim("C", "de")]
    seconds: Mapping[str, float | None] = {"a": 1.0, "b": 1.0, "c": 100.0, "d": 1.0, "e": None}
    assert order(plan(claims, seconds)[0]) == [("B", "c", 100), ("A", "ab", 2), ("C", "de", None)]
    chosen, left_out = plan(claims, seconds, 1e9)
    assert [each.candidate.text for each in chosen] == ["B", "A"]
    assert left_out == [claims[2]]


# The commands


def options(requests: Sequence[Request]) -> list[tuple[str, str, int]]:
    return [(each.rows, each.columns, each.seeds) for each in requests]


def test_claims_with_the_same_seeds_share_a_command() -> None:
    request = Request(table="table8", scale="small")
    low, high = [("BYOL", "acc"), ("BYOL + L_s", "acc")], [("BYOL", "acc"), ("Ours (K=4)", "acc")]
    claims = [claim("a", "", 3, high), claim("b", "", 3, low), claim("c", "", 5, high)]
    assert options(commands(claims, request, request.build())) == [
        ("BYOL,Ours (K=4)", "*", 5),
        ("BYOL,BYOL + L_s,Ours (K=4)", "*", 3),
    ]
    covered = [claim("a", "", 3, low[:1]), claim("c", "", 5, high)]
    assert options(commands(covered, request, request.build())) == [("BYOL,Ours (K=4)", "*", 5)]
    everything = [(row.label, "acc") for row in request.build().rows]
    assert options(commands([claim("a", "", 3, everything)], request, request.build())) == [("*", "*", 3)]


def test_rows_that_need_other_columns_have_another_command() -> None:
    request = Request(table="table1", scale="small")
    cells = [("BYOL", "stl10_top1"), ("BYOL", "stl10_5nn"), ("Ours", "stl10_5nn")]
    rows = [row.label for row in request.build().rows]
    ours = next(label for label in rows if label.startswith("Ours"))
    cells[2] = (ours, "stl10_5nn")
    assert options(commands([claim("a", "", 4, cells)], request, request.build())) == [
        ("BYOL", "stl10_top1,stl10_5nn", 4),
        (ours, "stl10_5nn", 4),
    ]


def test_a_comma_in_a_label_separates_no_globs() -> None:
    request = Request(table="table6", scale="small")
    labels = ["BYOL (LN, batch 1024)", "Ours (LN, lambda_b=5e-4)"]
    made = commands([claim("a", "", 4, [(each, "acc") for each in labels])], request, request.build())
    assert [each.rows for each in made] == ["BYOL (LN? batch 1024),Ours (LN? lambda_b=5e-4)"]
    assert [row.label for row in made[0].build().rows] == labels


# A real store

CHANGES = ("precision=float32",)
"""The precision of pretraining on a CPU."""
TABLE8 = Request(table="table8", scale="small", changes=CHANGES)
VALUES = {
    "BYOL": (0.50, 0.52, 0.54),
    "Ours (K=4)": (0.53, 0.53, 0.56),
    "Ours (K=8)": (0.60, 0.62, 0.641),
    "BYOL + L_s": (0.51,),
    "BYOL + L_b": (0.515,),
}
"""Top-1 of the finished seeds of Table 8's rows."""


def finish(store: Store, request: Request, values: Mapping[str, Sequence[float]]) -> None:
    """Record finished runs of a table's first column, as trained and evaluated."""
    for row, _, ours in request.build().measured():
        seeds = values.get(row.label, ())
        for spec, value in zip(ours.runs(len(seeds)), seeds, strict=True):
            assert isinstance(spec.encoder, Pretrain)
            with store.start(spec.encoder, scale=request.scale) as run:
                run.finish({"loss": 0.5})
            with store.start(spec, scale=request.scale) as run:
                run.finish({"top1": value, "top5": value})


@pytest.fixture
def site(place: Home) -> Site:
    """Return a site with Imagenette, and a store that contains VALUES."""
    root = image_folder(place.folder / "imagenette")
    place.site_file.write_text(
        f'{place.site_file.read_text(encoding="utf-8")}[data]\nimagenette = "{root}"\n', encoding="utf-8"
    )
    return Site(runs=place.runs, reports=place.reports, device="cpu", jobs=2, data={"imagenette": root})


@pytest.mark.slow
def test_a_plan_from_the_effects_and_spreads_in_a_store(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two claims of Table 8 have all their numbers.

    L_c alone improves on BYOL: the gains at K = 4 are 3, 1 and 2 points, so their mean is 2 and their
    deviation 1. t(.975, 2) / sqrt(3) is 2.48, more than 2; t(.975, 3) / sqrt(4) is 1.59, less. One more seed
    of three rows is three pretrainings and three evaluations.

    L_s and L_b alone improve BYOL: one seed. Two more seeds of two rows are four of each, as BYOL has three.
    """
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = Store(site)
    finish(store, TABLE8, VALUES)
    found = propose(TABLE8, 20, None, site, store)
    by_needed = {each.candidate.needed: each for each in found.chosen}
    assert found.left_out == ()
    assert {needed: (each.candidate.seeds, len(each.runs)) for needed, each in by_needed.items()} == {
        4: (3, 6),
        3: (1, 8),
    }
    lines = list(found.lines(100))
    assert lines[0] == (
        "table8 at small scale: 13 claims: 1 inconclusive, 1 direction only, 2 not judged, 9 open."
    )
    words = {line.split("  ")[0]: line.split()[-9:] for line in found.lines(300)}
    gains = "ℒ_c alone improves on BYOL at K = 4 and at K = 8 (1st, 5th and 9th row)."
    assert words[gains][-9:-2] == ["row).", "2.00", "[-0.48,", "4.48]", "3", "4", "6"]
    alone = "Each of ℒ_b and ℒ_s alone improves BYOL."
    assert words[alone][-9:-2] == ["BYOL.", "1.00", "1", "3", "at", "first", "8"]
    assert max(map(len, lines[2:5])) <= 100
    tail = "--scale small --seeds {} --set precision=float32"
    start = lines.index("Commands (a run that several of them need counts once):") + 1
    assert lines[start : start + 3] == [
        f"  invoke table8 --rows 'BYOL,Ours (K=4),Ours (K=8)' {tail.format(4)}",
        f"  invoke table8 --rows 'BYOL,BYOL + L_s,BYOL + L_b' {tail.format(3)}",
        "14 runs to start.",
    ]
    assert lines[-1].startswith("Only 3 of 12 cells then have 4 seeds: with --seeds 4 the whole table shows ")
    planned = {job.spec for job in jobs(found.requests)} - {*TABLE8.specs()}
    assert sum(isinstance(spec, Evaluate) for spec in planned if spec.seed) == 2 + 2 + 2 + 3 * 1 + 2 * 2

    # Limits.
    capped = propose(TABLE8, 3, None, site, store)
    assert [(each.needed, each.why_not) for each in capped.left_out] == [(4, "more than 3 seeds (--seeds)")]
    poor = propose(TABLE8, 20, 1e-9, site, store)
    assert (poor.chosen, poor.requests, poor.costs) == ((), (), None)
    assert {each.why_not.partition(":")[0] for each in poor.left_out} == {
        "beyond the budget of 1e-09 CPU-hours"
    }
    with pytest.raises(InvalidError, match=r"^--seeds is 1: a spread needs at least 2 seeds\.$"):
        propose(TABLE8, 1, None, site, store)
    blocked = propose(TABLE8, 20, None, Site(runs=site.runs, device="cpu"), store)
    assert {each.why_not for each in blocked.left_out} == {"a run cannot start"}
    assert any("The data root 'imagenette' is not set" in line for line in blocked.lines(100))


@pytest.mark.slow
def test_a_plan_for_all_cells_names_the_command_for_the_whole_table(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    store = Store(site)
    finish(store, TABLE8, {row.label: (0.5,) for row in TABLE8.build().rows})
    found = propose(TABLE8, 2, None, site, store)
    assert options(found.requests) == [("*", "*", 2)]
    *_, last = found.lines(100)
    assert last == (
        "Every cell then has 2 seeds. The whole table: `invoke table8 --scale small --seeds 2 --set "
        "precision=float32 --render-only`."
    )


@pytest.mark.slow
def test_only_apply_starts_the_plan_and_show_notices_runs_that_a_report_lacks(
    site: Site, place: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Untrained encoders: two rows of Table 12 get a second seed, one pretraining and one evaluation each."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    changes = ("epochs=0", *CHANGES, "protocol.epochs=1")
    rows = Request(table="table12", scale="small", rows="BYOL + *", columns="acc", changes=changes)
    finish(Store(site), rows, {row.label: (0.3,) for row in rows.build().rows})
    of_table = ("--scale", "small", *(word for change in changes for word in ("--set", change)))
    assert place.invoke("table12", *of_table, "--render-only").returncode == 3
    assert show("table12", "small", site, Store(site))[-1].startswith("table12 (small): 2 of 12 cells filled")

    command = ("seeds", "table12", *of_table, "--seeds", "2", "--apply")

    def folders() -> set[str]:
        return {path.name for path in place.runs.iterdir() if path.is_dir() and len(path.name) == 12}

    before = folders()
    planned = place.invoke("--dry", *command)
    assert (planned.returncode, planned.stderr) == (0, "")
    assert "4 runs to start." in planned.stdout
    assert folders() == before
    applied = place.invoke(*command)
    assert (applied.returncode, applied.stderr) == (0, "")
    assert applied.stdout.startswith(planned.stdout)
    assert "4 runs done, 4 reused, 0 missing" in applied.stdout
    assert "table12 (small): 2 of 2 cells filled" in applied.stdout.splitlines()[-1]

    byol = Request(table="table12", scale="small", rows="BYOL", columns="acc", changes=changes)
    place.invoke("table12", *of_table, "--render-only")
    finish(Store(site), byol, {"BYOL": (0.4,)})
    with pytest.raises(InvalidError, match=r"^Runs of table12 at small scale have finished .* epochs=0"):
        show("table12", "small", site, Store(site))


# The command line


@pytest.mark.parametrize(
    ("arguments", "code", "out", "error"),
    [
        (("table8",), 0, f"{SMOKE}\n", ""),
        (
            ("table8", "--budget", "few"),
            2,
            "",
            "--budget must be a number of hours, such as 0.5, not 'few'.\n",
        ),
        (("table8", "--seeds", "x"), 2, "", "--seeds must be a whole number, not 'x'.\n"),
    ],
    ids=["smoke", "budget", "seeds"],
)
def test_what_needs_no_plan_is_one_line(
    arguments: tuple[str, ...], code: int, out: str, error: str, home: Home
) -> None:
    done = home.invoke("seeds", *arguments)
    assert (done.returncode, done.stdout, done.stderr) == (code, out, error)
    assert not home.runs.exists()
