"""Which experts each token of a world selects, from a spec string such as `power-law:0.8`."""

import re
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from bench.workloads.gate import Gate
from bench.workloads.random_bits import Purpose, permutation, stream_key, words
from bench.workloads.routing_files import load_topk, matrix_topk, split_topk
from bench.workloads.routing_hot import hot_topk
from bench.workloads.routing_random import group_limited_topk, power_law_topk, uniform_topk
from comms.errors import UsageError

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]

#: Every routing by how it is written, with one line about it.
ROUTINGS = MappingProxyType(
    {
        "uniform": "every expert equally likely, without replacement",
        "power-law:ALPHA": "popularity proportional to rank^-ALPHA under a seeded order of experts",
        "groups": "uniform inside the best num_topk_groups of num_groups groups of experts",
        "hot:RATIO": "rank 0 receives exactly RATIO times the rows of every other rank",
        "file:PATH": "topk_idx of an .npy or .npz file, (ranks, tokens, topk) or (tokens, topk)",
        "matrix:PATH": "text matrix, bytes from row's rank to column's rank, as top-1 tokens",
    }
)


@dataclass(frozen=True, slots=True)
class RoutingSpec:
    """A parsed spec string.

    Attributes:
        kind: the name before the colon.
        number: ALPHA or RATIO, None for other kinds.
        path: PATH, None for other kinds.
    """

    kind: str
    number: Fraction | None = None
    path: Path | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Routing:
    """The experts of every token, lists by source rank.

    Attributes:
        topk_idx: int32 `(num_tokens_of_rank, num_topk)`, descending score, -1 is no expert.
        topk_weights: float32, same shape, 0 where `topk_idx` is -1. Generated ones are positive,
            descend and sum to 1 over the experts of a token, to float32's rounding; those of a
            file are its own.
    """

    topk_idx: list[Int32]
    topk_weights: list[Float32]


def parse_routing(text: str) -> RoutingSpec:
    """Return the spec that `text` writes.

    Raises:
        UsageError: an unknown name, or a parameter that is missing, superfluous or no number.
    """
    kind, colon, parameter = text.partition(":")
    forms = {form.partition(":")[0]: form for form in ROUTINGS}
    if kind not in forms:
        raise UsageError(f"no routing {text!r}; choose one of {', '.join(ROUTINGS)}")
    wants = forms[kind].partition(":")[2]
    if bool(parameter) != bool(wants) or bool(colon) != bool(wants):
        raise UsageError(f"routing {text!r} must be written {forms[kind]}")
    if wants == "PATH":
        return RoutingSpec(kind, path=Path(parameter))
    if wants:
        return RoutingSpec(kind, number=_number(text, parameter))
    return RoutingSpec(kind)


def generate(spec: RoutingSpec, gate: Gate) -> Routing:
    """Return the routing of a world.

    Raises:
        UsageError: the spec cannot be met for these sizes, or its file cannot be used.
    """
    weights: list[Float32] | None = None
    if spec.path is not None and spec.kind == "matrix":
        topk_idx = matrix_topk(spec.path, gate)
    elif spec.path is not None:
        topk_idx, weights = split_topk(load_topk(spec.path), spec.path, gate)
    elif spec.kind == "hot" and spec.number is not None:
        topk_idx = hot_topk(gate, spec.number)
    elif spec.kind == "power-law" and spec.number is not None:
        topk_idx = power_law_topk(gate, float(spec.number))
    elif spec.kind == "groups":
        topk_idx = group_limited_topk(gate)
    else:
        topk_idx = uniform_topk(gate)
    for rank, idx in enumerate(topk_idx):
        mask_selections(idx, gate.masked_ratio, stream_key(gate.seed, Purpose.MASK, rank))
    if weights is None:
        return Routing(topk_idx, [_weights(idx, gate.seed, r) for r, idx in enumerate(topk_idx)])
    return Routing(
        topk_idx,
        [np.where(idx >= 0, w, np.float32(0)) for idx, w in zip(topk_idx, weights, strict=True)],
    )


def mask_selections(topk_idx: Int32, masked_ratio: float, key: int) -> None:
    """Replace `round(masked_ratio * n)` of the n selections of one rank by -1, in place."""
    selected = np.flatnonzero(topk_idx >= 0)
    num_masked = round(masked_ratio * len(selected))
    if num_masked:
        masked = selected[permutation(key, len(selected))[:num_masked]]
        topk_idx.reshape(-1)[masked] = -1


def _weights(topk_idx: Int32, seed: int, rank: int) -> Float32:
    random = words(stream_key(seed, Purpose.WEIGHT, rank), 0, topk_idx.size)
    # 24-bit scores are exact in float32 and at least 2**20, so no weight underflows to 0.
    scores = (random >> np.uint64(40)).astype(np.float64).reshape(topk_idx.shape) + 2.0**20
    scores = np.where(topk_idx >= 0, -np.sort(-scores, axis=1), 0.0)
    totals = scores.sum(axis=1, keepdims=True)
    weights: Float32 = np.divide(
        scores, totals, out=np.zeros_like(scores), where=totals > 0
    ).astype(np.float32)
    return weights


def _number(text: str, parameter: str) -> Fraction:
    # Decimal digits only: Fraction alone would also take 1/3, 1_0 and exponents of any size.
    if not re.fullmatch(r"\d{1,9}(\.\d{1,9})?|\.\d{1,9}", parameter):
        raise UsageError(f"routing {text!r} needs a number such as 1.5, got {parameter!r}")
    return Fraction(parameter)
