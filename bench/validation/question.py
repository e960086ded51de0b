"""What `epbench validate` is asked: a kernel of DeepEP's first version, and how it is timed.

V1's kernels are told anew in `ring`, `ring_two_hop` and `low_latency/split`, which sends everything
before it receives, as V1's does with a grid synchronisation between. Times are what V1 timed:

- `ring`: a cached dispatch with its notify, by events around the call; combine likewise.
- `ring_two_hop`: the kernel `dispatch` or `combine` alone, by a profiler.
- `low_latency`: both phases, by a profiler. V1's kernels cast to FP8, keep a counter for each
  expert and meet all blocks of the grid between their phases; ours do none of it, so a constant,
  `low_latency.fixed_us`, is added to the simulated time.
"""

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import msgspec

from bench.cases import CaseSpec
from bench.records.record import Form
from bench.traffic.bounds import HalfOp
from bench.workloads.workload import Workload
from comms.errors import UsageError
from comms.fabric import Constant, Fabric, load_fabric
from kernels.protocol import Granularity, Protocol, Route
from kernels.registry import find_protocol

RANKS_PER_NODE = 8
CONSTANTS = Path(__file__).parent / "constants.toml"


class LowLatencyConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What V1's low-latency kernels do beside what ours do."""

    fixed_us: Constant


class V1Constants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What V1's kernels do beside what ours do, by kernel."""

    low_latency: LowLatencyConstants


@dataclass(frozen=True, slots=True)
class Way:
    """How a kernel of V1 is run and timed.

    Attributes:
        published: the name that its numbers are published under.
        variant: which variant of ours does what it does.
        form: what V1's tests time.
        num_tokens: tokens of a rank in V1's tests.
        num_sms: SMs that V1 gives it, None for its low-latency grid.
        route: the way of its rows.
        granularity: what a row stands for.
        by_kernel: whether the time is that of the kernel named after the operation, alone.
    """

    published: str
    variant: str
    form: Form
    num_tokens: int
    num_sms: int | None
    route: Route = "one_hop"
    granularity: Granularity = "rank"
    by_kernel: bool = False


#: The kernels that numbers were published about.
WAYS: Mapping[str, Way] = MappingProxyType(
    {
        "ring": Way("V1 normal (ring)", "chunked", "cached", 4096, 24),
        "ring_two_hop": Way(
            "V1 normal (two-hop)", "rail", "fresh", 4096, 24, "rail", by_kernel=True
        ),
        "low_latency": Way("V1 low latency", "split", "fresh", 128, None, granularity="selection"),
    }
)


@dataclass(frozen=True, slots=True)
class Question:
    """A configuration to predict.

    Attributes:
        gpu: name of the fabric's profile.
        kernel: key of `WAYS`.
        groups: how many of how many groups of experts a token may use, None for a uniform routing.
        num_sms: None for V1's.
        form: None for what V1's tests time.
        seed: of routing and data.
    """

    gpu: str
    kernel: str
    nodes: int = 1
    num_tokens: int | None = None
    hidden: int = 7168
    num_topk: int = 8
    num_experts: int = 256
    groups: tuple[int, int] | None = None
    num_sms: int | None = None
    form: Form | None = None
    seed: int = 0

    def spec(self, fabric: Fabric | None = None) -> CaseSpec:
        """Return the case that answers it.

        Args:
            fabric: rates and costs, those of the GPU's profile where None.

        Raises:
            UsageError: no such GPU, or sizes that no kernel could have.
        """
        way = WAYS[self.kernel]
        fabric = fabric or load_fabric(self.gpu)
        num_sms = self.num_sms or way.num_sms or low_latency_sms(self.num_experts, fabric.num_sms)
        if num_sms > fabric.num_sms:
            raise UsageError(
                f"num_sms must be at most the {fabric.num_sms} SMs of {fabric.gpu}, got {num_sms}"
            )
        used, num_groups = self.groups or (0, 0)
        workload = Workload(
            preset="published",
            num_tokens=way.num_tokens if self.num_tokens is None else self.num_tokens,
            hidden=self.hidden,
            num_experts=self.num_experts,
            num_topk=self.num_topk,
            num_groups=num_groups,
            num_topk_groups=used,
            routing="groups" if self.groups else "uniform",
            seed=self.seed,
        )
        return CaseSpec(
            kernel=self.kernel,
            variant=way.variant,
            form=self.form or way.form,
            device="sim",
            fabric=fabric,
            nodes=self.nodes,
            ranks_per_node=RANKS_PER_NODE,
            workload=workload,
            num_sms=num_sms,
        )

    def check(self, ops: Sequence[HalfOp]) -> Protocol:
        """Return the kernel that runs it.

        Raises:
            UsageError: there is none, or it cannot do one of the operations.
        """
        spec = self.spec()
        protocol = find_protocol(self.kernel, WAYS[self.kernel].variant)
        for op in ops:
            reason = protocol.refuses(spec.shape(), op, cross_rail=spec.fabric.cross_rail)
            if reason is not None:
                raise UsageError(f"{self.kernel} cannot run this: {reason}")
        return protocol


def low_latency_sms(num_experts: int, device_sms: int) -> int:
    """Return the blocks of V1's low-latency kernels: whole experts for each, as few as can be."""
    per_block = -(-num_experts // device_sms)
    return -(-num_experts // per_block)


def v1_constants() -> V1Constants:
    """Return the constants of V1's kernels."""
    return msgspec.convert(tomllib.loads(CONSTANTS.read_text()), V1Constants)


def parse_groups(text: str, nodes: int) -> tuple[int, int]:
    """Return how many of how many groups `text` says: `4 of 8`, or `4` of as many as nodes.

    Raises:
        UsageError: it says something else.
    """
    used, of, groups = text.partition(" of ")
    if used.strip().isdecimal() and (groups.strip().isdecimal() if of else True):
        pair = int(used), int(groups) if of else nodes
        if 1 <= pair[0] <= pair[1]:
            return pair
    raise UsageError(
        f"groups must be M of N with M at most N, or M of as many groups as nodes, got {text!r}"
    )
