"""Items prepared ahead: the same items, errors in their place, and nothing that outlives the caller."""

from __future__ import annotations

import threading
from collections.abc import Generator

import pytest
from toys import CPU

from reproduce.data import ahead


class BrokenError(Exception):
    """The item cannot be prepared."""


class Source:
    """Counts from 0 and keeps how far it came, in which threads, and that it was closed."""

    def __init__(self, end: int, broken: int = -1) -> None:
        self.made: list[int] = []
        self.threads: set[str] = set()
        self.closed = 0
        self._end, self._broken = end, broken

    def items(self) -> Generator[int]:
        try:
            for number in range(self._end):
                self.threads.add(threading.current_thread().name)
                self.made.append(number)
                if number == self._broken:
                    raise BrokenError(str(number))
                yield number
        finally:
            self.closed += 1


def alive() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == ahead.NAME]


@pytest.fixture(params=[0, 1, 3])
def depth(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setitem(ahead.DEPTH, "cpu", request.param)
    return int(request.param)


def test_the_items_are_those_of_the_plain_iterator(depth: int) -> None:
    source = Source(7)
    with ahead.ahead(source.items(), CPU) as items:
        assert list(items) == list(range(7))
        assert next(items, None) is None, "the end does not block"
    assert source.threads == ({ahead.NAME} if depth else {"MainThread"})
    assert (source.closed, alive()) == (1, [])


def test_an_error_is_raised_in_place_of_its_item(depth: int) -> None:
    source = Source(7, broken=4)
    with ahead.ahead(source.items(), CPU) as items:
        assert [next(items) for _ in range(4)] == [0, 1, 2, 3]
        with pytest.raises(BrokenError, match="4"):
            next(items)
    assert (source.closed, alive()) == (1, [])


def test_a_caller_that_stops_early_waits_for_no_item_that_it_did_not_need(depth: int) -> None:
    source = Source(10**9)

    def loop() -> None:
        with ahead.ahead(source.items(), CPU) as items:
            next(items)
            next(items)
            raise BrokenError

    with pytest.raises(BrokenError):
        loop()
    assert (source.closed, alive()) == (1, [])
    assert 2 <= len(source.made) <= 2 + depth


def test_a_block_that_takes_nothing_ends(depth: int) -> None:
    source = Source(10**9)
    with ahead.ahead(source.items(), CPU):
        pass
    assert (len(source.made) <= depth, alive()) == (True, [])
