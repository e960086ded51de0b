"""The published points about NCCL, as exchanges that the simulator can run."""

from dataclasses import dataclass

from bench.fitting.published import read_rows


@dataclass(frozen=True, slots=True)
class Point:
    """A row of the calibration: a uniform all-to-all and what was published about it.

    Attributes:
        metric: the row's name in the file.
        pair_bytes: what each rank sends to each, itself included.
        hidden: BF16 elements of a row of the model's message.
        is_rate: whether `published` is busbw in GB/s, else it is a time in us.
    """

    metric: str
    pair_bytes: int
    hidden: int
    is_rate: bool
    published: float
    world_size: int

    def value(self, time_us: float) -> float:
        """Return the published quantity of a time."""
        if not self.is_rate:
            return time_us
        peers = self.world_size - 1
        return self.pair_bytes * peers / (1000 * time_us)

    @property
    def time_us(self) -> float:
        """The published time; a rate's inverse is the same formula."""
        return self.value(self.published)


#: What the file's metrics mean: 2**29 B from each of 8 ranks in rows of half a chunk; one row of
#: 128 B, where the time is all latency. Each with whether it is a rate.
_EXCHANGES = {
    "busbw_gbs at 536 MB per rank": (2**26, 8192, True),
    "floor_us small messages": (128, 64, False),
}


def read_points() -> tuple[Point, Point]:
    """Return the rate of large messages and the floor of small ones, in this order."""
    found = {row.metric: row for row in read_rows() if row.kernel == "ncclAlltoAll"}
    large, small = (
        Point(
            metric=metric,
            pair_bytes=pair_bytes,
            hidden=hidden,
            is_rate=is_rate,
            published=found[metric].value,
            world_size=found[metric].ranks,
        )
        for metric, (pair_bytes, hidden, is_rate) in _EXCHANGES.items()
    )
    return large, small
