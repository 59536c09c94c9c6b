"""The order in which a detector sees its images: whole passes, one orientation at a time.

It is the same for any number of processes and from any start.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from reproduce.data.detection import Picture
from reproduce.detection import stream


def pictures(*sizes: tuple[int, int]) -> list[Picture]:
    return [
        Picture(Path(f"{number}.png"), number, width, height, ())
        for number, (width, height) in enumerate(sizes)
    ]


WIDE, HIGH, SQUARE = (20, 10), (10, 20), (10, 10)
MIXED = pictures(*[WIDE, HIGH, WIDE, SQUARE, WIDE] * 2, WIDE)
"""Seven pictures that are wider than high and four that are not."""


def batches(
    count: int, *, batch_size: int = 4, group: int = 2, start: int = 0, world_size: int = 1
) -> list[Any]:
    """Return, for each step from `start` on, the images that each process is shown."""
    mine = batch_size // world_size
    shares = []
    for rank in range(world_size):
        settings = {
            "batch_size": batch_size,
            "group": group,
            "seed": 3,
            "start": start,
            "rank": rank,
            "world_size": world_size,
        }
        shown = list(islice(stream.share(MIXED, **settings), count * mine))
        shares.append([shown[begin : begin + mine] for begin in range(0, count * mine, mine)])
    return [list(step) for step in zip(*shares, strict=True)]


def test_positions_count_what_all_processes_were_shown() -> None:
    assert [position for step in batches(6) for position, _ in step[0]] == list(range(24))


def test_images_that_are_shown_together_are_all_wider_than_high_or_none_is() -> None:
    shown = [MIXED[index] for _, index in islice(stream.shown(MIXED, group=2, seed=0), 200)]
    wide = [each.width > each.height for each in shown]
    assert wide[::2] == wide[1::2]
    assert {True, False} == set(wide)


def test_every_image_is_shown_once_each_time_round_and_none_is_dropped() -> None:
    indices = [index for _, index in islice(stream.shown(MIXED, group=2, seed=0), 11 * 40)]
    counts = Counter(indices)
    assert all(abs(counts[index] - 40) <= 1 for index in range(11))  # one of each orientation may be waiting
    alone = [index for _, index in islice(stream.shown(MIXED, group=1, seed=0), 33)]
    turns = [alone[begin : begin + 11] for begin in (0, 11, 22)]
    assert all(sorted(turn) == list(range(11)) for turn in turns)
    assert turns[0] != turns[1] != turns[2] != turns[0]
    assert alone != [index for _, index in islice(stream.shown(MIXED, group=1, seed=1), 33)]


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("group", [1, 2, 4])
def test_several_processes_share_the_batches_of_one(world_size: int, group: int) -> None:
    alone = [step[0] for step in batches(9, group=group)]
    assert [
        [each for share in step for each in share] for step in batches(9, group=group, world_size=world_size)
    ] == alone


@pytest.mark.parametrize("world_size", [1, 2])
@pytest.mark.parametrize("start", [1, 4, 7])
def test_the_order_can_be_entered_at_any_step(start: int, world_size: int) -> None:
    assert batches(9, world_size=world_size)[start:] == batches(9 - start, start=start, world_size=world_size)


def test_a_batch_that_does_not_hold_whole_groups_is_of_any_images() -> None:
    together = list(islice(stream.share(MIXED, batch_size=3, group=2, seed=3), 33))
    assert together == list(islice(stream.shown(MIXED, group=1, seed=3), 33))


def test_a_batch_that_cannot_be_shared_and_no_image_at_all_are_errors() -> None:
    with pytest.raises(ValueError, match="batch_size is 4, which 3 processes cannot share equally"):
        next(stream.share(MIXED, batch_size=4, group=2, seed=0, world_size=3))
    with pytest.raises(ValueError, match="No image has an object"):
        next(stream.shown([], group=2, seed=0))
