"""How far predictions have moved between two sets of run files.

    python -m bench.validation.moved OUT --before FILE... --after FILE...

Pairs of dispatch and combine at the middle of the SM's copy rate, by what was run.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import click
import msgspec

from bench.records.files import write_atomic
from bench.records.record import Case, identity
from bench.records.store import read_run


class Moved(msgspec.Struct, frozen=True):
    """A case before and after.

    Attributes:
        kernel: with its variant.
        efficiency_before: of the kernel's own bound, which moves too.
    """

    fabric: str
    kernel: str
    world_size: int
    num_sms: int
    before_us: float
    after_us: float
    efficiency_before: float | None
    efficiency_after: float | None


def moved(before: Iterable[Case], after: Iterable[Case]) -> list[Moved]:
    """Return the pairs that both have, in the order of `before`."""
    now = {identity(case): case for case in after if _counts(case)}
    found = []
    for case in before:
        other = now.get(identity(case))
        if _counts(case) and other is not None:
            assert case.time_us is not None
            assert other.time_us is not None
            found.append(
                Moved(
                    fabric=case.fabric,
                    kernel=f"{case.kernel}/{case.variant}",
                    world_size=case.world_size,
                    num_sms=case.num_sms,
                    before_us=case.time_us,
                    after_us=other.time_us,
                    efficiency_before=case.efficiency,
                    efficiency_after=other.efficiency,
                )
            )
    return found


def _counts(case: Case) -> bool:
    return case.op == "pair" and case.status == "passed" and case.sm_copy == "mid"


@click.command()
@click.argument("out", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--before", type=click.Path(path_type=Path), multiple=True, required=True)
@click.option("--after", type=click.Path(path_type=Path), multiple=True, required=True)
def main(out: Path, before: Sequence[Path], after: Sequence[Path]) -> None:
    """Write how far predictions have moved."""
    rows = moved(
        [case for path in before for case in read_run(path).cases],
        [case for path in after for case in read_run(path).cases],
    )
    write_atomic(out, msgspec.json.format(msgspec.json.encode(rows), indent=1) + b"\n")
    for row in rows:
        click.echo(f"{row.kernel} EP{row.world_size}: {row.before_us:.0f} to {row.after_us:.0f} us")


if __name__ == "__main__":
    main()
