"""The constants that `bench.fitting.sm` fits, where they are committed, and how a search moves."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec

from bench.validation.question import v1_constants
from comms.fabric import Constant, Fabric, load_fabric


@dataclass(frozen=True, slots=True)
class Constants:
    """The fitted constants, in GB/s, bytes and microseconds."""

    copy_gbs: float
    ack_bytes: float
    fixed_us: float
    nic_gbs: float

    def fabric(self, gpu: str) -> Fabric:
        """Return a GPU's profile with these in place of its own."""
        fabric = load_fabric(gpu)
        ldst = msgspec.structs.replace(
            fabric.sm.ldst, copy_gbs=_with(fabric.sm.ldst.copy_gbs, self.copy_gbs)
        )
        acks = _with(fabric.sm.write_ack_bytes, self.ack_bytes)
        sm = msgspec.structs.replace(fabric.sm, ldst=ldst, write_ack_bytes=acks)
        payload = _with(fabric.nic.payload_gbs, self.nic_gbs)
        nic = msgspec.structs.replace(fabric.nic, payload_gbs=payload)
        return replace(fabric, sm=sm, nic=nic)


#: By how much the search moves each constant; no row tells a smaller step from the order in queues.
STEPS = Constants(copy_gbs=0.5, ack_bytes=1, fixed_us=0.5, nic_gbs=0.5)
#: Root mean square of residuals, as a ratio, that the order in queues changes by itself: of
#: constants that differ by less nobody can say which is better, and those that are committed stay.
NOISE = 0.001
#: Where the search starts: the planning values.
START = Constants(copy_gbs=35, ack_bytes=16, fixed_us=0, nic_gbs=48.5)


def committed() -> Constants:
    """Return what the profile of the H800 and `bench/validation/constants.toml` hold."""
    fabric = load_fabric("h800")
    return Constants(
        copy_gbs=fabric.sm.ldst.copy_gbs.value,
        ack_bytes=fabric.sm.write_ack_bytes.value,
        fixed_us=v1_constants().low_latency.fixed_us.value,
        nic_gbs=fabric.nic.payload_gbs.value,
    )


def descend(
    objective: Callable[[Constants], float], start: Constants, names: Sequence[str]
) -> Constants:
    """Return where no step of a constant named in `names` makes the objective less.

    A constant that gets better by a step is moved on by twice as many as long as that helps.
    """
    best, least = start, objective(start)
    moved = True
    while moved:
        moved = False
        for name in names:
            for sign in (1, -1):
                count = 1
                while (tried := _stepped(best, name, sign * count)) is not None:
                    found = objective(tried)
                    if found >= least:
                        if count == 1:
                            break
                        count = 1
                        continue
                    best, least, moved = tried, found, True
                    count *= 2
    return best


def neighbours(constants: Constants, names: Sequence[str]) -> list[Constants]:
    """Return the constants one step from these."""
    stepped = (_stepped(constants, name, sign) for name in names for sign in (1, -1))
    return [each for each in stepped if each is not None]


def _stepped(constants: Constants, name: str, count: int) -> Constants | None:
    value = getattr(constants, name) + count * getattr(STEPS, name)
    return replace(constants, **{name: value}) if value >= 0 else None


def _with(constant: Constant, value: float) -> Constant:
    return msgspec.structs.replace(constant, value=value)
