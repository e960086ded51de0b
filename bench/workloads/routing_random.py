"""Seeded generators that score every expert for every token and keep the best."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from bench.workloads.gate import Gate
from bench.workloads.random_bits import (
    Float64,
    Purpose,
    Uint64,
    exponentials,
    ids_of,
    permutation,
    smallest,
    stream_key,
    tagged,
    words,
)
from comms.errors import UsageError

Int32 = npt.NDArray[np.int32]

#: Keys made at once, so that they stay in a core's L2 cache.
_BATCH_KEYS = 1 << 16
#: Bits of popularity's significand that are kept, fewer than any system's pow gets right.
_POPULARITY_BITS = 40
#: `65535**16` is a quarter of the exponents that a double has.
_MAX_ALPHA = 16


def uniform_topk(gate: Gate) -> list[Int32]:
    """Return top-k of independent scores, by rank."""

    def select(random: Uint64) -> Int32:
        keys = tagged(random, np.arange(gate.num_experts))
        return ids_of(smallest(keys, gate.num_topk))

    return [_select(gate, rank, select) for rank in range(gate.world_size)]


def power_law_topk(gate: Gate, alpha: float) -> list[Int32]:
    """Return top-k without replacement by popularities `i**-alpha`, by rank.

    Every rank has the same order of popularity. Each expert draws an exponential variate over its
    popularity and the smallest are kept, which is Gumbel top-k (Efraimidis and Spirakis, 2006).

    Raises:
        UsageError: alpha is more than 16.
    """
    if alpha > _MAX_ALPHA:
        raise UsageError(f"power-law ALPHA must be at most {_MAX_ALPHA}, got {alpha:g}")
    order = permutation(stream_key(gate.seed, Purpose.POPULARITY), gate.num_experts)
    inverse = np.empty(gate.num_experts)
    inverse[order] = _inverse_popularity(gate.num_experts, alpha)

    def select(random: Uint64) -> Int32:
        # Positive doubles order as their bits do.
        keys = tagged((exponentials(random) * inverse).view(np.uint64), np.arange(gate.num_experts))
        return ids_of(smallest(keys, gate.num_topk))

    return [_select(gate, rank, select) for rank in range(gate.world_size)]


def group_limited_topk(gate: Gate) -> list[Int32]:
    """Return top-k inside the `num_topk_groups` groups with the best experts, by rank.

    A group scores as its best expert does, the rule of DeepEP's test generator.

    Raises:
        UsageError: no groups, or groups that cannot hold the selection.
    """
    if gate.num_groups < 1:
        raise UsageError("routing 'groups' needs a preset with num_groups, such as deepseek-v3")
    if gate.num_experts % gate.num_groups:
        raise UsageError(
            f"num_experts {gate.num_experts} does not divide into {gate.num_groups} groups; "
            "change num_experts or use another routing"
        )
    group_size = gate.num_experts // gate.num_groups
    if not gate.num_topk <= gate.num_topk_groups * group_size <= gate.num_experts:
        raise UsageError(
            f"num_topk_groups {gate.num_topk_groups} of {gate.num_groups} groups of {group_size} "
            f"experts cannot hold num_topk {gate.num_topk}"
        )

    def select(random: Uint64) -> Int32:
        keys = tagged(random, np.arange(gate.num_experts))
        groups = keys.reshape(-1, gate.num_groups, group_size)
        best = groups.min(axis=2)
        last = smallest(best, gate.num_topk_groups)[:, -1:]
        dropped = np.where(best <= last, np.uint64(0), ~np.uint64(0))
        allowed = (groups | dropped[:, :, None]).reshape(keys.shape)
        return ids_of(smallest(allowed, gate.num_topk))

    return [_select(gate, rank, select) for rank in range(gate.world_size)]


def token_batches(num_tokens: int, keys_per_token: int) -> Iterator[slice]:
    """Yield slices of tokens whose keys fit a cache."""
    step = max(1, _BATCH_KEYS // keys_per_token)
    for first in range(0, num_tokens, step):
        yield slice(first, min(first + step, num_tokens))


def random_rows(gate: Gate, rank: int, tokens: slice, keys_per_token: int) -> Uint64:
    """Return the words by which a rank's tokens select, `(num_tokens_of_slice, keys_per_token)`."""
    key = stream_key(gate.seed, Purpose.SELECT, rank)
    num_rows = tokens.stop - tokens.start
    random = words(key, tokens.start * keys_per_token, num_rows * keys_per_token)
    return random.reshape(num_rows, keys_per_token)


def _select(gate: Gate, rank: int, select: Callable[[Uint64], Int32]) -> Int32:
    topk_idx = np.empty((gate.num_tokens, gate.num_topk), np.int32)
    for tokens in token_batches(gate.num_tokens, gate.num_experts):
        topk_idx[tokens] = select(random_rows(gate, rank, tokens, gate.num_experts))
    return topk_idx


def _inverse_popularity(num_experts: int, alpha: float) -> Float64:
    values = np.arange(1, num_experts + 1, dtype=np.float64) ** alpha
    fraction, exponent = np.frexp(values)
    rounded: Float64 = np.ldexp(
        np.rint(np.ldexp(fraction, _POPULARITY_BITS)), exponent - _POPULARITY_BITS
    )
    return rounded
