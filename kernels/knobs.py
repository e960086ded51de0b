"""Knobs: what a protocol may be tuned by, with the value that stands where nobody turns it."""

from collections.abc import Callable
from dataclasses import dataclass

from kernels.shape import Shape

#: Warps of the largest block that a GPU launches: 1024 threads (CUDA programming guide, compute
#: capabilities).
MAX_BLOCK_WARPS = 32


@dataclass(frozen=True, slots=True)
class Knob:
    """One number that changes how fast a protocol is and never what it leaves.

    A kernel asks for a knob's value by naming a parameter after it.

    Attributes:
        name: name of the parameter, for example `chunk_rows`.
        about: one line.
        choices: values that tuning tries, in ascending order.
        default: the value where nobody gives one, or what works it out from a shape.
    """

    name: str
    about: str
    choices: tuple[int, ...]
    default: int | Callable[[Shape], int]

    def of(self, shape: Shape) -> int:
        """Return the value for a shape: the one it was given, else the default."""
        given = dict(shape.knobs).get(self.name)
        if given is not None:
            return given
        return self.default if isinstance(self.default, int) else self.default(shape)


def too_many_warps(what: str, num_warps: int, most: int = MAX_BLOCK_WARPS) -> str | None:
    """Return why a block cannot have so many warps, or None.

    Args:
        what: the knobs that make up the number, for example `push_warps + reduce_warps`.
        num_warps: warps of the block.
        most: what a block takes.
    """
    if num_warps <= most:
        return None
    return f"{what} must be at most {most}, the warps of a block, got {num_warps}"
