"""The closed form beside every prediction: alpha + max over ports of bytes / rate.

Seven parameters, fitted to the same twelve rows that the simulator's four constants are: a fixed
time for each kernel, a rate of NVLink for each GPU, one of NICs, and one of an SM that sends
(`ring` and `ring_two_hop`, where half of the SMs do).
"""

import tomllib
from functools import lru_cache
from pathlib import Path

import msgspec

from bench.traffic.bounds import HalfOp
from bench.traffic.plan import Plan
from bench.validation.question import Question
from bench.validation.traffic import Traffic, traffic_of

PARAMETERS = Path(__file__).parent / "closed_form.toml"


class Parameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is fitted: microseconds by kernel, GB/s by link and GPU.

    Attributes:
        alpha_us: fixed time by kernel.
        nvlink_gbs: rate of a NVLink port by GPU.
        nic_gbs: rate of a NIC.
        lane_gbs: rate of an SM that sends, bytes that stay on the rank included.
    """

    alpha_us: dict[str, float]
    nvlink_gbs: dict[str, float]
    nic_gbs: float
    lane_gbs: float

    def port_us(self, question: Question, traffic: Traffic) -> dict[str, float]:
        """Return the time of each port by its name; a GPU's NVLink has the GPU's name."""
        return {
            question.gpu: traffic.nvlink / (1000 * self.nvlink_gbs[question.gpu]),
            "nic": traffic.rdma / (1000 * self.nic_gbs),
            "lane": traffic.lane_bytes / (1000 * self.lane_gbs),
        }

    def time_us(self, question: Question, traffic: Traffic) -> float:
        """Return the time of an operation."""
        return self.alpha_us[question.kernel] + max(self.port_us(question, traffic).values())

    @property
    def num_parameters(self) -> int:
        """How many numbers are fitted."""
        return len(self.alpha_us) + len(self.nvlink_gbs) + 2


def committed() -> Parameters:
    """Return the parameters of the file."""
    return msgspec.convert(tomllib.loads(PARAMETERS.read_text()), Parameters)


@lru_cache(maxsize=2)
def _plan(question: Question) -> Plan:
    spec = question.spec()
    return Plan.of(spec.workload.topk(spec.world_size, spec.ranks_per_node), spec.shape())


def count(question: Question, op: HalfOp) -> Traffic:
    """Return the bytes of an operation without running it."""
    return traffic_of(question, op, _plan(question), question.spec().shape())
