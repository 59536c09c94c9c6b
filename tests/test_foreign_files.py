"""Files of another run in a run's folder, as after a copy by hand: none of them changes a number.

Each run must end as it does in an empty folder. The other run's files stay.
"""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import Home
from toys import CPU, Notes, Toy, encoder

from reproduce import worker
from reproduce.nn.encoder import FILE
from reproduce.plan import Request
from reproduce.protocols.linear_sgd import LinearSGD
from reproduce.protocols.semi import SemiSupervised
from reproduce.runs import checkpoint, encoder_file, interrupt, journal, lease
from reproduce.runs.interrupt import Interrupted
from reproduce.runs.journal import Journal, Result, points
from reproduce.runs.progress import Progress, Watch
from reproduce.site import Site
from reproduce.spec import Pretrain
from reproduce.tracking.store import Store
from reproduce.train import pretrain

pytestmark = pytest.mark.usefixtures("one_thread")

SWEEP = LinearSGD(base_lrs=(1.0, 10.0), epochs=3, batch_size=32, num_held_out=30)
FROZEN = SemiSupervised(epochs=(2, 3), batch_size=16, num_held_out=30)
TUNED = replace(FROZEN, classifier_lr=0.5, encoder_lr=0.02)


def request(rate: float) -> Request:
    """Return a pretraining of four steps and its evaluation; with another rate they are other runs."""
    changes = (
        f"base_lr={rate}",
        "epochs=2",
        "batch_size=32",
        "num_train=64",
        "num_val=20",
        "warmup_epochs=0",
    )
    return Request(table="table8", rows="BYOL", changes=(*changes, "protocol.epochs=2"))


def pretraining(rate: float) -> Pretrain:
    spec = request(rate).specs()[0]
    assert isinstance(spec, Pretrain)
    return spec


def halfway(progress: Progress) -> None:
    """Request a stop in the middle of the work."""
    if progress.done * 2 >= progress.total:
        interrupt.ask("a test")


def trained(rate: float, site: Site, folder: Path, report: Callable[[Progress], None]) -> Any:
    """Pretrain in `folder`; return the encoder's bytes and what does not depend on the time."""
    measured = pretrain(pretraining(rate), site, folder, CPU, Notes(), report)
    return (folder / FILE).read_bytes(), {
        key: value for key, value in measured.items() if key != "images_per_second"
    }


def evaluated(
    protocol: Any, seed: int, site: Site, folder: Path, report: Callable[[Progress], None]
) -> dict[str, float]:
    """Evaluate an untrained encoder in `folder`."""
    watch = Watch(Notes(), report, folder, spec_id=f"{protocol.name}{seed}")
    measured: dict[str, float] = protocol.run(encoder(), Toy(), site, CPU, seed, watch)
    return measured


RUNS: dict[str, Any] = {
    "pretraining": partial(trained, 0.3),
    "with another rate": partial(trained, 0.6),
    "sweep": partial(evaluated, SWEEP, 5),
    "with another seed": partial(evaluated, SWEEP, 6),
    "semi, frozen": partial(evaluated, FROZEN, 5),
    "semi, tuned": partial(evaluated, TUNED, 6),
}


@pytest.mark.slow
def test_no_run_continues_from_the_checkpoint_of_another(tmp_path: Path) -> None:
    site = Site(runs=tmp_path)
    fresh = {name: run(site, tmp_path / f"fresh {name}", lambda progress: None) for name, run in RUNS.items()}
    for name, run in RUNS.items():
        with pytest.raises(Interrupted):
            run(site, tmp_path / f"stopped {name}", halfway)
        assert list((tmp_path / f"stopped {name}").glob("epoch-*.pt")), name
    assert fresh["pretraining"] != fresh["with another rate"]
    for one, other in itertools.permutations(RUNS, 2):
        folder = tmp_path / f"{one} in {other}"
        shutil.copytree(tmp_path / f"stopped {one}", folder)
        before = {path.read_bytes() for path in folder.glob("epoch-*.pt")}
        assert RUNS[other](site, folder, lambda progress: None) == fresh[other], f"{one} in {other}"
        assert before <= {path.read_bytes() for path in folder.glob("epoch-*.pt*")}, "the other's files stay"


def test_two_trainings_write_the_same_file(tmp_path: Path) -> None:
    site = Site(runs=tmp_path)
    one, other = (trained(0.3, site, tmp_path / name, lambda progress: None) for name in "ab")
    assert one == other


def attempt(site: Site, rate: float) -> dict[str, float]:
    """Execute both runs like a worker; return the recorded values that do not depend on the time."""
    for spec in request(rate).specs():
        assert worker.attempt(request(rate).dumps(), spec.id, site, None) == 0
    found = Store(site).finished([spec.id for spec in request(rate).specs()])
    return {
        f"{spec_id}/{key}": value
        for spec_id, run in found.items()
        for key, value in run.metrics.items()
        if key != "images_per_second"
    }


def test_no_run_is_recorded_with_the_result_the_encoder_or_the_measurements_of_another(
    place: Home, template: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The other run's folder is complete: its result is kept, its journal waits, its process has failed."""
    fresh_site = Site(runs=tmp_path / "fresh")
    fresh_site.runs.mkdir()
    shutil.copy(template, fresh_site.runs)
    fresh = attempt(fresh_site, 0.3)

    site = Site(runs=place.runs)
    attempt(site, 0.6)
    for spec, victim in zip(request(0.6).specs(), request(0.3).specs(), strict=True):
        folder = site.runs / spec.id
        journal.keep_result(folder, spec.id, Result({"loss": 7.0, "top1": 0.999}, "c0ffee"))
        Journal(folder, spec.id).add(points({"loss": 7.0}, 1), {"data_digest": "0" * 64})
        worker._write_failure(folder, spec.id, "no luck")
        checkpoint.save(folder, spec.id, {"epoch": 2, "step": 0, "weights": 7}, 2)
        shutil.copytree(folder, site.runs / victim.id)
        assert worker._failed_elsewhere(site.runs / victim.id, victim.id) == ""
        assert worker._failed_elsewhere(folder, spec.id) == "another process of the run failed, no luck"
        assert lease.read(site.runs / victim.id, victim.id) is None
    assert attempt(site, 0.3) == fresh
    pretrained = request(0.3).specs()[0].id
    wanted, found = (each.runs / pretrained for each in (fresh_site, site))
    assert (found / FILE).read_bytes() == (wanted / FILE).read_bytes()
    assert json.loads((found / journal.SKIPPED).read_text())["points"][0][1] == 7.0
    for name in (journal.RESULT, journal.FILE, lease.FILE, "epoch-00002.pt"):
        assert f"{found}/{name}" in caplog.text, f"the log says that {name} is not used"


def test_a_result_whose_encoder_is_anothers_is_not_recorded(
    place: Home, caplog: pytest.LogCaptureFixture
) -> None:
    site, spec = Site(runs=place.runs), pretraining(0.3)
    folder = site.runs / spec.id
    journal.keep_result(folder, spec.id, Result({"loss": 7.0}, "c0ffee"))
    tensors = encoder().backbone.state_dict()
    encoder_file.save(folder / FILE, tensors, spec_id="0123456789ab")
    assert worker.attempt(request(0.3).dumps(), spec.id, site, None) == 0
    assert Store(site).finished([spec.id])[spec.id].metrics["loss"] != 7.0
    assert encoder_file.load(folder / FILE, spec_id=spec.id)
    assert "it is the encoder of run 0123456789ab" in caplog.text


def test_an_encoder_of_another_run_is_not_taken_from_the_store(place: Home) -> None:
    """As after a mistake in the store: the record of one run has the artifact of another."""
    site = Site(runs=place.runs)
    attempt(site, 0.3)
    spec, evaluation = request(0.3).specs()
    shutil.rmtree(site.runs / evaluation.id)
    wrong = encoder_file.save(site.runs / spec.id / FILE, {}, spec_id="0123456789ab")
    (stored,) = (site.runs).glob(f"**/artifacts/{FILE}")
    shutil.copy(wrong, stored)
    wrong.unlink()
    store = Store(site)
    (run_id,) = (state.run_id for state in store.status() if state.spec_id == evaluation.id)
    store.connection.client.delete_run(run_id)
    assert worker.attempt(request(0.3).dumps(), evaluation.id, site, None) == worker.FAILED
    assert not (site.runs / spec.id / FILE).exists()
    found = lease.read(site.runs / evaluation.id, evaluation.id)
    assert found is not None
    assert found.reason.startswith(f"The tracking store has a wrong file for {spec.id}: Encoder ")
