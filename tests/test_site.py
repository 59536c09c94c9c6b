"""The site file: what it may contain, in which encodings, and the one line for each mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from reproduce import site as sites
from reproduce.messages import InvalidError
from reproduce.site import PROJECT


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The site file in force, which does not exist yet."""
    monkeypatch.setenv("MSBREG_SITE", str(tmp_path / "site.toml"))
    return tmp_path / "site.toml"


def refused(said: str) -> str:
    """A pattern that matches this text alone."""
    return f"^{re.escape(said)}$"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            '[data]\nstl10 = "/d"\ntracking_uri = "http://x"\n',
            ", line 3: 'tracking_uri' belongs at the beginning of the file, but is below [data]: move it.",
        ),
        (
            "jobs = 1\n[slurm]\n  'devices' = 4\n",
            ", line 3: 'devices' belongs at the beginning of the file, but is below [slurm]: move it.",
        ),
        (
            '[data]\npartition="gpu"\n',
            ", line 2: 'partition' belongs below [slurm], but is below [data]: move it.",
        ),
        (
            'imagenet = "/d"\n',
            ", line 1: 'imagenet' belongs below [data], but is outside of the tables: move it.",
        ),
        (
            "data = { imagenet = '/d', jobs = 2 }\n",
            ": 'jobs' belongs at the beginning of the file, but is below [data]: move it.",
        ),
    ],
)
def test_a_key_of_another_table_is_refused_with_its_line_and_its_place(
    content: str, said: str, file: Path
) -> None:
    file.write_text(content)
    with pytest.raises(InvalidError, match=refused(f"{file}{said}")):
        sites.load()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[data]\n# x\nstl-10 = "/d"\n', ", line 3: There is no data root 'stl-10'. Did you mean 'stl10'?"),
        ('[data]\nImageNet = "/d"\n', ", line 2: There is no data root 'ImageNet'. Did you mean 'imagenet'?"),
        ("devise = 1\n", ", line 1: There is no key 'devise'. Did you mean 'device'?"),
        ("jobs = 1\n[slrum]\nqos='x'\n", ", line 2: There is no key 'slrum'. Did you mean 'slurm'?"),
        ("[slurm]\nmem='1G'\n", ", line 2: There is no key of [slurm] 'mem'. Did you mean 'memory'?"),
        ("[slurm.more]\nmem='1G'\n", ": There is no key of [slurm] 'more'."),
        (
            "jobs = 1\ncheckpoint_every = 2\n",
            ", line 2: 'checkpoint_every' was replaced: checkpoints are now as far apart as "
            "'checkpoint_seconds' says, whose default is 60.",
        ),
        (
            "checkpoint_second = 2\n",
            ", line 1: There is no key 'checkpoint_second'. Did you mean 'checkpoint_s",
        ),
        ("jobs = 1\njobs = 2\n", " is not valid TOML: Cannot overwrite a value (at line 2, column 9)."),
    ],
)
def test_an_unknown_key_or_table_is_named_with_the_nearest(content: str, said: str, file: Path) -> None:
    file.write_text(content)
    with pytest.raises(InvalidError) as caught:
        sites.load()
    assert str(caught.value).startswith(f"{file}{said}")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file_in_utf8_is_read_with_and_without_a_byte_order_mark(encoding: str, file: Path) -> None:
    file.write_text('jobs = 3\nruns = "données"\n', encoding=encoding)
    assert (sites.load().jobs, sites.load().runs) == (3, PROJECT / "données")


@pytest.mark.parametrize(
    ("encoding", "said"),
    [
        ("latin-1", ", line 2: the file is not UTF-8. Save it as UTF-8."),
        ("utf-16", ", line 1: the file is UTF-16. Save it as UTF-8."),
    ],
)
def test_a_file_in_another_encoding_is_named_with_the_line(encoding: str, said: str, file: Path) -> None:
    file.write_text('jobs = 3\nruns = "données"\n', encoding=encoding)
    with pytest.raises(InvalidError, match=refused(f"{file}{said}")):
        sites.load()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('runs = ""', "runs is empty: leave out the key for its default."),
        ('reports = " "', "reports is empty: leave out the key for its default."),
        ('detectron2 = ""', "detectron2 is empty: leave out the key for its default."),
        ('[data]\nstl10 = ""', "data.stl10 is empty: leave out the key for its default."),
        ('runs = "~nobody1/x"', "runs: '~nobody1/x' is not a path: the user 'nobody1' does not exist."),
        (
            '[data]\nstl10 = "$HOME/stl10"',
            "data.stl10 is '$HOME/stl10': variables are not replaced. Write the path itself, or ~ for "
            "your home folder.",
        ),
    ],
)
def test_a_value_that_is_not_a_folder_is_refused(content: str, said: str, file: Path) -> None:
    file.write_text(f"{content}\n")
    with pytest.raises(InvalidError, match=refused(f"{file}: {said}")):
        sites.load()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("workers = true", '{file}: workers is true: a whole number or "auto" is expected.'),
        ("compile = 1", '{file}: compile is 1: true, false or "auto" is expected.'),
        (
            "workers = 1025",
            "{file}: workers is 1025: a number of processes up to 1024, 0 for none, or auto is expected.",
        ),
    ],
)
def test_a_value_that_is_not_possible_is_shown_as_it_is_written(written: str, said: str, file: Path) -> None:
    file.write_text(f"{written}\n")
    with pytest.raises(InvalidError, match=refused(said.format(file=file))):
        sites.load()


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf"])
def test_seconds_between_checkpoints_that_are_none_are_refused(seconds: str, file: Path) -> None:
    file.write_text(f"checkpoint_seconds = {seconds}\n")
    said = f"{file}: checkpoint_seconds is {seconds}: a finite number of at least 0 is expected."
    with pytest.raises(InvalidError, match=refused(said)):
        sites.load()
    file.write_text("checkpoint_seconds = 0\n")
    assert sites.load().checkpoint_seconds == 0


@pytest.mark.parametrize("device", ["mps", "gpu", "", "cuda:", "cuda:-1", "cuda:1 "])
def test_a_device_that_runs_cannot_use_is_refused(device: str, file: Path) -> None:
    file.write_text(f'device = "{device}"\n')
    said = f"{file}: device is '{device}': auto, cpu, cuda or cuda:0, ... is expected."
    with pytest.raises(InvalidError, match=refused(said)):
        sites.load()


@pytest.mark.parametrize("key", ["runs", "reports"])
@pytest.mark.parametrize("inside", ["", "/below/it"])
def test_a_file_in_the_place_of_a_folder_is_named(key: str, inside: str, file: Path, tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    file.write_text(f'{key} = "{tmp_path}/taken{inside}"\n')
    said = f"{key} is {tmp_path}/taken{inside}, but {tmp_path}/taken is a file: a folder is expected."
    with pytest.raises(InvalidError, match=refused(f"{file}: {said}")):
        sites.load()


def test_a_folder_may_have_a_dollar_sign_in_its_name(file: Path, tmp_path: Path) -> None:
    (tmp_path / "$cratch").mkdir()
    file.write_text(f'runs = "{tmp_path}/$cratch"\n')
    assert sites.load().runs == tmp_path / "$cratch"


def test_the_path_of_the_site_file_may_begin_with_the_home_folder(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("jobs = 3\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("MSBREG_SITE", "~/site.toml")
    assert sites.load().jobs == 3
    monkeypatch.setenv("MSBREG_SITE", "~nobody1/site.toml")
    with pytest.raises(InvalidError, match=r"^'~nobody1/site\.toml' is not a path: the user 'nobody1'"):
        sites.load()
    monkeypatch.setenv("MSBREG_SITE", str(tmp_path))
    with pytest.raises(InvalidError, match=rf"^{tmp_path} cannot be read \(Is a directory\)\.$"):
        sites.load()


def test_the_keys_on_which_last_digits_depend_are_the_same_everywhere() -> None:
    page = " ".join((PROJECT / "docs" / "getting-started.md").read_text(encoding="utf-8").split())
    told = page.partition("The last digits of a number can depend on three keys, ")[2].partition(", because")[
        0
    ]
    assert sites.__doc__
    own = sites.__doc__.partition("beyond rounding, which ")[2].partition(" do.")[0]
    assert told == own == "`device`, `devices` and `compile`"
