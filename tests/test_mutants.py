"""The places that the mutation check changes, and the tests that it runs first."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import mutants

SOURCE = '''
"""Not a place: 1."""

def area(width: int = 2, *, sides: tuple[int, 3] = ()) -> float:
    """Not a place: 2."""
    if width > 0 and sides:
        check(width, sides, strict=True)
    return -width * 0.5 if sides else [side for side in sides if side]
'''


@pytest.fixture
def module(tmp_path):
    path = tmp_path / "area.py"
    path.write_text(SOURCE, encoding="utf-8")
    return path


def test_every_change_is_listed_and_texts_and_annotations_stay(module):
    found = [(each.kind, each.old, each.new) for each in mutants.Mutations(module).found]
    assert sorted(found) == sorted(
        [
            ("constant", "2", "3"),
            ("condition", "width > 0 and sides", "not (width > 0 and sides)"),
            ("logic", "width > 0 and sides", "((width > 0) or (sides))"),
            ("comparison", "width > 0", "(width) >= (0)"),
            ("constant", "0", "1"),
            ("statement", "check(width, sides, strict=True)", "pass"),
            ("swapped", "width, sides", "sides, width"),
            ("keyword", "sides, strict=True", "sides"),
            ("constant", "True", "False"),
            ("condition", "sides", "not (sides)"),
            ("arithmetic", "-width * 0.5", "((-width) / (0.5))"),
            ("sign", "-width", "(width)"),
            ("constant", "0.5", "1.0"),
            ("filter", "side", "True"),
        ]
    )


def test_a_mutation_changes_its_place_alone(module):
    for each in mutants.Mutations(module).found:
        module.write_text(SOURCE, encoding="utf-8")
        each.apply(Path("/"))
        changed = module.read_bytes()
        assert changed == SOURCE.encode()[: each.start] + each.new.encode() + SOURCE.encode()[each.end :]
        assert changed != SOURCE.encode()


def test_the_same_seed_draws_the_same_mutations_of_different_lines(module):
    first, again, other = (mutants.draw([module], 9, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert len({each.line for each in first}) == len(first) == 4, "four lines have places"


@pytest.mark.parametrize(
    "line",
    [
        "import reproduce.runs.lease",
        "from reproduce.runs.lease import Lease",
        "from reproduce.runs import lease",
        "from reproduce.runs import journal, lease, files",
        "    from reproduce.runs import lease",
    ],
)
def test_tests_that_import_a_module_come_first(tmp_path, monkeypatch, line):
    monkeypatch.setattr(mutants, "PROJECT", tmp_path)
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "test_a.py").write_text(f"if True:\n    pass\n{line}\n")
    (tests / "test_b.py").write_text("from reproduce.runs import leases, journal\nimport reproduce.runs\n")
    assert mutants.near(Path("reproduce/runs/lease.py")) == ["tests/test_a.py"]
