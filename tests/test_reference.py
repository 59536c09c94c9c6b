"""The reference of settings: what `invoke settings` lists, and the page that `invoke docs` writes."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from reproduce.commands import reference
from reproduce.commands.reference import Meaning, meanings, split, written
from reproduce.methods.byol import BYOL
from reproduce.nn.optimizers import LARS
from reproduce.overrides import full_name, parse, paths_of, settable
from reproduce.plan import SCALES, Request, table_names
from reproduce.settings import Settings
from reproduce.site import PROJECT

SOURCE = "owner/repository config.yaml"


@dataclass(frozen=True, kw_only=True)
class Base(Settings, name="toy_base"):
    size: int = 1
    """Side in pixels (section 4.1)."""
    resize: int = 1
    """Shorter side."""
    mean: float = 0.0
    """Mean of the channels."""


@dataclass(frozen=True, kw_only=True)
class Derived(Base, name="toy_derived"):
    size: int = 2
    """owner/repository data.py."""
    resize: int = 2
    """owner/repository crop.py."""
    mean: float = 0.5
    """Choice: ours."""
    rate: float = 0.1
    """Peak rate (SOURCE); a tenth of the other."""
    plain: int = 0


def test_the_page_in_the_repository_is_the_generated_one() -> None:
    page = (PROJECT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert page == reference.page(), "write it again: invoke docs"


@pytest.mark.parametrize(
    ("text", "doc", "source"),
    [
        (
            "Images per step (section 7.1); each gives K views.",
            "Images per step; each gives K views.",
            "section 7.1",
        ),
        ("Section 7.1; biases are exempt.", "Biases are exempt.", "Section 7.1"),
        ("byol/configs/eval.py.", "", "byol/configs/eval.py"),
        ("BYOL's App. C.2.", "", "BYOL's App. C.2"),
        ("t of exp(-t ||.||^2) (ssnl/align: uniform(3)).", "t of exp(-t ||.||^2).", "ssnl/align: uniform(3)"),
        ("A function of `reproduce/nn/backbones.py`.", "A function of `reproduce/nn/backbones.py`.", ""),
        ("Views (`reproduce/data/views.py`).", "Views (`reproduce/data/views.py`).", ""),
        (
            "Weight of a loss; 0 in BYOL (Table 12's second row).",
            "Weight of a loss; 0 in BYOL (Table 12's second row).",
            "",
        ),
        ("Choice: twice `size`.", "", "choice: twice `size`"),
    ],
)
def test_meaning_and_source_are_told_apart(text: str, doc: str, source: str) -> None:
    assert split(text) == Meaning(doc, source)


def test_what_a_class_leaves_out_comes_from_its_base() -> None:
    assert meanings(Derived) == {
        "size": Meaning("Side in pixels.", "owner/repository data.py"),
        "resize": Meaning("Shorter side.", "owner/repository crop.py"),
        "mean": Meaning("Mean of the channels.", "choice: ours"),
        "rate": Meaning("Peak rate; a tenth of the other.", "owner/repository config.yaml"),
        "plain": Meaning("", ""),
    }


@pytest.mark.slow
@pytest.mark.parametrize("scale", SCALES)
def test_every_value_is_printed_as_set_takes_it(scale: str) -> None:
    measured = [
        ours for table in table_names() for _, _, ours in Request(table=table, scale=scale).build().measured()
    ]
    for spec in {ours.spec.id: ours.spec for ours in measured}.values():
        values, paths, names = dict(spec.leaves()), paths_of(spec), set(settable(spec))
        for path in paths:
            if full_name(path, paths) in names:
                assert parse(written(values[path]), spec.field_type(path), path) == values[path]


def test_the_settings_of_a_tables_trained_baselines_are_listed_too() -> None:
    def listed(*baselines: str) -> set[str]:
        return {line.split()[0] for line in reference.lines("table2", "smoke", *baselines) if line.strip()}

    swav = {"method.num_prototypes", "augmentation.small.num_large"}
    assert swav <= listed("trained")
    assert not swav & listed()


def test_the_settings_of_a_table_are_listed_by_full_name() -> None:
    lines = list(reference.lines("table8", "small"))
    listed = {line.split()[0]: line for line in lines if line[:1].islower()}
    assert listed["optimizer.base_lr"].split()[1:3] == ["0.4", "number"]
    assert listed["optimizer.base_lr"].endswith(f"  {meanings(LARS)['base_lr'].source}")
    assert listed["method.num_views"].split()[1:6] == ["2", "|", "4", "|", "8"]
    assert listed["method.heads.norm"].split()[1:5] == ["batchnorm", "batchnorm", "or", "layernorm"]
    assert {"epochs", "protocol.epochs", "dataset.size", "evaluation.dataset.size"} <= set(listed)
    assert not {"seed", "encoder.seed", "method", "protocol"} & set(listed)
    assert meanings(BYOL)["tau"].doc in " ".join(line.strip() for line in lines)
    assert lines[-1] == (
        f"{len(listed)} settings of Table 8 at small scale. Change one by name: --set method.num_views=2."
    )


def test_a_table_that_runs_nothing_has_no_settings() -> None:
    assert list(reference.lines("table9", "smoke")) == ["Table 9 runs nothing: it has no settings."]
