"""Fills the tables of `results/validation.md` from the constants and the stored predictions.

    python -m bench.validation.report [--check]

A table stands between `<!-- table: NAME -->` and `<!-- end -->`.
"""

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click
import msgspec

from bench.fitting.tried import START
from bench.validation import closed_form
from bench.validation.moved import Moved
from bench.validation.page import summary
from bench.validation.prediction import Prediction, read_predictions
from bench.validation.question import v1_constants
from comms.errors import UsageError
from comms.fabric import Constant, load_fabric

RESULTS = Path(__file__).parents[2] / "results"
PAGE = RESULTS / "validation.md"
STORED = RESULTS / "reference" / "validation"
#: The file of the published rows, and those of predictions by the table that shows them.
ROWS = STORED / "rows.json"
PREDICTED = {name: STORED / f"{name}.json" for name in ("two_hop", "low_latency", "h100_sms")}
MOVED = STORED / "moved.json"

_BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def filled(text: str) -> str:
    """Return a page with its tables made anew.

    Raises:
        UsageError: it has a table of no known name, or a file of one cannot be read.
    """

    def block(match: re.Match[str]) -> str:
        name = match[2]
        if name not in _TABLES:
            raise UsageError(f"no table {name!r}; known: {', '.join(_TABLES)}")
        return f"{match[1]}{_TABLES[name]()}\n{match[3]}"

    return _BLOCK.sub(block, text)


def _constants() -> str:
    fabric, start = load_fabric("h800"), START
    fixed = v1_constants().low_latency.fixed_us
    rows: tuple[tuple[str, str, float, Constant], ...] = (
        ("`ldst.copy_gbs`", "GB/s", start.copy_gbs, fabric.sm.ldst.copy_gbs),
        ("`write_ack_bytes`", "B", start.ack_bytes, fabric.sm.write_ack_bytes),
        ("`low_latency.fixed_us`", "us", start.fixed_us, fixed),
        ("`nic.payload_gbs`", "GB/s", start.nic_gbs, fabric.nic.payload_gbs),
    )
    return _markdown(
        ("constant", "unit", "planning", "fitted", "range", "source"),
        [
            (name, unit, f"{planned:g}", f"{one.value:g}", f"{one.low:g}..{one.high:g}", one.source)
            for name, unit, planned, one in rows
        ],
        left=(0, 5),
    )


def _closed_form() -> str:
    fitted = closed_form.committed()
    rows = [
        *((f"alpha of `{kernel}`", f"{us:.1f} us") for kernel, us in fitted.alpha_us.items()),
        *((f"NVLink of an {gpu.upper()}", f"{gbs:.1f} GB/s") for gpu, gbs in _sorted(fitted)),
        ("NIC", f"{fitted.nic_gbs:.1f} GB/s"),
        ("SM that sends", f"{fitted.lane_gbs:.1f} GB/s"),
    ]
    return _markdown(("parameter", "value"), rows, left=(0,))


def _sorted(fitted: closed_form.Parameters) -> list[tuple[str, float]]:
    return sorted(fitted.nvlink_gbs.items())


def _rows() -> str:
    cases = read_predictions(ROWS).cases
    cells = []
    for case in cases:
        row = case.published
        assert row is not None, "the file of published rows has another case"
        is_nearer = abs(row.residual_pct) < abs(row.closed_form_residual_pct)
        cells.append(
            (
                *_named(case),
                f"{row.value:g} {_UNITS[row.metric]}",
                f"{row.time_us:.1f}",
                f"{case.time_us:.1f}",
                f"{row.residual_pct:+.1f} %",
                f"{case.closed_form_us:.1f}",
                f"{row.closed_form_residual_pct:+.1f} %",
                "simulator" if is_nearer else "closed form",
            )
        )
    table = _markdown(
        (
            *_NAMED,
            *("published", "that is, us", "simulated us", "residual"),
            *("closed form us", "residual", "nearer"),
        ),
        cells,
        left=(0,),
    )
    said = summary([case.published for case in cases if case.published is not None])
    return "\n".join([table, "", *said])


def _predicted(path: Path) -> Callable[[], str]:
    def table() -> str:
        return _markdown(
            (
                *_NAMED,
                *("simulated us", "closed form us", "of bound", "logical NVLink GB/s"),
                *("logical RDMA GB/s", "NVLink GB/s", "NIC GB/s"),
            ),
            [
                (
                    *_named(case),
                    f"{case.time_us:.1f}",
                    f"{case.closed_form_us:.1f}",
                    "-" if case.efficiency is None else f"{100 * case.efficiency:.0f} %",
                    f"{case.logical_nvlink_gbs:.1f}",
                    "-" if case.logical_rdma_gbs is None else f"{case.logical_rdma_gbs:.1f}",
                    f"{case.nvlink_gbs:.1f}",
                    f"{case.rdma_gbs:.1f}" if case.nodes > 1 else "-",
                )
                for case in read_predictions(path).cases
            ],
            left=(0,),
        )

    return table


def _moved() -> str:
    rows = msgspec.json.decode(MOVED.read_bytes(), type=list[Moved])
    return _markdown(
        ("kernel", "EP", "SMs", "before us", "after us", "moved", "of own bound, before", "after"),
        [
            (
                f"`{row.kernel}`",
                str(row.world_size),
                str(row.num_sms),
                f"{row.before_us:.0f}",
                f"{row.after_us:.0f}",
                f"{100 * (row.after_us / row.before_us - 1):+.1f} %",
                _percent(row.efficiency_before),
                _percent(row.efficiency_after),
            )
            for row in rows
        ],
        left=(0,),
    )


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f} %"


_UNITS = {
    "time_us": "us",
    "logical_nvlink_gbs": "GB/s over NVLink",
    "logical_rdma_gbs": "GB/s over NICs",
}
_NAMED = ("kernel", "GPU", "op", "EP", "tokens", "SMs")


def _named(case: Prediction) -> tuple[str, ...]:
    return (
        f"`{case.kernel}`",
        case.gpu.upper(),
        case.op,
        str(case.world_size),
        str(case.num_tokens),
        str(case.num_sms),
    )


def _markdown(
    names: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = ()
) -> str:
    marks = [":---" if index in left else "---:" for index in range(len(names))]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (names, marks, *rows))


_TABLES: Mapping[str, Callable[[], str]] = {
    "constants": _constants,
    "closed_form": _closed_form,
    "rows": _rows,
    **{name: _predicted(path) for name, path in PREDICTED.items()},
    "moved": _moved,
}


@click.command()
@click.option("--check", is_flag=True, help="Write nothing; fail where the page has other tables.")
def main(check: bool) -> None:
    """Make the tables of results/validation.md anew."""
    text = PAGE.read_text()
    try:
        new = filled(text)
    except UsageError as error:
        click.echo(f"bench.validation.report: {error}", err=True)
        sys.exit(error.exit_code)
    if not check:
        PAGE.write_text(new)
    elif new != text:
        click.echo(f"bench.validation.report: {PAGE.name} has other tables", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
