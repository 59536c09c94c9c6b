"""The benchmarks: their comparisons and their output. These tests do not judge the numbers."""

import importlib
import json
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from bench import bench_methods, bench_step, device
from bench.__main__ import names
from bench.compare import in_turns, record
from reproduce.commands import speed
from reproduce.nn.stages import parts
from reproduce.train import Meter, draw_batch, start, train_step

PROJECT = Path(__file__).resolve().parent.parent
CPU = torch.device("cpu")
TINY = bench_step.Case(backbone="small", size=8, batch_size=4, num_views=3, rounds=1)


def bench(tmp_path, *arguments):
    """Run `python -m bench` with its report in `tmp_path`."""
    site = tmp_path / "site.toml"
    site.write_text(f'reports = "{tmp_path}"\n')
    command = [sys.executable, "-m", "bench", *arguments]
    return subprocess.run(
        command, cwd=PROJECT, env={"MSBREG_SITE": str(site)}, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["methods", "step", "sweep"])
def test_a_benchmark_prints_a_table_and_writes_one_json(tmp_path, name):
    done = bench(tmp_path, name, "--quick")
    assert done.returncode == 0, done.stderr
    (found,) = json.loads((tmp_path / "bench.json").read_text())
    assert list(found) == ["bench", "case", "value", "unit", "bar", "holds", "detail"]
    assert found["bench"] == name
    assert found["value"] > 0
    assert found["holds"] is None, "the quick setting has no bar"
    assert done.stdout.startswith(f"{name:13}{found['case']}")


def test_an_unknown_benchmark_is_named_with_the_nearest(tmp_path):
    done = bench(tmp_path, "stepp")
    assert done.returncode == 2
    assert (
        done.stderr.strip() == "There is no benchmark 'stepp'. Did you mean 'step'? "
        "Known: knn, lightly, memory, methods, optim, pretraining, step, sweep, views."
    )
    assert not (tmp_path / "bench.json").exists()


def test_the_two_sides_take_turns_in_going_first():
    calls = []
    found = in_turns(lambda: calls.append("a"), lambda: calls.append("b"), rounds=3, device=CPU)
    assert "".join(calls) == "ab" + "ba" + "ab" + "ba"  # the first pair warms up
    assert found.first >= 0


@pytest.mark.parametrize(
    ("value", "bar", "text", "holds"),
    [
        (1.1, {"at_most": 1.1}, "<= 1.1", True),
        (1.11, {"at_most": 1.1}, "<= 1.1", False),
        (3.0, {"at_least": 3}, ">= 3", True),
        (2.9, {"at_least": 3}, ">= 3", False),
        (2.0, {}, None, None),
        (None, {"at_most": 1.1}, "<= 1.1", None),
    ],
)
def test_a_bar_holds_or_not_and_an_absent_value_is_neither(value, bar, text, holds):
    found = record("step", "a over b", value, unit="x", detail="", **bar)
    assert (found["value"], found["bar"], found["holds"]) == (value, text, holds)


def test_a_step_and_the_backbone_alone_send_the_same_views_through_the_same_backbones():
    spec = TINY.spec(CPU)
    network, optimizer = start(spec, CPU)
    step = bench_step.random_batch(TINY.num_views, TINY.batch_size, TINY.size, CPU)
    seen = {"online": [], "target": []}
    for name, calls in seen.items():
        getattr(network, name).backbone.register_forward_pre_hook(
            lambda _, inputs, calls=calls: calls.append(inputs[0])
        )
    bench_step.backbone_alone(network, step.views, torch.randn(TINY.batch_size, 64), spec.precision)
    train_step(spec, network, optimizer, Meter(), step, lr=1e-3)
    for calls in seen.values():
        assert [id(view) for view in calls] == [id(view) for view in 2 * step.views]


@pytest.mark.parametrize("case", bench_methods.CASES, ids=lambda case: case.title)
def test_networks_alone_pass_the_views_of_a_step_forward_and_backward(case):
    spec = replace(case.spec(True, CPU), method=case.spec(True, CPU).method.smaller("smoke"), batch_size=16)
    network, optimizer = start(spec, CPU, num_images=9469)
    size = spec.dataset.size // 4
    step = bench_step.random_batch(spec.method.num_views, spec.batch_size, size, CPU)

    def train():
        train_step(spec, network, optimizer, Meter(), step, lr=1e-3)

    def passes(work):
        """The last map of each pass through the online backbone, and whether a gradient came back."""
        seen = []

        def forward(module, inputs, features):
            seen.append([features.shape, False])
            if features.requires_grad:
                features.register_hook(lambda _, entry=seen[-1]: entry.__setitem__(1, True))

        handle = parts(network.online.backbone)[-1].register_forward_hook(forward)
        work()
        handle.remove()
        return seen

    alone = bench_methods.networks_alone(network, train)
    expected = passes(train)
    assert expected
    assert passes(alone) == expected
    assert all(parameter.grad is None for parameter in network.online.parameters())


def test_views_that_are_stored_in_bfloat16_change_no_weight():
    spec = replace(TINY.spec(CPU), precision="bfloat16")
    pixels = torch.randint(256, (4, 3, 96, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    sizes, indices = torch.full((4, 2), 96), torch.arange(4)
    trained = []
    for precision in ("bfloat16", "float32"):
        step = draw_batch(replace(spec, precision=precision), pixels, sizes, indices)
        assert step.views[0].dtype is getattr(torch, precision)
        network, optimizer = start(spec, CPU)
        train_step(spec, network, optimizer, Meter(), step, lr=0.5)
        trained.append(network.state_dict())
    assert all(torch.equal(trained[0][key], trained[1][key]) for key in trained[0])


@pytest.mark.filterwarnings("ignore:.*found in sys.modules")
@pytest.mark.parametrize("module", [*(f"bench_{name}" for name in names()), "__main__", "device", "mutants"])
def test_a_command_line_has_a_help_and_refuses_what_it_does_not_know(module, monkeypatch, capsys):
    name = "bench" if module == "__main__" else f"bench.{module}"
    for option, code in (("--help", 0), ("--nonsense", 2), ("--hel", 2)):
        monkeypatch.setattr(sys, "argv", ["", option])
        with pytest.raises(SystemExit) as ended:
            runpy.run_module(f"bench.{module}", run_name="__main__")
        printed = capsys.readouterr()
        assert ended.value.code == code
        if code:
            assert printed.out == ""
            assert printed.err == (
                f"python -m {name}: unrecognized arguments: {option}; --help lists the options\n"
            )
        else:
            assert printed.out.startswith(f"usage: python -m {name} [-h]")
            assert importlib.import_module(f"bench.{module}").__doc__.strip() in printed.out


@pytest.mark.slow
def test_the_script_for_a_new_gpu_starts_from_its_file_and_names_its_parts(tmp_path):
    command = [sys.executable, str(PROJECT / "bench" / "device.py"), "--help"]
    environment = {"PATH": "/usr/bin:/bin"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert all(f"{part.name} {part.seconds:.0f}" in done.stdout for part in device.ON_GPU)


@pytest.mark.slow
def test_a_new_device_leaves_one_json_named_after_it(tmp_path):
    command = [sys.executable, "-m", "bench.device", "--quick", "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (path,) = tmp_path.iterdir()
    assert done.stdout.splitlines()[-1] == str(path)
    found = json.loads(path.read_text())
    assert path.name == f"{device._file_name(found['device'])}.quick.json"
    assert path.name.endswith(speed.QUICK)
    assert [record["bench"] for record in found["records"]] == ["step", "pretraining"]
    assert found["failed"] == {}
    assert found["skipped"] == {"table8": "--quick trains no table"}
    assert {"commit", "packages", "cores", "seconds"} <= found.keys()


@pytest.mark.slow
def test_a_part_that_fails_hangs_or_does_not_fit_is_named_and_the_next_one_runs(tmp_path):
    session = device.Session(tmp_path)
    session.measure(device.Part("broken", "bench.no_such_benchmark"))
    session.measure(device.Part("endless", "http.server", ("0", "--bind", "127.0.0.1"), seconds=1))
    session.measure(device.Part("silent", "platform"))
    session.measure(device.Part("large", "bench.bench_step", seconds=1e6))
    session.measure(device.Part("step", "bench.bench_step", ("--quick",)))
    found = json.loads(session.path.read_text())
    assert [record["bench"] for record in found["records"]] == ["step"]
    assert found["failed"] == {
        "broken": "exit code 1; its last words are above",
        "endless": "it took longer than 1 s",
        "silent": "it printed no records",
    }
    assert list(found["skipped"]) == ["large"]
    again, tiny = device.Session(tmp_path), device.Session(tmp_path, quick=True)
    again.resume()
    assert again.result == {key: found[key] for key in again.result}
    tiny.save()
    tiny.resume()
    assert tiny.result["records"] == []
    assert json.loads(session.path.read_text()) == found, "tiny cases replace no result"


def test_time_that_is_kept_for_another_command_is_not_used(tmp_path):
    session = device.Session(tmp_path, seconds=10)
    assert session.process("late", [sys.executable, "--version"], 20, kept=30) is None
    assert session.result["skipped"] == {"late": "0 s are left, and it may take 20 s"}
    assert session.process("early", [sys.executable, "--version"], 10, kept=3).startswith("Python ")


@pytest.mark.skipif(not (PROJECT / ".git").exists() or shutil.which("git") is None, reason="not a repository")
def test_results_of_tiny_cases_are_no_change_of_the_code():
    ignored = subprocess.run(
        ["git", "check-ignore", "-q", device.QUICK_RESULTS / "a.quick.json"], cwd=PROJECT, check=False
    )
    assert ignored.returncode == 0


def test_a_name_of_a_card_becomes_the_name_of_a_file():
    assert device._file_name("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"
    assert device._file_name("") == "unknown"
