"""The pages over all tables and those of runs: cost by hand, what each page names, what a browser shows."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_report import REASONS, SEEDS, TABLE, Page, filled_with_three_seeds, finished, ids, run_of

from reproduce import identity
from reproduce.commands.pages import record
from reproduce.plan import registered
from reproduce.report import overview, register, render
from reproduce.report.publish import publish
from reproduce.report.record import RunRecord, cost
from reproduce.tracking.portable import PortableRun

HOUR = 3_600_000
START = 1_700_000_000_000
CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")


def a_record(spec_id: str = "0" * 12, **given: Any) -> RunRecord:
    """Return the record of a run of two hours on two GPUs."""
    fields: dict[str, Any] = {
        "spec_id": spec_id,
        "title": "msbreg <b>K=4</b>",
        "is_pretraining": True,
        "started": START,
        "ended": START + 2 * HOUR,
        "attempts": 1,
        "commit": "c" * 40,
        "dirty": True,
        "settings": {"epochs": "4", "method": "msbreg"},
        "changed": frozenset({"method"}),
        "final": {"loss": 0.25},
        "histories": {"loss": [(1, 2.0, START), (9, 0.25, START + HOUR)]},
        "environments": [{"kind": "GPU", "processes": 2, "device": "H100", "packages": {"torch": "2.14"}}],
    }
    return RunRecord(**fields | given)


def test_hours_and_energy_by_hand_and_what_is_unknown_stays_unknown() -> None:
    power = {
        # 100 W for an hour, then rising to 300 W: 0.1 + 0.2 kWh; and 50 W for two hours: 0.1 kWh.
        "system/gpu_0_power_usage_watts": [
            (1, 100.0, START),
            (2, 100.0, START + HOUR),
            (3, 300.0, START + 2 * HOUR),
        ],
        "system/gpu_1_power_usage_watts": [(1, 50.0, START), (3, 50.0, START + 2 * HOUR)],
    }
    measured = a_record(histories=power)
    assert (measured.hours, measured.kwh) == (4.0, pytest.approx(0.1 + 0.2 + 0.1))
    own = {"kind": "GPU", "processes": 1, "gpus": [{"index": 0, "uuid": "GPU-0a1b2c3d"}]}
    one = a_record(histories=power, environments=[own])
    assert (one.hours, one.kwh) == (2.0, pytest.approx(0.1 + 0.2)), "the other GPU is not its own"
    shared = a_record(histories=power, environments=[own | {"runs_per_gpu": 4}])
    assert (shared.hours, shared.kwh) == (0.5, pytest.approx(0.3 / 4))
    for unknown in ([{"index": None}], [{"index": 0}, {}], "0", 3):
        assert a_record(histories=power, environments=[own | {"gpus": unknown}]).kwh == measured.kwh
    assert a_record(histories=power, environments=[own | {"gpus": [{"index": 7}]}]).kwh is None
    cores = a_record(environments=[{"kind": "CPU", "processes": 1, "threads": 4}])
    assert (cores.hours, cores.kwh) == (8.0, None)
    resumed, unrecorded = replace(measured, attempts=2), a_record(environments=[{"kind": "GPU"}])
    assert (resumed.hours, resumed.kwh, unrecorded.hours) == (None, None, None)
    once = {"system/gpu_0_power_usage_watts": [(1, 100.0, START)]}
    assert a_record(histories=once).kwh is None, "one sample has no duration"
    found = cost([measured, cores, resumed, unrecorded, None])
    assert (found.num_runs, found.hours, found.unknown_hours) == (5, {"GPU": 4.0, "CPU": 8.0}, 3)
    assert (found.kwh, found.unknown_kwh) == (pytest.approx(0.4), 4)
    assert (cost([None]).hours, cost([None]).kwh) == ({}, None)


def test_a_curve_keeps_its_ends_and_escapes_its_name() -> None:
    points = [(step, float(step)) for step in range(1000)]
    drawn = str(overview.curve('<script>"', points))
    assert "<script" not in drawn
    spots = drawn.partition('points="')[2].partition('"')[0].split()
    assert (len(spots), spots[0], spots[-1]) == (overview.MOST_POINTS, "0.0,94.0", "240.0,4.0")
    assert "from 0 at step 0 to 999 at step 999" in drawn
    flat = str(overview.curve("constant", [(1, 2.0), (2, 2.0)]))
    assert 'points="0.0,49.0 240.0,49.0"' in flat


def test_the_settings_of_a_record_that_differ_from_the_defaults_are_known() -> None:
    spec = run_of("x").encoder
    run = PortableRun(
        spec_id=spec.id,
        name="x",
        started=START,
        ended=START,
        settings=identity.canonical(spec),
        tags={
            "scale": "smoke",
            "attempts": "1",
            "dirty": "True",
            "commit": "c" * 40,
            "compiled": "inductor",
        },
        params={},
        final={"loss": 1.0},
        histories={},
        environments={"environment-10.json": {"python": "b"}, "environment-2.json": {"python": "a"}},
    )
    found = record(run)
    assert found.changed >= {"epochs", "backbone", "method", "method.label", "optimizer.base_lr"}
    assert "optimizer.momentum" in found.settings.keys() - found.changed
    assert (found.environment, found.dirty, found.attempts) == ({"python": "b"}, True, 1)
    assert ("Compiled", "inductor") in overview._facts(found)


def records(spec_ids: Iterable[str]) -> Mapping[str, RunRecord | None]:
    """Return an evaluation for each id, upstream of which is one pretraining; the first id is unknown."""
    first, *others = sorted(spec_ids)
    upstream = a_record("f" * 12)
    return {
        first: None,
        "f" * 12: upstream,
        **{each: a_record(each, is_pretraining=False, needs="f" * 12, title="linear") for each in others},
    }


def rendered(folder: Path) -> Path:
    """Publish the small table with records, and return the folder."""
    publish(TABLE, SEEDS, finished(), REASONS, folder, "x", lambda: [TABLE], records=records)
    return folder


def links_of(page: Path) -> list[str]:
    return Page(page.read_text(encoding="utf-8")).links


def test_every_link_of_every_page_leads_to_a_place(tmp_path: Path) -> None:
    pages = sorted(rendered(tmp_path).rglob("*.html"))
    assert len(pages) == 4 + len({*records(overview.cited(render.read_all(tmp_path)))})
    for page in pages:
        for link in links_of(page):
            file, _, place = link.partition("#")
            target = (page.parent / file).resolve() if file else page
            assert target.is_file(), f"{page.name}: {link}"
            if place:
                assert target.read_text(encoding="utf-8").count(f'id="{place}"') == 1, f"{page.name}: {link}"


def test_the_page_of_a_run_names_what_it_is_and_what_uses_it(tmp_path: Path) -> None:
    rendered(tmp_path)
    text = (tmp_path / "runs" / f"{'f' * 12}.html").read_text(encoding="utf-8")
    for part in (
        "msbreg &lt;b&gt;K=4&lt;/b&gt;",
        "Table 99</a>, BYOL, STL-10 Top-1, seed 0",
        "with uncommitted changes",
        "1 setting with default values",
        "4.0 GPU-hours",
        "loss: 2 → 0.25",
        "invoke table99 --rows BYOL --columns acc",
    ):
        assert part in text, part
    unknown = min(overview.cited(render.read_all(tmp_path)))
    assert "has no record of it" in (tmp_path / "runs" / f"{unknown}.html").read_text(encoding="utf-8")


def test_the_report_counts_claims_cost_and_commits(tmp_path: Path) -> None:
    text = (rendered(tmp_path) / "report.html").read_text(encoding="utf-8")
    num = len(records(overview.cited(render.read_all(tmp_path))))
    assert f"Hours: {4 * (num - 1)}.0 GPU-hours; unknown for 1 of {num} runs." in text
    assert f"Energy of the GPUs: unknown for {num} of {num} runs." in text
    assert f"<strong>with uncommitted changes</strong> ({num - 1} runs)" in text
    assert "<script" not in text
    (found,) = register.entries([], {each.table: each for each in render.read_all(tmp_path)})
    board = overview.scoreboard([found], render.read_all(tmp_path))
    assert sum(board["total"]) == 2 * len(found.claims)


def test_pages_are_written_again_only_if_a_run_is_another_and_go_with_their_runs(tmp_path: Path) -> None:
    asked: list[int] = []

    def counting(spec_ids: Iterable[str]) -> Mapping[str, RunRecord | None]:
        asked.append(1)
        return records(spec_ids)

    def again(runs: Any) -> None:
        publish(TABLE, SEEDS, runs, REASONS, tmp_path, "x", lambda: [TABLE], records=counting)

    again(finished())
    again(finished())
    assert len(asked) == 1
    redone, spec_id = finished(), ids("byol")[0]
    redone[spec_id] = replace(redone[spec_id], run_id="another")
    again(redone)
    assert len(asked) == 2
    page = tmp_path / "runs" / f"{spec_id}.html"
    assert page.exists()
    del redone[spec_id]
    again(redone)
    assert not page.exists()


def test_a_store_that_does_not_answer_is_asked_again_by_the_next_command(tmp_path: Path) -> None:
    publish(TABLE, SEEDS, finished(), REASONS, tmp_path, "x", lambda: [TABLE], records=lambda ids: {})
    assert "No record of a run is available" in (tmp_path / "report.html").read_text(encoding="utf-8")
    rendered(tmp_path)
    assert "uncommitted changes" in (tmp_path / "report.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium without a network."""
    if not (CHROMIUM and DRIVER):
        pytest.skip("chromium and chromedriver are not installed")
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = CHROMIUM
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for each in ("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"):
        options.add_argument(each)
    options.add_argument("--disable-background-networking")
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


CONTRAST = """
const parse = text => text.match(/[\\d.]+/g).map(Number);
const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
  .map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
  .reduce((sum, c, i) => sum + c * [.2126, .7152, .0722][i], 0);
const behind = node => {
  for (; node; node = node.parentElement) {
    const colour = parse(getComputedStyle(node).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour;
  }
  return [255, 255, 255];
};
const low = [];
for (const node of document.querySelectorAll('body *')) {
  if (![...node.childNodes].some(each => each.nodeType === 3 && each.textContent.trim())) continue;
  if (!node.getClientRects().length || node.closest('svg')) continue;
  const [one, two] = [light(parse(getComputedStyle(node).color)), light(behind(node))];
  const ratio = (Math.max(one, two) + .05) / (Math.min(one, two) + .05);
  if (ratio < 4.5) low.push(node.textContent.trim().slice(0, 40) + ' ' + ratio.toFixed(2));
}
return low;
"""
"""Texts whose contrast with the background is below 4.5 (WCAG 2.1, 1.4.3)."""


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser_no_page_is_too_wide_or_too_pale(browser: Any, tmp_path: Path, scheme: str) -> None:
    rendered(tmp_path)
    spec_id = ids("byol")[0]
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    for name in ("report", "index", "claims", "table99", f"runs/{spec_id}", f"runs/{'f' * 12}"):
        for width in (400, 1200):
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
            browser.execute_cdp_cmd(
                "Emulation.setDeviceMetricsOverride",
                {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
            )
            browser.get((tmp_path / f"{name}.html").as_uri())
            page = "const page = document.documentElement; return page.scrollWidth - page.clientWidth"
            assert browser.execute_script(page) == 0, f"{name} at {width}"
            assert browser.execute_script(CONTRAST) == [], f"{name}, {scheme}"
    assert browser.get_log("browser") == []


@pytest.mark.slow
def test_in_a_browser_figures_stand_beside_a_narrow_table_and_below_a_wide_one(
    browser: Any, tmp_path: Path
) -> None:
    places = """
    return ['numbers', 'words', 'figures'].map(name => document.querySelector('.' + name))
        .map(each => each.getBoundingClientRect()).map(box => [box.left, box.top, box.right])
    """
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    for name, beside in (("table8", "numbers"), ("table1", "words")):
        table = next(table for table in registered("paper") if table.name == name)
        filled = replace(filled_with_three_seeds(table), not_drawn=("A reason",))
        page = tmp_path / f"{name}.html"
        page.write_text(render.html(filled), encoding="utf-8")
        browser.get(page.as_uri())
        boxes = dict(zip(("numbers", "words", "figures"), browser.execute_script(places), strict=True))
        (_, top, right), (left, figures_top, _) = boxes[beside], boxes["figures"]
        assert left > right, name
        assert figures_top == pytest.approx(top, abs=1), name


@pytest.mark.slow
def test_in_print_no_table_is_cut(browser: Any, tmp_path: Path) -> None:
    tables = [filled_with_three_seeds(table) for table in registered("paper")]
    page = tmp_path / "report.html"
    text = overview.report(tables, [], overview.Runs(tables, {}), "paper", tmp_path)
    page.write_text(text, encoding="utf-8")
    browser.execute_cdp_cmd(
        "Emulation.setEmulatedMedia",
        {"media": "print", "features": [{"name": "prefers-color-scheme", "value": "dark"}]},
    )
    width = round((210 - 2 * 14) / 25.4 * 96)  # A4 less its margins
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False},
    )
    browser.get(page.as_uri())
    wider = "[...document.querySelectorAll('table')].map(t => t.offsetWidth).filter(w => w > innerWidth)"
    assert browser.execute_script(f"return {wider}") == []
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert paper == "rgb(255, 255, 255)", "paper stays white for readers of dark pages"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
