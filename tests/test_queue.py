"""The queue of keys: the oldest rows are replaced in order."""

from __future__ import annotations

import pytest
import torch

from reproduce.nn.queue import Queue


def test_a_queue_starts_with_unit_vectors_of_the_global_random_state():
    torch.manual_seed(3)
    one = Queue(6, 2)
    other = Queue(6, 2)
    torch.manual_seed(3)
    again = Queue(6, 2)
    torch.testing.assert_close(one.rows.norm(dim=1), torch.ones(6))
    assert torch.equal(one.rows, again.rows)
    assert not torch.allclose(one.rows, other.rows)
    assert list(one.state_dict()) == ["rows"]
    assert not list(one.parameters())


def test_keys_replace_the_oldest_rows_in_order():
    queue = Queue(6, 1)
    start = queue.rows.flatten().tolist()
    expected = list(start)
    for step in range(5):
        keys = torch.tensor([[10.0 * step], [10.0 * step + 1]], requires_grad=True)
        queue.push(keys, at=2 * step)
        expected[2 * step % 6 : 2 * step % 6 + 2] = keys.flatten().tolist()
        assert queue.rows.flatten().tolist() == expected
    assert expected == [30, 31, 40, 41, 20, 21]
    assert not queue.rows.requires_grad


def test_the_first_row_follows_the_last():
    queue = Queue(4, 1)
    queue.push(torch.tensor([[1.0], [2.0]]), at=7)
    assert queue.rows[[3, 0]].flatten().tolist() == [1, 2]


def test_a_queue_that_does_not_hold_whole_batches_is_refused():
    for keys in (4, 12):
        with pytest.raises(ValueError, match=f"6 rows does not hold whole batches of {keys} keys"):
            Queue(6, 1).push(torch.zeros(keys, 1), at=0)
