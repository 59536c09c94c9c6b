"""MLflow's UI in a real browser: the saved views, and our numbers against the paper's."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from toys import fill_from
from waiting import answers

from reproduce.commands.ui import addresses
from reproduce.plan import Request
from reproduce.site import Site
from reproduce.spec import Evaluate
from reproduce.tracking import views
from reproduce.tracking.about import Purpose
from reproduce.tracking.sqlite import Wanted
from reproduce.tracking.store import Store
from reproduce.tracking.uses import Use

BROWSER, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync", "--no-first-run", "--window-size=2400,1600"),
)
PART = Request(table="table11", rows="*lambda_b=0,*lambda_b=0.5,*lambda_b=2.0", columns="k4")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (BROWSER and DRIVER), reason="chromium or chromedriver is not installed"),
]


@pytest.fixture(scope="module")
def served(
    template: Path, port: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Store, int]]:
    """Serve a store with twelve cells of Table 11 as `invoke ui` does; return it and the port."""
    site = Site(runs=tmp_path_factory.mktemp("ui"))
    shutil.copy(template, site.runs)
    store = Store(site)
    use = Use(table="table11", named="Table 11", cells=["a cell"])
    purpose = Purpose(table="table11", named="Table 11", uses=(use,), command="invoke table11")
    for number, spec in enumerate(PART.specs()):
        with store.start(spec, scale="smoke", purpose=purpose) as run:
            run.finish({"top1": number / 100} if isinstance(spec, Evaluate) else {"loss": 1.0})
    table = PART.build()
    report = site.runs / "table11.md"
    report.write_text("a report")
    finished = store.finished(spec.id for spec in table.specs(1))
    store.log_table(fill_from(table, 1, finished, {}), [report], table)
    addresses(store, port)
    command, extra = store.ui_command(port)
    with (site.runs / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **extra}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        assert answers(server, f"http://127.0.0.1:{port}/health"), (site.runs / "server.log").read_text()
        yield store, port
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = BROWSER or ""
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('browser')}"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


def wait(browser: Any, script: str) -> Any:
    """Return what a script returns as soon as that is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 120).until(lambda each: each.execute_script(f"return {script}"))


def page(store: Store, port: int, experiment: str, view: str) -> str:
    return store.pages(port)[experiment].views[view]


@pytest.mark.parametrize("view", ["all", "table11", "table11-K4"])
def test_the_list_of_a_view_shows_top1_and_k_without_a_click(
    served: tuple[Store, int], browser: Any, view: str
) -> None:
    browser.get(page(*served, "smoke", view))
    shown = ["12 matching runs", "final/top1", "K", "K4 λs.01 λb2 → linear · synth 4ep · s0"]
    lines = r"document.body.innerText.split('\n').map(line => line.trim())"
    for line in shown:  # the parts of the page appear one after another
        assert wait(browser, f"{lines}.includes({json.dumps(line)})"), line
    best = wait(browser, 'document.querySelector(\'[row-index="0"] [col-id*="final/top1"]\')?.innerText')
    assert best == "0.23"  # the last of 24 runs: the list is sorted by top-1


def test_the_view_of_table_11_draws_its_three_charts(served: tuple[Store, int], browser: Any) -> None:
    browser.get(views.charts(page(*served, "smoke", "table11")))
    drawn = "document.querySelectorAll('{}').length"
    for element in ("g.contourlayer path", "g.barlayer path", ".parcoords canvas"):
        assert wait(browser, drawn.format(element)) > 0
    assert "Charts of Table 11" in wait(browser, "document.body.innerText")


def test_the_plane_of_table_11_at_one_k_leaves_out_the_others(
    served: tuple[Store, int], browser: Any
) -> None:
    assert {key for key in served[0].pages(served[1])["smoke"].views if key.startswith("table11-")} == {
        "table11-K2",
        "table11-K4",
        "table11-K8",
    }
    browser.get(views.charts(page(*served, "smoke", "table11-K4")))
    assert wait(browser, "document.querySelectorAll('g.contourlayer path').length") > 0
    assert "Charts of Table 11, K = 4" in wait(browser, "document.body.innerText")


def test_the_description_of_a_run_leads_to_the_report(served: tuple[Store, int], browser: Any) -> None:
    store, port = served
    run = store.record_of(PART.specs()[-1].id)
    assert run is not None
    experiment = store.connection.experiment("smoke")
    browser.get(f"http://127.0.0.1:{port}/#/experiments/{experiment}/runs/{run.state.run_id}")
    assert wait(browser, "document.body.innerText.includes('Made by invoke table11.')")
    tables = store.connection.experiment("tables")  # the link works without a saved view
    saved = store.connection.client.get_experiment(tables).tags[views.tag("table11")]
    store.connection.client.delete_experiment_tag(tables, views.tag("table11"))
    link = "[...document.querySelectorAll('a')].find(link => link.innerText === 'the records of Table 11')"
    browser.get(wait(browser, f"{link}?.href"))
    for text in ("Table 11, paper", "Table 11, ours, smoke"):
        assert wait(browser, f"document.body.innerText.includes({json.dumps(text)})"), text
    assert wait(browser, "document.body.innerText.includes('2 matching runs')")
    store.connection.client.set_experiment_tag(tables, views.tag("table11"), saved)


def test_ours_against_the_paper_is_drawn(served: tuple[Store, int], browser: Any) -> None:
    store, port = served
    ours, paper = (
        next(store.connection.search(Wanted(tags={"numbers": [whose]}))) for whose in ("ours", "paper")
    )
    name = "lambda_s 0.004 lambda_b 0.5/k4"
    assert paper.data.metrics[name] == 80.4
    assert ours.data.metrics[f"{name}/difference"] == pytest.approx(ours.data.metrics[name] - 80.4)
    runs = [ours.info.run_id, paper.info.run_id]
    browser.get(views.compared(f"http://127.0.0.1:{port}", ours.info.experiment_id, runs))
    assert wait(browser, "document.querySelectorAll('.js-plotly-plot .parcoords path').length") > 0
    for text in ("Run details", "Table 11, paper", "Table 11, ours, smoke"):
        assert wait(browser, f"document.body.innerText.includes({json.dumps(text)})"), text
    browser.get(views.charts(page(store, port, "tables", "table11")))
    assert wait(browser, "document.body.innerText.includes('Ours against the paper')")
    saved = store.connection.client.get_experiment(ours.info.experiment_id).tags[views.tag("table11")]
    assert json.loads(saved)["orderByKey"] == "tags.`numbers`", "the order depends on the numbers"
    # The paper's numbers are the baseline, and each number of ours has its distance from them.
    text = wait(browser, "document.body.innerText.split('Compare by')[1]")
    assert text.index("Table 11, paper") < text.index("Table 11, ours, smoke")
