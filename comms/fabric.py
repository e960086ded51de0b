"""Profiles of GPUs and their links: rates, latencies and SM costs, each with its source.

A profile is a TOML file in `comms/fabrics/`; profiles of one SM generation share that generation's
file. Rates are per direction and GPU. `raw` is the link's data sheet, `payload` the best bulk
transfer seen: the cap that is imposed.
"""

import tomllib
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Literal

import msgspec

from comms.errors import UsageError

#: Profiles without caps: links that bind nothing, and ranks that share one GPU.
UNCAPPED, ONE_CARD = "uncapped", "one-card"
FABRICS_DIR = Path(__file__).parent / "fabrics"

CrossRail = Literal["spine", "forbidden"]
End = Literal["low", "mid", "high"]
Mechanism = Literal["ldst", "bulk"]


class Constant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One number of a profile.

    Attributes:
        value: the number used.
        source: where it comes from.
        low: least value that sources support, None where they agree.
        high: greatest value that sources support.
    """

    value: float
    source: str
    low: float | None = None
    high: float | None = None

    def at(self, end: End) -> float:
        """Return the value at one end of its range."""
        bound = {"low": self.low, "mid": self.value, "high": self.high}[end]
        return self.value if bound is None else bound


class MechanismConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What an SM pays to move a row by one mechanism (`ldst` or `bulk`)."""

    copy_gbs: Constant
    bytes_in_flight: Constant
    issue_ns: Constant
    load_ns: Constant


class SmConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Costs of one SM generation, shared by the profiles of its GPUs."""

    ldst: MechanismConstants
    bulk: MechanismConstants
    word_issue_ns: Constant
    l2_ns: Constant
    poll_ns: Constant
    block_sync_ns: Constant
    fence_ns: Constant
    launch_gap_ns: Constant
    reduce_gbs: Constant
    layout_ns_per_token: Constant
    read_request_bytes: Constant
    read_request_span_bytes: Constant
    write_ack_bytes: Constant
    write_packet_bytes: Constant
    word_bytes: Constant


class NvlinkConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One GPU's NVLink port, per direction."""

    raw_gbs: Constant
    payload_gbs: Constant
    latency_ns: Constant
    queue_bytes: Constant


class NicConstants(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One GPU's NIC, per direction."""

    raw_gbs: Constant
    payload_gbs: Constant
    latency_ns: Constant
    queue_bytes: Constant
    send_queue_requests: Constant
    post_ns: Constant
    message_ns: Constant


class _Profile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    gpu: str
    sm_generation: str
    cross_rail: CrossRail
    num_sms: Constant
    hbm_gbs: Constant
    max_warps_per_sm: Constant
    nvlink: NvlinkConstants
    nic: NicConstants


@dataclass(frozen=True, slots=True)
class Fabric:
    """A GPU, its links and the constants of its SMs.

    Attributes:
        name: profile name, for example `"h800"`.
        cross_rail: `"spine"` where NIC i reaches NIC j of another node, else `"forbidden"`.
        sm_end: which end of the `copy_gbs` range is in force.
        capped: False where no links bind anything: `uncapped`, and `one-card`, whose ranks share a
            GPU.
    """

    name: str
    gpu: str
    cross_rail: CrossRail
    num_sms: int
    max_warps_per_sm: int
    hbm_gbs: Constant
    nvlink: NvlinkConstants
    nic: NicConstants
    sm: SmConstants
    sm_end: End = "mid"

    @property
    def capped(self) -> bool:
        """Whether the links bound anything."""
        return self.name not in (UNCAPPED, ONE_CARD)

    def copy_gbs(self, mechanism: Mechanism) -> float:
        """Return an SM's copy rate by `mechanism` in GB/s, at `sm_end` of its range."""
        constants = self.sm.ldst if mechanism == "ldst" else self.sm.bulk
        return constants.copy_gbs.at(self.sm_end)

    def at(self, sm_end: End) -> "Fabric":
        """Return this fabric with SM copy rates at one end of their range."""
        return replace(self, sm_end=sm_end)


def fabric_names() -> list[str]:
    """Return the names of all profiles, sorted."""
    return sorted(
        path.stem for path in FABRICS_DIR.glob("*.toml") if not path.stem.startswith("sm")
    )


def load_fabric(name: str, *, cross_rail: CrossRail | None = None) -> Fabric:
    """Load the profile `name`.

    Args:
        name: one of `fabric_names()`, or ONE_CARD, which is of device `cuda` only.
        cross_rail: replaces the profile's own value where given.

    Raises:
        UsageError: there is no such profile.
    """
    if name == ONE_CARD:
        uncapped = load_fabric(UNCAPPED, cross_rail=cross_rail)
        return replace(uncapped, name=ONE_CARD, gpu="one GPU, which all ranks share")
    if name not in fabric_names():
        raise UsageError(f"no fabric {name!r}; choose one of {', '.join(fabric_names())}")
    profile = msgspec.convert(_read(name), _Profile)
    return Fabric(
        name=name,
        gpu=profile.gpu,
        cross_rail=cross_rail or profile.cross_rail,
        num_sms=int(profile.num_sms.value),
        max_warps_per_sm=int(profile.max_warps_per_sm.value),
        hbm_gbs=profile.hbm_gbs,
        nvlink=profile.nvlink,
        nic=profile.nic,
        sm=msgspec.convert(_read(profile.sm_generation), SmConstants),
    )


@cache
def _read(stem: str) -> dict[str, object]:
    return tomllib.loads((FABRICS_DIR / f"{stem}.toml").read_text())
