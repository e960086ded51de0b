"""The published rows that constants are fitted to, as they are in `data/calibration.csv`."""

import csv
from dataclasses import dataclass
from pathlib import Path

CALIBRATION = Path(__file__).parent / "data" / "calibration.csv"


@dataclass(frozen=True, slots=True)
class Row:
    """One published number and what it is about; None where the source does not say.

    Attributes:
        source: who published it.
        gpu: name of the fabric's profile.
        kernel: the name it was published under.
        num_groups: groups of experts that tokens are routed by, 0 for none.
        num_topk_groups: groups that a token may use, 0 for none.
        metric: what `value` is, with its unit.
    """

    source: str
    gpu: str
    kernel: str
    nodes: int
    ranks: int
    op: str
    num_tokens: int | None
    hidden: int | None
    num_topk: int | None
    num_experts: int | None
    num_groups: int
    num_topk_groups: int
    num_sms: int | None
    metric: str
    value: float

    @property
    def label(self) -> str:
        """A short name for messages and tables."""
        sms = f", {self.num_sms} SMs" if self.num_sms else ""
        return f"{self.gpu} {self.kernel} {self.op}, EP{self.ranks}{sms}"


def read_rows() -> tuple[Row, ...]:
    """Return every row of the file, in order."""
    with CALIBRATION.open(newline="") as file:
        return tuple(
            _row(fields) for fields in csv.DictReader(line for line in file if line[0] != "#")
        )


def _row(fields: dict[str, str]) -> Row:
    used, _, groups = fields["groups"].partition(" of ")
    return Row(
        source=fields["source"],
        gpu=fields["gpu"].lower(),
        kernel=fields["kernel"],
        nodes=int(fields["nodes"]),
        ranks=int(fields["ranks"]),
        op=fields["op"],
        num_tokens=_count(fields["tokens_per_rank"]),
        hidden=_count(fields["hidden"]),
        num_topk=_count(fields["topk"]),
        num_experts=_count(fields["experts"]),
        num_groups=int(groups or 0),
        num_topk_groups=int(used or 0),
        num_sms=_count(fields["num_sms"]),
        metric=fields["metric"],
        value=float(fields["value"]),
    )


def _count(cell: str) -> int | None:
    return int(cell) if cell else None
