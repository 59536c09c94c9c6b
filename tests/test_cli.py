"""The command line as a user meets it: real processes, what they print, and how they end."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from waiting import until

from reproduce import plan
from reproduce.site import PROJECT

if TYPE_CHECKING:
    from conftest import Home

HEAVY = {"torch", "torchvision", "mlflow", "pandas", "numpy", "sklearn", "PIL", "jinja2"}
TABLES = tuple(f"table{number}" for number in range(1, 13))
OWN = {path.stem for path in (PROJECT / "tables").glob("[!_]*.py")} - {*TABLES}
"""Tables that somebody added: the tests of the paper's tables hold next to them."""
TASKS = (
    *TABLES[:5],
    "voc-detection",
    *TABLES[5:],
    "tables",
    "reports",
    "pretrain",
    "evaluate",
    "show",
    "seeds",
    "status",
    "why",
    "diff",
    "settings",
    "redo",
    "verify",
    "gc",
    "unlock",
    "export",
    "import",
    "doctor",
    "rehearse",
    "ui",
    "download",
    "docs",
    "test",
    "bench",
)
ALIASES = ("table13", "ablation-grid", "ablation_grid", "coco-mask-rcnn", "coco_mask_rcnn", "voc_detection")


def imported(home: Home, *arguments: str) -> set[str]:
    """The top-level packages that a command imports, as Python itself reports them."""
    command = [sys.executable, "-X", "importtime", "-m", "invoke", *arguments]
    done = subprocess.run(
        command, cwd=PROJECT, env=home.environment, capture_output=True, text=True, check=False
    )
    names = {
        line.split("|")[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")
    }
    assert "invoke" in names
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize(
    "arguments",
    [
        ("--list",),
        ("--help", "table8"),
        pytest.param(("--help", "tables"), marks=pytest.mark.slow),
        ("table8", "--scale", "smol", "--dry-run"),
        pytest.param(("table8", "--set", "epoch=5", "--dry-run"), marks=pytest.mark.slow),
        pytest.param(("table8", "--rows", "nobody"), marks=pytest.mark.slow),
        ("settings", "table8"),
        ("evaluate",),
        ("pretrain",),
        ("table8", "--scale", "paper", "--dry-run"),
    ],
    ids=" ".join,
)
def test_nothing_heavy_is_imported_to_list_help_plan_or_refuse(
    arguments: tuple[str, ...], home: Home
) -> None:
    assert not imported(home, *arguments) & HEAVY


def test_every_task_is_listed_with_a_line_of_help(home: Home) -> None:
    listed = json.loads(home.invoke("--list", "--list-format", "json").stdout)["tasks"]
    listed = [task for task in listed if task["name"] not in OWN]
    assert sorted(task["name"] for task in listed) == sorted(TASKS)
    assert {alias for task in listed for alias in task["aliases"]} == set(ALIASES)
    for task in listed:
        assert task["help"], f"{task['name']} has no help"
        assert re.fullmatch(r"[A-Z].*\.", task["help"]), task["help"]


@pytest.mark.parametrize("layout", ["flat", "nested"])
def test_the_list_has_the_tables_in_the_papers_order_and_then_the_tools(layout: str, home: Home) -> None:
    lines = home.invoke("--list", "--list-format", layout).stdout.splitlines()
    names = (line.split()[0] for line in lines if re.match(r"  \S", line))
    assert tuple(name for name in names if name not in OWN) == TASKS


def test_the_tasks_are_a_program_of_their_own(home: Home) -> None:
    def msbreg(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", "import tasks; tasks.main()", *arguments]
        return subprocess.run(
            command, cwd=PROJECT, env=home.environment, capture_output=True, text=True, check=False
        )

    listed = msbreg("--list")
    assert listed.stdout.startswith("Subcommands:\n")
    names = re.findall(r"^  (\S+)", listed.stdout, re.MULTILINE)
    assert [name for name in names if name not in OWN] == list(TASKS)
    assert msbreg("--version").stdout.startswith("msbreg ")
    refused = msbreg("table8", "--scale", "smok")
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert refused.stderr.startswith("There is no scale 'smok'.")


NAMES = (*ALIASES, "table11", "tables", "bench")


@pytest.mark.parametrize(
    "name", [*NAMES[:1], *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])]
)
def test_every_name_answers_with_its_help(name: str, home: Home) -> None:
    done = home.invoke("--help", name)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"Usage: inv[oke] [--core-opts] {name} " in done.stdout


def test_the_help_of_a_table_is_its_docstring_and_its_options(home: Home) -> None:
    text = home.invoke("--help", "table8").stdout
    assert "Table 8: ablation of the three regularisations on ImageNet-100." in text
    for option in (
        "--scale=STRING",
        "--seeds=STRING",
        "--rows=STRING",
        "--columns=STRING",
        "--set ",
        "--dry-run",
        "--verbose",
        "--render-only",
    ):
        assert option in text
    assert not re.search(r"^\s+-[a-z]\b", text, re.MULTILINE), (
        "short flags depend on the order of the arguments"
    )


@pytest.mark.parametrize("task", ["why", "gc"])
def test_help_may_follow_the_task(task: str, home: Home) -> None:
    assert home.invoke(task, "--help").stdout == home.invoke("--help", task).stdout != ""


@pytest.mark.parametrize(
    ("task", "options"),
    [
        (
            "table8",
            {"scale": "smoke.", "seeds": "1.", "rows": "*.", "dry-run": "off.", "apply": "any plan."},
        ),
        ("voc-detection", {"columns": "ap*.", "set": "May be repeated."}),
        ("evaluate", {"checkpoint": "none.", "protocol": "none.", "set": "May be repeated."}),
        ("why", {"table": "Required.", "row": "*.", "scale": "smoke."}),
        ("seeds", {"table": "Required.", "seeds": "20.", "budget": "no limit.", "apply": "off."}),
        ("ui", {"port": "5000.", "table": "every table with runs."}),
        ("verify", {"data": "off."}),
        ("gc", {"delete": "off.", "older-than": "30d, and no run that could be resumed."}),
        ("redo", {"run": "Required.", "rows": "none.", "baselines": "quoted.", "only": "off."}),
        ("unlock", {"force": "off."}),
    ],
)
def test_the_help_of_each_option_ends_with_its_default(
    task: str, options: dict[str, str], home: Home
) -> None:
    text = home.invoke("--help", task).stdout.partition("Options:\n")[2]
    helped = dict(re.findall(r"^  --([a-z-]+)(.*(?:\n {5,}.*)*)", text, re.MULTILINE))
    for about in helped.values():
        assert re.search(r"Default:\s.+\Z|May\s+be\s+repeated\.\Z|Required\.\Z", about, re.DOTALL), about
    for option, ending in options.items():
        assert " ".join(helped[option].split()).endswith(ending)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            ("table8", "--scale", "smok"),
            "There is no scale 'smok'. Did you mean 'smoke'? Known: smoke, small, paper.",
        ),
        (
            ("table4", *(word for n in range(101) for word in ("--add-row", f"Row {n}=no_file.pth"))),
            "--add-row is given 101 times: at most 100 are expected.",
        ),
        (
            ("seeds", "table8", "--scale", "small", "--seeds", "1001"),
            "--seeds is 1001: at most 1000 are expected.",
        ),
        (("table8", "--seeds", "1,2"), "--seeds must be a whole number, not '1,2'."),
        (("table8", "--seeds", "-1"), "--seeds must be a whole number, not '-1'."),
        (("status", "--limit", "-1"), "--limit must be a whole number, 0 or more, not '-1'."),
        (("show", "ablation-grid"), "table11 at smoke scale was not rendered yet: "),
        (("table8", "--seeds", "0"), "--seeds is 0: at least one seed is needed."),
        pytest.param(
            ("table8", "--seeds", 5000 * "9"), "--seeds must be a whole number, not '999", id="5000 digits"
        ),
        (
            ("table4", "--add-row", "Mine=~nosuchuser/x.pth"),
            "'~nosuchuser/x.pth' is not a path: the user 'nosuchuser' does not exist.",
        ),
        pytest.param(
            ("table4", "--add-row", f"Mine={5000 * 'a'}"),
            f"'{80 * 'a'}' cannot be read (File name too long).",
            id="a long path",
        ),
        (
            ("table8", "--rows", "BYOL + L_x"),
            "There is no row 'BYOL + L_x'. Did you mean 'BYOL + L_s'? Known: ",
        ),
        (("table8", "--columns", "top1"), "There is no column 'top1'. Known: acc."),
        (("table8", "--set", "epochs"), "--set needs key=value, such as epochs=5, not 'epochs'."),
        (("table8", "--set", "epochs=five"), "epochs must be a whole number, not 'five'."),
        (("table8", "--set", "epoch=5"), "There is no setting 'epoch'. Did you mean 'epochs'? Known: "),
        (("table8", "--set", "seed=5"), "--set cannot change the seed: --seeds N runs seeds 0 to N - 1."),
        (("table8", "--set", "base_lr=nan"), "base_lr must be a number, not 'nan'."),
        (("table8", "--set", "batch_size=1"), "pretrain.batch_size is 1: at least 2 is expected."),
        (("table8", "--set", "protocol.epochs=0"), "linear.epochs is 0: at least 1 is expected."),
        (("table8", "--set", "crop_scale=1"), "crop_scale needs 2 values separated by commas, not '1'."),
        (("table8", "--set", "num_views=1"), "byol.num_views is 1: at least 2 is expected."),
        (
            ("table8", "--set", "backbone=resnet19"),
            "There is no backbone 'resnet19'. Did you mean 'resnet18'? Known: ",
        ),
        (("table8", "--set", "method=byol"), "method cannot be set to 'byol' from the command line"),
        (
            ("table8", "--set", "lr=.1"),
            "'lr' may mean protocol.lr or optimizer.base_lr or optimizer.vector_lr or protocol.last_lr: ",
        ),
        (("table9", "--set", "epochs=5"), "Table 9 runs nothing: it has no setting 'epochs' "),
        (
            ("evaluate",),
            "evaluate needs --checkpoint FILE --protocol NAME --dataset NAME, such as `invoke ev",
        ),
        (("pretrain",), "pretrain needs --method NAME --dataset NAME, such as `invoke pretrain --method"),
        (("settings", "tabel8"), "There is no table 'tabel8'. Did you mean 'table8'? Known: "),
        (("settings", "table8", "--scale", "smol"), "There is no scale 'smol'. Did you mean 'smoke'?"),
        (
            ("table8", "--render-only", "--jobs", "2", "--dry-run"),
            "--render-only starts nothing: leave it out, or --dry-run and --jobs.\n",
        ),
        (("table8", "--dry-run", "--set"), "--set needs a value.\n"),
        (("table4", "--add-row", "--dry-run"), "--add-row needs a value.\n"),
        (("table8", "--rows", "--dry-run"), "--rows needs a value.\n"),
        (("table8", "--rows", ""), "There is no row ''. Known: BYOL, "),
        (("table8", "--dry-run", "--on", ""), "--on needs a value.\n"),
        (("doctor", "--on="), "--on needs a value.\n"),
        (("table8", "--max-gpu-hours", "", "--dry-run"), "--max-gpu-hours needs a value.\n"),
        (("table8", "--scale", "smoke", "--scale=small"), "--scale is given twice: give it once.\n"),
        (("why", "table8", "--table", "table9"), "--table is given twice: give it once.\n"),
        (("why",), "why needs --table: `invoke --help why` describes it.\n"),
        (("tabel8",), "There is no task 'tabel8'. Did you mean 'table8'? Known: "),
        (("why", "table8", "--rows", "x"), "There is no option of why '--rows'. Did you mean '--row'?"),
        (("--dri",), "There is no option of invoke '--dri'. Did you mean '--dry'? Known: "),
        (("table8", "--apply", "0"), "--apply needs the 12 hexadecimal digits that --dry-run prints last, "),
        (("table8", "--max-gpu-hours", "two"), "--max-gpu-hours must be a number, such as 0.5, not 'two'."),
        (("table8", "--jobs", "0"), "--jobs must be a whole number of at least 1, not '0'."),
        (("table8", "--launcher", "slrum"), "There is no launcher 'slrum'. Did you mean 'slurm'?"),
        (("ui", "--port", "65536"), "--port must be a number from 1 to 65535, not '65536'."),
        (("tables", "--set", "epoch=5"), "There is no setting 'epoch'. Did you mean 'epochs'? Known: "),
        (("reports", "--scale", "large"), "There is no scale 'large'. Known: smoke, small, paper."),
        (
            ("download", "--dataset", "stl11"),
            "There is no data set to fetch 'stl11'. Did you mean 'stl10'? Known: ",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_a_mistake_ends_in_one_line_and_code_2(arguments: tuple[str, ...], says: str, home: Home) -> None:
    done = home.invoke(*arguments)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith(says)
    assert not home.runs.exists()


OF_ALL_TASKS = {
    'devise = "cpu"': "There is no key 'devise'. Did you mean 'device'?",
    'jobs = "two"': "jobs is 'two': a whole number is expected.",
    "jobs =": "is not valid TOML",
    "heartbeat = nan": "heartbeat is nan: a number of seconds above 0 is expected.",
    'tracking_uri = "mlruns"': (
        "The tracking store is 'mlruns', a folder; MLflow no longer writes to folders."
    ),
    '[data]\nstl10 = ["/data"]': "[data] maps names to folders, each a string.",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "content", "says"),
    [
        *(("status", content, says) for content, says in OF_ALL_TASKS.items()),
        *(("table8", content, says) for content, says in OF_ALL_TASKS.items()),
        ("table8", 'launcher = "slrum"', "There is no launcher 'slrum'."),  # status launches nothing
    ],
    ids=lambda value: value.splitlines()[0] if "=" in value else "",
)
def test_a_mistake_in_the_site_file_ends_in_one_line_and_code_2(
    task: str, content: str, says: str, home: Home
) -> None:
    home.site_file.write_text(f'runs = "{home.runs}"\n{content}\n')
    done = home.invoke(task)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert says in done.stderr


def test_a_site_file_that_is_not_utf8_ends_in_one_line_and_code_2(home: Home) -> None:
    home.site_file.write_bytes('runs = "/data/Müller"'.encode("latin-1"))
    done = home.invoke("status")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr == f"{home.site_file}, line 1: the file is not UTF-8. Save it as UTF-8.\n"
    assert not home.runs.exists()


def test_a_site_file_that_is_not_there_is_named(home: Home) -> None:
    done = home.invoke("table8", MSBREG_SITE=str(home.folder / "sight.toml"))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"MSBREG_SITE points to {home.folder / 'sight.toml'}, which does not exist.\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "arguments", [("table8", "--rows", "Ours (K=4)"), ("tables", "--set", "epochs=2")], ids=" ".join
)
def test_dry_runs_of_both_kinds_print_the_plan_and_leave_nothing_behind(
    arguments: tuple[str, ...], home: Home
) -> None:
    before = home.files()
    ours = home.invoke(*arguments, "--dry-run", "--verbose")
    invokes = home.invoke("--dry", *arguments, "--verbose")
    assert (ours.returncode, ours.stderr) == (invokes.returncode, invokes.stderr) == (0, "")
    assert ours.stdout == invokes.stdout
    lines = ours.stdout.splitlines()
    runs = [
        line
        for line in lines
        if re.match(r"run      [0-9a-f]{12}  \w+.*: no finished run with these settings", line)
    ]
    assert lines[len(runs)] == f"{len(runs)} runs: {len(runs)} to run."
    assert re.fullmatch(r"Plan ([0-9a-f]{12}): --apply \1 runs exactly this plan\.", lines[-1])
    assert home.files() == before


def test_the_plan_repeats_what_was_changed_by_full_names(home: Home) -> None:
    changes = ("base_lr=1", "tau=.9", "evaluation.num_val=900", "protocol.epochs=3")
    words = [word for change in changes for word in ("--set", change)]
    lines = home.invoke("table8", "--rows", "BYOL", *words, "--dry-run").stdout.splitlines()
    full = "optimizer.base_lr=1, method.tau=.9, evaluation.dataset.num_val=900, protocol.epochs=3"
    assert lines[3] == f"Changed settings: {full}."
    one = ("--checkpoint", "swav_800", "--protocol", "knn", "--dataset", "synthetic_folder")
    lines = home.invoke("evaluate", *one, "--set", "k=3", "--dry-run").stdout.splitlines()
    assert "Changed settings: protocol.k=3." in lines


@pytest.mark.parametrize(
    ("file", "text", "mistake"),
    [
        ("tables/table8.py", "Row(lable='BYOL')\n", "unexpected keyword argument 'lable'"),
        pytest.param(
            "configs/scales.py", "STAND_INS['large']\n", "KeyError: 'large'", marks=pytest.mark.slow
        ),
        pytest.param(
            "reproduce/methods/byol.py",
            "BYOL(num_view=2)\n",
            "unexpected keyword argument 'num_view'",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_mistake_in_the_code_shows_its_place(
    file: str, text: str, mistake: str, home: Home, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    for name in ("tables", "configs", "reproduce"):
        shutil.copytree(PROJECT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(PROJECT / "tasks.py", copy)
    with (copy / file).open("a", encoding="utf-8") as opened:
        opened.write(text)
    line = (copy / file).read_text(encoding="utf-8").count("\n")
    done = subprocess.run(
        [sys.executable, "-m", "invoke", "table8", "--dry-run"],
        cwd=copy,
        env=home.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("Traceback (most recent call last):\n")
    assert f'File "{copy / file}", line {line}, in <module>\n    {text}' in done.stderr
    assert mistake in done.stderr.splitlines()[-1]


def test_the_plan_names_runs_by_what_they_are(home: Home) -> None:
    planned = home.invoke("table8", "--rows", "Ours (K=4) + L_b + L_s", "--dry-run").stdout.splitlines()
    what = [line.split(maxsplit=2)[2] for line in planned[:2]]
    method, data = "K4 λs.004 λb.5", " · synth 4ep · s0"
    assert [line.rpartition(": no finished run")[0] for line in what] == [
        f"{method}{data}",
        f"{method} → linear{data}",
    ]


@pytest.mark.parametrize(
    ("scale", "key"), [("small", "imagenette"), pytest.param("paper", "imagenet", marks=pytest.mark.slow)]
)
def test_data_that_are_missing_are_named_before_anything_starts(scale: str, key: str, home: Home) -> None:
    done = home.invoke("table8", "--scale", scale, "--rows", "BYOL")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith(f"The data root '{key}' is not set: add `{key} = ")
    assert str(home.site_file) in done.stderr
    assert not home.runs.exists()


def test_a_table_that_needs_no_runs_is_printed_at_once(home: Home) -> None:
    assert not imported(home, "table9") & (HEAVY - {"jinja2"})
    done = home.invoke("table9")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("0 runs done, 0 reused, 0 missing, in ")
    assert done.stdout.endswith(f"{home.reports / 'smoke' / 'table9.md'}\n")
    assert not home.runs.exists()


@pytest.mark.parametrize("options", [(), pytest.param(("--dry-run",), marks=pytest.mark.slow)], ids=" ".join)
def test_more_devices_than_there_are_end_in_one_line_and_code_2(options: tuple[str, ...], home: Home) -> None:
    home.site_file.write_text(
        f'runs = "{home.runs}"\nreports = "{home.reports}"\ndevice = "cuda"\ndevices = 4\n'
    )
    done = home.invoke("table8", "--rows", "BYOL", *options, CUDA_VISIBLE_DEVICES="0,1")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith("devices is 4, but only 2 GPUs can be used on this machine: ")


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cuda", "cuda:7"])
def test_a_gpu_that_is_missing_blocks_every_run_and_the_command_says_so(device: str, home: Home) -> None:
    home.site_file.write_text(f'runs = "{home.runs}"\nreports = "{home.reports}"\ndevice = "{device}"\n')
    said = f"The device is '{device}', but torch finds no GPU on this machine. 'auto' or 'cpu' would work.\n"
    plan = home.invoke("table8", "--rows", "BYOL", "--dry-run", CUDA_VISIBLE_DEVICES="")
    assert (plan.returncode, plan.stderr) == (0, "")
    assert plan.stdout.startswith("blocked  ")
    assert f"\n{said}2 runs: 2 blocked.\n" in plan.stdout
    done = home.invoke("table8", "--rows", "BYOL", CUDA_VISIBLE_DEVICES="")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", said)


def test_reports_that_cannot_be_written_end_in_one_line_and_code_1(home: Home) -> None:
    home.reports.mkdir()
    (home.reports / "smoke").write_text("a file where a folder is to be")
    done = home.invoke("table9")
    assert done.returncode == 1
    assert done.stdout.startswith("0 runs done, 0 reused, 0 missing, in "), (
        "what became of the runs is said first"
    )
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(
        f"The reports of table9 cannot be written in {home.reports / 'smoke'} (File exists). "
    )


def opened_for_writing(pipe: Path) -> int:
    """Return the descriptor of a pipe as soon as another process has opened it for reading."""
    found: list[int] = []

    def reader() -> bool:
        with contextlib.suppress(OSError):
            found.append(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
        return bool(found)

    until(reader, f"the reading of {pipe}")
    return found[0]


def test_ctrl_c_before_anything_is_started_ends_with_the_code_of_its_signal(home: Home) -> None:
    """While the command reads its site file, which is a pipe here, so that it waits for us."""
    home.site_file.unlink()
    os.mkfifo(home.site_file)
    command = home.start("table9")
    pipe = opened_for_writing(home.site_file)
    command.send_signal(signal.SIGINT)
    assert command.communicate(timeout=60) == ("", "")
    os.close(pipe)
    assert command.returncode == 130


def test_a_port_in_use_is_named_before_any_address(home: Home) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = home.invoke("ui", "--port", str(port))
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"Port {port} is in use: use --port \d+\.\n", done.stderr)


def test_a_table_answers_to_every_name_of_its_tasks(home: Home) -> None:
    assert plan.table_named("table13") == ("table6", "*")
    assert plan.table_named("voc_detection") == ("table5", "ap*")
    assert plan.table_named("tabel8") == ("tabel8", "*")
    shown = home.invoke("why", "voc-detection", "--row", "Ours*").stdout
    assert "table5 at smoke scale" in shown
    assert "column voc07" not in shown


def test_status_of_an_empty_place_is_empty(home: Home) -> None:
    done = home.invoke("status")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not home.runs.exists()
