"""A routing in which one rank receives an exact multiple of what every other rank does.

A row is a (token, destination rank) copy, the source's own included, counted before masking. Where
counts exist by which every other rank that owns experts receives c rows and rank 0 RATIO * c, such
counts are used, and the ratio holds to the row. Else, as for top-1 tokens whose number does not
divide, rank 0 receives the share RATIO / (RATIO + others) of all rows, rounded to the nearest row,
and the others share the rest to within one row. A ratio that leaves a rank without rows is refused.
"""

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from bench.workloads.gate import Gate
from bench.workloads.random_bits import Purpose, ids_of, permutation, smallest, stream_key, tagged
from bench.workloads.routing_random import random_rows, token_batches
from comms.errors import UsageError

_NOT_CHOSEN = np.uint64(3 << 62)
_CHOSEN = np.uint64(1 << 62)
_PLAIN = np.uint64((1 << 62) - 1)
#: Tokens that share one random order of ranks.
_BLOCK_TOKENS = 64


def hot_rows(gate: Gate, ratio: Fraction) -> npt.NDArray[np.int64]:
    """Return the rows of each rank that owns experts, int64 `(num_owners,)`.

    Of the feasible totals it takes an exact one, if there is any, and of these one near uniform's.

    Raises:
        UsageError: no counts have that ratio.
    """
    num_others = gate.num_owners - 1
    if num_others == 0:
        raise UsageError(
            f"routing 'hot:{_text(ratio)}' needs two ranks that own experts, got "
            f"world_size {gate.world_size}"
        )
    if ratio < 1:
        raise UsageError(f"routing 'hot:{_text(ratio)}' needs a ratio of at least 1")
    tokens = gate.world_size * gate.num_tokens
    if tokens == 0:
        return np.zeros(gate.num_owners, np.int64)
    fewest, most = _ranks_per_token(gate)
    shares = ratio + num_others
    low = max(tokens * fewest, math.ceil(shares))
    high = math.floor(min(Fraction(tokens * most), tokens * shares / ratio))
    if low > high:
        limit = min(
            Fraction(num_others, fewest - 1) if fewest > 1 else tokens,
            tokens,
            tokens * most - num_others,
        )
        raise UsageError(
            f"routing 'hot:{_text(ratio)}' cannot be met by {tokens} tokens of "
            f"top-{gate.num_topk} over {gate.num_owners} ranks of {gate.experts_per_rank} experts; "
            f"take a ratio of at most {_text(Fraction(max(limit, 1)))}, or more tokens"
        )
    wanted = min(max(low, round(tokens * _uniform_ranks_per_token(gate))), high)
    total = _exact_total(ratio, num_others, low=low, wanted=wanted, high=high) or wanted
    hot = math.floor(ratio * total / shares + Fraction(1, 2))
    each, extra = divmod(total - hot, num_others)
    rows = np.full(gate.num_owners, each, np.int64)
    rows[1 : 1 + extra] += 1
    rows[0] = hot
    return rows


def hot_topk(gate: Gate, ratio: Fraction) -> list[npt.NDArray[np.int32]]:
    """Return selections that give rank 0 `ratio` times the rows of every other rank, by rank.

    Raises:
        UsageError: no selections do.
    """
    sends = _destinations(gate, hot_rows(gate, ratio))
    topk_idx = np.empty((gate.world_size * gate.num_tokens, gate.num_topk), np.int32)
    slots = gate.num_owners * gate.experts_per_rank
    ids = np.arange(slots)
    for rank in range(gate.world_size):
        for tokens in token_batches(gate.num_tokens, slots):
            at = slice(rank * gate.num_tokens + tokens.start, rank * gate.num_tokens + tokens.stop)
            plain = tagged(random_rows(gate, rank, tokens, slots) >> np.uint64(2), ids)
            # Experts that the last owner lacks come after all that it has.
            plain[:, gate.num_experts :] = _PLAIN
            owned = plain.reshape(-1, gate.num_owners, gate.experts_per_rank)
            # The best expert of a destination is taken in any case, so that the row exists.
            first = owned == owned.min(axis=2, keepdims=True)
            order = np.where(first, np.uint64(0), _CHOSEN)
            order = np.where(sends[at, :, None], order, _NOT_CHOSEN) | owned
            kept = smallest(order.reshape(plain.shape), gate.num_topk) & _PLAIN
            kept.sort(axis=1)
            topk_idx[at] = ids_of(kept)
    return list(topk_idx.reshape(gate.world_size, gate.num_tokens, gate.num_topk))


def _destinations(gate: Gate, rows_of_rank: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
    """Deal ranks to tokens: bool `(tokens_of_world, num_owners)`, column sums are `rows_of_rank`.

    Each block of tokens takes its share of what is left of every rank, rounded so that the block's
    total is rounded once. Inside a block copies are laid out rank after rank and dealt round and
    round its tokens, both in random order. No rank has more copies than the block has tokens, so
    none meets a token twice, and tokens differ by one rank at most.
    """
    num_tokens = gate.world_size * gate.num_tokens
    sends = np.zeros((num_tokens, gate.num_owners), np.bool_)
    left = rows_of_rank.copy()
    for first in range(0, num_tokens, _BLOCK_TOKENS):
        tokens_left = num_tokens - first
        block = min(_BLOCK_TOKENS, tokens_left)
        ranks = permutation(stream_key(gate.seed, Purpose.HOT_RANKS, first), gate.num_owners)
        tokens = permutation(stream_key(gate.seed, Purpose.HOT_TOKENS, first), block)
        total = int(left.sum()) * block // tokens_left
        rows, remainder = np.divmod(left * block, tokens_left)
        rows[ranks[remainder[ranks] > 0][: total - int(rows.sum())]] += 1
        left -= rows
        sends[first + tokens[np.arange(total) % block], np.repeat(ranks, rows[ranks])] = True
    return sends


def _exact_total(
    ratio: Fraction, num_others: int, *, low: int, wanted: int, high: int
) -> int | None:
    """Return the total nearest `wanted` of which other ranks have c rows, the hot one ratio * c."""
    unit = ratio.denominator * (ratio + num_others)
    below = wanted // unit * unit
    fitting = [total for total in (below, below + unit) if low <= total <= high and total]
    return int(min(fitting, key=lambda total: abs(total - wanted))) if fitting else None


def _ranks_per_token(gate: Gate) -> tuple[int, int]:
    """Return the fewest ranks of which any hold top-k experts, and the most a token can use."""
    owned = _experts_of_owners(gate)
    held = fewest = 0
    for num_experts in sorted(owned):
        if held < gate.num_topk:
            held += num_experts
            fewest += 1
    return fewest, min(gate.num_topk, len(owned))


def _uniform_ranks_per_token(gate: Gate) -> Fraction:
    total = math.comb(gate.num_experts, gate.num_topk)
    return sum(
        (
            1 - Fraction(math.comb(gate.num_experts - owned, gate.num_topk), total)
            for owned in _experts_of_owners(gate)
        ),
        start=Fraction(0),
    )


def _experts_of_owners(gate: Gate) -> list[int]:
    return [
        min(gate.experts_per_rank, gate.num_experts - first)
        for first in range(0, gate.num_experts, gate.experts_per_rank)
    ]


def _text(number: Fraction) -> str:
    return f"{float(number):g}"
