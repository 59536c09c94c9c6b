"""The documents are true: their commands run or parse, their Python and TOML work, their links resolve.

Documents are README.md and docs/*.md. A fenced block of shell commands is one of

    ```sh             every line runs in this test: it starts no run and ends with code 0 or 3 (empty cells)
    ```sh MARK        no line runs in this test, because it needs what MARK names (see MARKS)

Each line of both kinds is parsed with the real options. The rows, columns and settings that it names must
exist. Blocks of Python and TOML always run. Code spans that begin with `invoke` are parsed, too.
"""

from __future__ import annotations

import json
import re
import shlex
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from invoke.parser import Parser
from invoke.program import Program

import tasks
from reproduce import plan
from reproduce import site as sites
from reproduce.commands import deviations, speed, systems
from reproduce.spec import Pretrain

if TYPE_CHECKING:
    from conftest import Home
    from invoke.parser import ParserContext

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
OF_THE_PAPER = [name for name in plan.table_names() if plan.Request(table=name).build().number]
"""The paper's tables, without those that somebody added."""
DOCUMENTS = [README, *sorted((ROOT / "docs").glob("*.md"))]
MARKS = {
    "network": "fetches something",
    "minutes": "takes minutes",
    "gpu": "needs a GPU and real data",
    "cluster": "needs Slurm",
    "file": "needs a file of the reader's",
    "runs": "needs finished runs",
    "server": "serves until Ctrl-C",
}
INVOKE = ("invoke", ".venv/bin/invoke", "msbreg")
OTHERS = ("python3", "git", ".venv/bin/pip")
"""Programs other than invoke that a command may start."""
BLOCK = re.compile(r"^```(\w*) ?(.*)\n((?:.*\n)*?)```$", re.MULTILINE)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\]\(([^)\s]+)\)|src=\"([^\"]+)\"")
INCOMPLETE = 3
"""Exit code of a command that leaves cells empty."""


@dataclass(frozen=True)
class Block:
    """A fenced block of a document."""

    path: Path
    line: int
    language: str
    mark: str
    text: str

    def __str__(self) -> str:
        return f"{self.path.relative_to(ROOT)}:{self.line}"

    def commands(self) -> Iterator[list[str]]:
        """Yield the words of each command of a shell block."""
        for line in self.text.splitlines():
            for command in line.split("&&"):
                if words := shlex.split(command, comments=True):
                    yield words


def blocks(*languages: str) -> list[Block]:
    """Return the blocks of all documents in some languages, or all blocks."""
    found = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            block = Block(path, text[: match.start()].count("\n") + 1, match[1], match[2], match[3])
            if not languages or block.language in languages:
                found.append(block)
    return found


def parse(words: list[str]) -> ParserContext | None:
    """Return what invoke reads in its words, without running it; None if they name no task.

    Raises:
        ParseError: a task or an option does not exist, or a value is missing.
    """
    contexts = tasks.namespace.to_contexts()
    core = Parser(initial=Program().initial_context, ignore_unknown=True).parse_argv(words)
    explained = core[0].args["help"].value
    if isinstance(explained, str):
        core.unparsed.append(explained)
    return next(iter(Parser(contexts=contexts).parse_argv(core.unparsed)), None)


def check(words: list[str]) -> None:
    """Raise an error unless the task and the options of a command exist, and what a table is asked for."""
    task = parse(words)
    if task is None or task.name not in (*plan.table_names(), "tables"):
        return
    given: dict[str, Any] = task.as_kwargs
    tables = plan.table_names() if task.name == "tables" else [task.name]
    fields = {key: given[key] for key in ("scale", "rows", "columns", "baselines") if key in given}
    assert plan.requests(tables, seeds=int(given["seeds"]), changes=tuple(given["set"]), **fields)


SHELL = blocks("sh")
RUN = sorted({shlex.join(words) for block in SHELL if not block.mark for words in block.commands()})


def test_every_block_has_a_language_and_a_mark_that_this_test_knows() -> None:
    assert len(SHELL) > 15
    for block in blocks():
        if block.language != "sh":
            assert (block.language, block.mark) in {("", ""), ("python", ""), ("toml", "")}, block
            continue
        assert block.mark in {"", *MARKS}, f"{block} has the mark '{block.mark}'. Known: {', '.join(MARKS)}"
        for words in block.commands():
            assert words[0] in (*INVOKE, *OTHERS), f"{block}: {words[0]}"
            assert block.mark or words[0] == "invoke", f"{block}: only commands of invoke run here"


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_every_command_has_real_options(block: Block) -> None:
    for words in block.commands():
        if words[0] in INVOKE:
            check(words[1:])
        elif "-r" in words:
            assert (ROOT / words[words.index("-r") + 1]).is_file(), block


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_every_code_span_of_a_command_has_real_options(path: Path) -> None:
    text = BLOCK.sub("", path.read_text(encoding="utf-8"))
    for span in SPAN.findall(text):
        words = shlex.split(" ".join(span.split()))
        if words[:1] == ["invoke"] and len(words) > 1 and "TASK" not in words:
            check(words[1:])


@pytest.mark.parametrize(
    "command", [*RUN[:1], *(pytest.param(command, marks=pytest.mark.slow) for command in RUN[1:])]
)
def test_unmarked_commands_run_and_start_nothing(command: str, home: Home) -> None:
    done = home.invoke(*shlex.split(command)[1:])
    assert done.returncode in (0, INCOMPLETE), done.stderr
    assert done.returncode == 0 or " 0 runs done" in f" {done.stdout}"
    assert not [path for path in home.runs.glob("*") if re.fullmatch("[0-9a-f]{12}", path.name)]


@pytest.mark.parametrize("block", blocks("toml"), ids=str)
def test_every_piece_of_a_site_file_is_one(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from reproduce.site import data_roots

    file = tmp_path / "site.toml"
    file.write_text(block.text, encoding="utf-8")
    monkeypatch.setenv("MSBREG_SITE", str(file))
    site = sites.load()
    assert site != sites.Site()
    assert set(site.data) <= set(data_roots())


def run_python(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the Python blocks of a document in `folder`, one after the other, and return their variables."""
    monkeypatch.chdir(folder)
    found: dict[str, Any] = {}
    for block in blocks("python"):
        if block.path.name == name:
            exec(compile(block.text, str(block), "exec"), found)
    return found


def test_only_two_documents_have_python() -> None:
    """So that each has a test of its own below."""
    assert {block.path.name for block in blocks("python")} == {"your-encoder.md", "reading-reports.md"}


def test_the_encoder_of_a_run_is_loaded_in_five_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from reproduce.nn import backbones
    from reproduce.nn.encoder import Encoder

    (block,) = (block for block in blocks("python") if block.path.name == "your-encoder.md")
    assert len([line for line in block.text.splitlines() if line.strip()]) == 5
    (folder,) = {Path(path).parent for path in re.findall(r'load_file\("(.+?)"\)', block.text)}
    trained = backbones.build("small", seed=3).eval()
    Encoder("small", trained, torch.nn.Linear(64, 8), spec_id=folder.name).save(tmp_path / folder)
    loaded = run_python("your-encoder.md", tmp_path, monkeypatch)["backbone"]
    images = torch.randn(2, 3, 32, 32)
    assert not loaded.training
    with torch.no_grad():
        assert loaded(images).shape == (2, 64)
        assert torch.equal(loaded(images), trained(images))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_backbone_has_the_names_of_torchvision_without_its_classifier(name: str) -> None:
    import torchvision

    from reproduce.nn import backbones

    theirs = {key for key in getattr(torchvision.models, name)().state_dict() if not key.startswith("fc.")}
    assert set(backbones.build(name, seed=0).state_dict()) == theirs


def test_runs_csv_is_summarised_in_three_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The columns are those that the page lists; the last line is an expression, as in a notebook."""
    page = (ROOT / "docs" / "reading-reports.md").read_text(encoding="utf-8")
    listed = page[page.index("with the columns") : page.index("one column for each setting")]
    columns = SPAN.findall(listed)
    assert {"table", "row", "column", "seed", "value", "spec", "reason"} < set(columns)
    file = tmp_path / "reports" / "smoke" / "runs.csv"
    file.parent.mkdir(parents=True)
    values = {"table": "table8", "scale": "smoke", "row": "BYOL", "column": "acc", "metric": "top1"}
    lines = [
        ",".join(str((values | {"seed": seed, "value": value}).get(column, "")) for column in columns)
        for seed, value in enumerate((0.25, 0.75))
    ]
    file.write_text("\n".join([",".join(columns), *lines]) + "\n")
    (block,) = (block for block in blocks("python") if block.path.name == "reading-reports.md")
    *_, expression = block.text.strip().splitlines()
    variables = run_python("reading-reports.md", tmp_path, monkeypatch)
    (summary,) = eval(expression, variables).itertuples()
    assert summary.Index == ("table8", "BYOL", "acc")
    assert (summary.mean, summary.count) == (0.5, 2)


def slug(heading: str) -> str:
    """Return the anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower().replace("`", "")).replace(" ", "-")


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for match in LINK.finditer(BLOCK.sub("", path.read_text(encoding="utf-8"))):
        target = match[1] or match[2]
        if target.startswith("https://"):
            continue
        name, _, anchor = target.partition("#")
        file = (path.parent / name) if name else path
        assert file.exists(), f"{path.name} links to {target}, which does not exist"
        if anchor:
            headings = re.findall(r"^#+ (.+)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), f"{path.name} links to {target}, which has no such heading"


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    text = README.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 125
    for path in DOCUMENTS[1:]:
        assert f"(docs/{path.name})" in text, f"README does not link to docs/{path.name}"
    first_screen = "\n".join(text.splitlines()[:32])
    for part in (
        "https://arxiv.org/abs/2207.03552",
        "docs/images/table8.png",
        "invoke table8",
        "invoke test",
    ):
        assert part in first_screen


def test_the_picture_is_small() -> None:
    picture = ROOT / "docs" / "images" / "table8.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert picture.stat().st_size < 150_000


def test_the_readme_counts_the_runs_of_every_table() -> None:
    """Of one seed at the scale paper."""
    rows = re.findall(r"^\| (`.+?) \| .+? \| (.+) \|$", README.read_text(encoding="utf-8"), re.MULTILINE)
    told = {name: count for names, count in rows for name in SPAN.findall(names)}
    voc = {spec.id: spec for spec in plan.Request(table="table5", scale="paper", columns="ap*").specs()}
    counted: dict[str, str] = {
        "voc-detection": count(voc),
        "table13": "",
        "coco-mask-rcnn": "",
        "ablation-grid": "",
    }
    everything: dict[str, Any] = {}
    for name in OF_THE_PAPER:
        specs = {spec.id: spec for spec in plan.Request(table=name, scale="paper").specs()}
        everything |= specs
        counted[name] = count(specs)
    counted["tables"] = count(everything)
    counted |= {
        "table13": counted["table6"],
        "coco-mask-rcnn": counted["table10"],
        "ablation-grid": counted["table11"],
    }
    assert {name: told[name] for name in counted if name != "table9"} == {
        name: shown for name, shown in counted.items() if name != "table9"
    }
    assert (counted["table9"], told["table9"][:4]) == ("0 + 0", "none")


def count(specs: dict[str, Any]) -> str:
    """Return the number of pretrainings and of evaluations."""
    kinds = Counter(isinstance(spec, Pretrain) for spec in specs.values())
    return f"{kinds[True]} + {kinds[False]}"


def test_the_readme_shows_the_origin_of_every_systems_numbers() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == systems.written(text), (
        "README.md is out of date: `invoke docs` writes its table of systems"
    )
    lines = systems.table().splitlines()
    assert lines[0].startswith("| systems of Tables 1 to 5 and 10 |")
    told = {name: line for line in lines[2:] for name in line.split(" | ")[0].strip("| ").split(", ")}
    assert "trained, in every table" in told["BYOL"]
    assert "`--baselines trained`" in told["W-MSE 4"]
    assert "released" not in told["W-MSE 4"]
    assert "`--baselines trained`" in told["SwAV"]
    assert "`--baselines released`" in told["SwAV"]
    assert "code was never released" in told["BoWNet"]


def test_the_page_of_data_has_every_root() -> None:
    from reproduce.site import data_roots

    text = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE) == data_roots()


def test_the_page_of_deviations_is_what_the_tables_say() -> None:
    page = (ROOT / "docs" / "deviations.md").read_text(encoding="utf-8")
    assert page == deviations.page(), "docs/deviations.md is out of date: `invoke docs` writes it"


def test_the_page_of_speeds_is_what_the_results_say() -> None:
    page = (ROOT / "docs" / "speed.md").read_text(encoding="utf-8")
    assert page == speed.page(), "docs/speed.md is out of date: `invoke docs` writes it"


def test_the_page_of_speeds_shows_results_and_parts_without_one(tmp_path: Path) -> None:
    record = {"case": "a over b", "value": 0.914, "unit": "x", "bar": ">= 0.9", "detail": "9 over 10"}
    missing = {"case": "c", "value": None, "unit": "x", "bar": None, "detail": "no d"}
    cell = {"row": "BYOL", "value": "56.9", "unit": "%", "reason": ""}
    result = {
        "device": "NVIDIA H200",
        "kind": "GPU",
        "cores": 16,
        "packages": {"torch": "2.11"},
        "commit": "0123456789",
        "dirty": False,
        "records": [record, missing],
        "table8": [cell],
        "failed": {},
        "skipped": {"large": "1 s are left"},
    }
    (tmp_path / "nvidia-h200.json").write_text(json.dumps(result))
    (tmp_path / "nvidia-h100.quick.json").write_text(json.dumps(result | {"device": "NVIDIA H100"}))
    (tmp_path / "a-processor.json").write_text(json.dumps(result | {"device": "A processor", "kind": "CPU"}))
    assert speed.page(tmp_path).partition("## ")[2].splitlines() == [
        "NVIDIA H200",
        "",
        "16 cores, PyTorch 2.11, commit 0123456.",
        "",
        "| case | result | bar | detail |",
        "| --- | --- | --- | --- |",
        "| a over b | 0.91 x | >= 0.9 | 9 over 10 |",
        "| c | - |  | no d |",
        "",
        "| row of Table 8 at small scale, 40 epochs | value | unit | reason |",
        "| --- | --- | --- | --- |",
        "| BYOL | 56.9 | % |  |",
        "",
        "Skipped: large (1 s are left).",
    ]
    assert speed.page(tmp_path / "none").endswith(f"{speed.NONE}\n")


def test_the_choices_that_the_page_lists_are_those_of_the_runs() -> None:
    """Precision and the initial decay rate, which only `deviations.CHOICES` states in words."""
    specs = [spec for name in OF_THE_PAPER for spec in plan.Request(table=name, scale="paper").specs()]
    runs = [spec for spec in specs if isinstance(spec, Pretrain)]
    # BYOL's presets and multi-crop have no factor K.
    own = [run for run in runs if run.optimizer.scale_with_views]
    taus = {(run.dataset.name, dict(run.leaves())["method.tau"]) for run in own}
    assert {run.precision for run in runs} == {"bfloat16"}
    assert taus == {("imagenet", 0.99), ("imagenet100", 0.99), ("stl10", 0.99)}
    (choice,) = (each for each in deviations.CHOICES if each.startswith("Decay rate"))
    assert "0.99 in all runs with the paper's settings" in choice


def test_the_page_of_trained_baselines_has_the_range_of_their_steps_at_smoke_scale() -> None:
    tables = [plan.Request(table=f"table{number}", baselines="trained") for number in (1, 2, 3, 4, 5, 10)]
    others = {
        spec
        for table in tables
        for spec in table.specs()
        if isinstance(spec, Pretrain) and spec.method.name not in ("byol", "msbreg")
    }
    steps = {
        run.epochs * (images // run.batch_size)
        for run in others
        if (images := dict(run.leaves()).get("dataset.num_train"))
    }
    text = (ROOT / "docs" / "baselines.md").read_text(encoding="utf-8")
    assert f"a run has {min(steps)} to {max(steps)} steps" in text
