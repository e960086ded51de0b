"""The generator: published words, order of streams, distributions."""

import numpy as np
import pytest

from bench.workloads.random_bits import (
    MAX_ID,
    exponentials,
    ids_of,
    permutation,
    smallest,
    stream_key,
    tagged,
    words,
    words_at,
)


def test_words_are_splitmix64() -> None:
    # First outputs of SplitMix64 for the seeds 0 and 1234567, as its authors publish them.
    assert [int(word) for word in words(0, 0, 3)] == [
        0xE220A8397B1DCDAF,
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]
    assert [int(word) for word in words(1234567, 0, 2)] == [
        6457827717110365317,
        3203168211198807973,
    ]


def test_a_word_does_not_depend_on_those_before() -> None:
    whole = words(99, 0, 100)
    assert np.array_equal(words(99, 37, 20), whole[37:57])
    index = np.array([[5, 90], [0, 5]], np.uint64)
    assert np.array_equal(words_at(99, index), whole[index.astype(int)])


def test_streams_differ_by_seed_and_path() -> None:
    keys = {stream_key(seed, a, b) for seed in range(-2, 3) for a in range(5) for b in range(5)}
    assert len(keys) == 125
    assert stream_key(3) == 3
    assert stream_key(3, 0) == int(words(3, 0, 1)[0])
    assert stream_key(3, 4, 7) == stream_key(stream_key(3, 4), 7)


def test_exponentials_are_minus_log_of_the_upper_bits() -> None:
    random = words(7, 0, 200_000)
    extremes = np.array([0, 2**64 - 1, 2**63, 2**63 - 1], np.uint64)
    random = np.concatenate([random, extremes])
    uniform = ((random >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    found = exponentials(random)
    np.testing.assert_allclose(found, -np.log(uniform), rtol=6.2e-5, atol=0)
    np.testing.assert_allclose(found, -np.log(uniform), rtol=1e-15, atol=7.5e-9)
    assert (found > 0).all()


def test_tagged_keys_keep_their_ids_and_never_tie() -> None:
    ids = np.arange(50)
    keys = tagged(np.full(50, MAX_ID, np.uint64), ids)
    assert np.array_equal(ids_of(keys), ids)
    assert len(np.unique(keys)) == 50


def test_smallest_are_ascending() -> None:
    keys = words(1, 0, 600).reshape(20, 30)
    assert np.array_equal(smallest(keys, 7), np.sort(keys, axis=1)[:, :7])
    assert np.array_equal(smallest(keys, 30), np.sort(keys, axis=1))


@pytest.mark.parametrize("num_items", [0, 1, 1000])
def test_permutation_has_every_item_once(num_items: int) -> None:
    order = permutation(5, num_items)
    assert np.array_equal(np.sort(order), np.arange(num_items))
    assert num_items < 2 or not np.array_equal(order, permutation(6, num_items))
