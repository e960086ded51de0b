"""Knobs: what a protocol may be tuned by, with the value that stands where nobody turns it."""

from collections.abc import Callable
from dataclasses import dataclass

from kernels.shape import Shape


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
