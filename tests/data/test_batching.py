from itertools import islice

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from xlcm.config import ConfigError
from xlcm.data.batching import Batching, Row, RowStream


def pairs(batches: np.ndarray) -> list[tuple[int, int]]:
    return [tuple(row) for row in batches.reshape(-1, 2).tolist()]


def all_rows(slots) -> set[tuple[int, int]]:
    return {(item, slot) for item, count in enumerate(slots) for slot in range(count)}


def taken(stream: RowStream, count: int) -> list[list[Row]]:
    return list(islice(iter(stream), count))


some_slots = st.lists(st.integers(0, 5), min_size=1, max_size=30)
sizes = st.integers(1, 9)
seeds = st.integers(0, 2**31)

# -- an epoch -----------------------------------------------------------------------------------


@given(
    slots=some_slots,
    size=sizes,
    seed=seeds,
    epoch=st.integers(0, 50),
    options=st.sampled_from(
        [{}, {"same_image": "together"}, {"bucket_batches": 1}, {"bucket_batches": 3}]
    ),
)
@settings(max_examples=200, deadline=None)
def test_an_epoch_holds_every_row_once_but_for_the_incomplete_batch(
    slots, size, seed, epoch, options
):
    assume(sum(slots) >= size)
    if "bucket_batches" in options:
        options = {**options, "lengths": np.arange(len(slots)) % 7}
    batching = Batching(np.array(slots), size, seed=seed, **options)
    batches = batching.batches(epoch)
    assert batches.shape == (sum(slots) // size, size, 2)
    assert len(batching) == len(batches)
    found = pairs(batches)
    assert len(set(found)) == len(found)
    assert set(found) <= all_rows(slots)


@given(slots=some_slots, size=sizes, seed=seeds, epoch=st.integers(0, 50))
@settings(max_examples=200, deadline=None)
def test_separate_never_puts_an_item_twice_in_a_batch_and_repeats_no_row(slots, size, seed, epoch):
    assume(sum(count > 0 for count in slots) >= size)
    batching = Batching(np.array(slots), size, seed=seed, same_image="separate")
    batches = batching.batches(epoch)
    assert len(batches) >= 1
    assert all(len(set(batch[:, 0])) == size for batch in batches)
    found = pairs(batches)
    assert len(set(found)) == len(found)
    assert set(found) <= all_rows(slots)


def test_separate_loses_only_the_incomplete_batch_where_items_are_many():
    slots = np.full(1000, 5)
    for epoch in range(5):
        batches = Batching(slots, 256, same_image="separate").batches(epoch)
        assert len(batches) == 5000 // 256
    each_once = Batching(np.full(64, 5), 64, same_image="separate")
    assert each_once.batches(0).shape == (5, 64, 2)


def test_chance_alone_would_put_items_together():
    batches = Batching(np.full(100, 5), 50).batches(0)
    assert any(len(set(batch[:, 0])) < 50 for batch in batches)


@given(slots=some_slots, size=sizes, seed=seeds)
@settings(max_examples=200, deadline=None)
def test_together_keeps_the_rows_of_an_item_next_to_one_another(slots, size, seed):
    assume(sum(slots) >= size)
    batches = Batching(np.array(slots), size, seed=seed, same_image="together").batches(0)
    items = batches.reshape(-1, 2)[:, 0]
    runs = 1 + int((items[1:] != items[:-1]).sum())
    assert runs == len(set(items.tolist()))


def test_rows_that_wait_for_the_next_epoch_are_not_always_the_same():
    batching = Batching(np.ones(10, int), 4)
    left = [all_rows(np.ones(10, int)) - set(pairs(batching.batches(e))) for e in range(20)]
    assert all(len(rows) == 2 for rows in left)
    assert len(set().union(*left)) > 6


@pytest.mark.parametrize("same_image", ["any", "separate", "together"])
def test_the_order_is_a_function_of_seed_and_epoch_alone(same_image):
    slots = np.array([2, 0, 1, 5, 3] * 10)

    def order(seed, epoch, *asked_before):
        batching = Batching(slots, 8, seed=seed, same_image=same_image)
        for other in asked_before:
            batching.batches(other)
        return batching.batches(epoch)

    assert np.array_equal(order(1, 3), order(1, 3, 7, 2, 0, 3, 4))
    assert len({order(s, e).tobytes() for s in range(3) for e in range(4)}) == 12


def test_only_epochs_in_use_are_held():
    batching = Batching(np.ones(100, int), 10)
    for epoch in range(30):
        batching.batches(epoch)
    assert sorted(batching._arranged) == [28, 29]


# -- length buckets -----------------------------------------------------------------------------


def test_length_buckets_reduce_padding_and_keep_all_rows():
    lengths = np.random.default_rng(0).integers(5, 60, 2000).astype(float)

    def padding(bucket_batches):
        batches = Batching(
            np.ones(2000, int), 50, lengths=lengths, bucket_batches=bucket_batches
        ).batches(0)
        assert set(pairs(batches)) == all_rows(np.ones(2000, int))
        by_batch = lengths[batches[..., 0]]
        return 1 - by_batch.sum() / (by_batch.max(axis=1) * 50).sum()

    without, with_buckets, whole = padding(0), padding(10), padding(40)
    assert without > 0.4
    assert with_buckets < without / 4
    assert whole < with_buckets


def test_batches_of_a_bucket_are_shuffled():
    lengths = np.arange(1000.0)
    batching = Batching(np.ones(1000, int), 10, lengths=lengths, bucket_batches=100)
    means = lengths[batching.batches(0)[..., 0]].mean(axis=1)
    assert abs(np.corrcoef(np.arange(100), means)[0, 1]) < 0.4


# -- processes and position ---------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 4])
def test_any_number_of_processes_sees_the_same_global_batches(world):
    slots = np.array([3, 0, 1, 2] * 9)
    batching = Batching(slots, 8, seed=4, same_image="separate")
    count = 2 * len(batching) + 1
    shares = [taken(RowStream(Batching(slots, 8, seed=4, same_image="separate"), r, world), count)
              for r in range(world)]  # fmt: skip
    assert all(len(rows) == 8 // world for share in shares for rows in share)
    whole = [[row for share in shares for row in share[step]] for step in range(count)]
    expected = [
        [Row(item, slot, epoch) for item, slot in batch.tolist()]
        for epoch in range(4)
        for batch in batching.batches(epoch)
    ]
    assert whole == expected[:count]
    assert {row.epoch for batch in whole for row in batch} >= {0, 1}


@given(slots=some_slots, size=sizes, skip=st.integers(0, 40))
@settings(max_examples=100, deadline=None)
def test_start_at_continues_exactly(slots, size, skip):
    assume(sum(slots) >= size)
    straight = taken(RowStream(Batching(np.array(slots), size)), skip + 5)
    batching = Batching(np.array(slots), size)
    stream = RowStream(batching)
    stream.start_at(*divmod(skip, len(batching)))
    assert taken(stream, 5) == straight[skip:]
    assert taken(stream, 5) == straight[skip:]  # from the same place each time


def test_two_iterations_do_not_disturb_one_another():
    stream = RowStream(Batching(np.ones(20, int), 4))
    first = iter(stream)
    a = [next(first), next(first)]
    stream.start_at(3, 1)
    second = iter(stream)
    b = next(second)
    assert [*a, next(first)] == taken(RowStream(Batching(np.ones(20, int), 4)), 3)
    assert b[0].epoch == 3


# -- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("same_image", ["separate", "together"])
def test_buckets_contradict_a_rule_for_the_rows_of_an_item(same_image):
    with pytest.raises(ConfigError, match=rf"length_buckets=2 .*same_image={same_image}"):
        Batching(np.ones(9, int), 2, same_image=same_image, lengths=np.ones(9), bucket_batches=2)
    with pytest.raises(ValueError, match="need the lengths"):
        Batching(np.ones(9, int), 2, bucket_batches=2)


def test_too_few_rows_are_counted_in_the_message():
    with pytest.raises(ConfigError, match=r"5 training rows of 2 items do not fill .* of 6: lower"):
        Batching(np.array([2, 0, 3]), 6)
    Batching(np.array([2, 0, 3]), 5)
    with pytest.raises(ConfigError, match=r"of 2 items, which data\.same_image=separate lets in"):
        Batching(np.array([2, 0, 3]), 3, same_image="separate")
    with pytest.raises(ConfigError, match="0 training rows of 0 items"):
        Batching(np.array([0, 0]), 1)


def test_processes_that_do_not_divide_the_batch_are_refused_with_sizes_that_work():
    batching = Batching(np.ones(100, int), 10)
    with pytest.raises(
        ConfigError, match=r"global_batch=10 is not divisible by 4 .*; use 8 or 12$"
    ):
        RowStream(batching, 0, 4)
    with pytest.raises(ConfigError, match=r"16 processes; use 16$"):
        RowStream(batching, 0, 16)
