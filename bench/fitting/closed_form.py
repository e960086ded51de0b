"""Fits the closed form beside the simulator's predictions to the same published rows.

    python -m bench.fitting.closed_form [--check | --write]

Seven parameters on twelve rows of `bench/fitting/data/calibration.csv`, by the same objective as
`bench.fitting.sm`: the sum of squares of log(time / published time). Gauss-Newton steps from no
fixed times, the NIC's cap, the SM's copy rate and three quarters of NVLink's caps; a fixed time
that would become negative is 0. A step takes the port that was a row's slowest before it. Nothing
is simulated.
"""

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import click
import numpy as np

from bench.validation.calibration import Point, read_points
from bench.validation.closed_form import PARAMETERS, Parameters, committed, count
from bench.validation.question import WAYS
from bench.validation.traffic import Traffic
from comms.errors import EpbenchError
from comms.fabric import load_fabric

_MOST_STEPS = 100


@dataclass(frozen=True, slots=True, eq=False)
class Counted:
    """A published row with the bytes of its operation."""

    point: Point
    traffic: Traffic

    def log_ratio(self, tried: Parameters) -> float:
        """Return log(time / published time)."""
        time_us = tried.time_us(self.point.question, self.traffic)
        return math.log(time_us / self.point.published_us(self.traffic))


def count_points() -> list[Counted]:
    """Return the rows about V1's kernels with their bytes."""
    return [Counted(point, count(point.question, point.op)) for point in read_points()]


def fit(rows: Sequence[Counted]) -> Parameters:
    """Return the parameters at which no step makes the objective less, to four digits.

    Raises:
        EpbenchError: the steps do not settle.
    """
    gpus = sorted({row.point.question.gpu for row in rows})
    fabrics = [load_fabric(gpu) for gpu in gpus]
    found = Parameters(
        dict.fromkeys(WAYS, 0.0),
        {
            gpu: 0.75 * fabric.nvlink.payload_gbs.value
            for gpu, fabric in zip(gpus, fabrics, strict=True)
        },
        fabrics[0].nic.payload_gbs.value,
        fabrics[0].sm.ldst.copy_gbs.value,
    )
    for _ in range(_MOST_STEPS):
        before, found = found, _step(rows, gpus, found)
        if _rounded(found) == _rounded(before):
            return _rounded(found)
    raise EpbenchError(f"the closed form does not settle in {_MOST_STEPS} steps")


def _step(rows: Sequence[Counted], gpus: Sequence[str], tried: Parameters) -> Parameters:
    """Return where the residuals, taken to be linear, are least."""
    ports = [*gpus, "nic", "lane"]
    names = [*WAYS, *ports]
    rates = {**tried.nvlink_gbs, "nic": tried.nic_gbs, "lane": tried.lane_gbs}
    values = np.array([*tried.alpha_us.values(), *(1 / rates[port] for port in ports)])
    slopes, residuals = np.zeros((len(rows), len(names))), np.zeros(len(rows))
    for index, row in enumerate(rows):
        question = row.point.question
        times_us = tried.port_us(question, row.traffic)
        slowest = max(times_us, key=lambda port: times_us[port])
        time_us = tried.time_us(question, row.traffic)
        slopes[index, names.index(question.kernel)] = 1 / time_us
        slopes[index, names.index(slowest)] = times_us[slowest] * rates[slowest] / time_us
        residuals[index] = row.log_ratio(tried)
    # A fixed time that is 0 and would sink stays.
    free = np.ones(len(names), np.bool_)
    while True:
        step = np.zeros(len(names))
        step[free] = np.linalg.lstsq(slopes[:, free], -residuals, rcond=None)[0]
        sinking = free & (values + step < 0)
        if not sinking.any():
            break
        residuals = residuals - slopes[:, sinking] @ values[sinking]
        values[sinking] = 0.0
        free &= ~sinking
    moved = dict(zip(names, (values + step).tolist(), strict=True))
    return Parameters(
        {kernel: moved[kernel] for kernel in WAYS},
        {gpu: 1 / moved[gpu] for gpu in gpus},
        1 / moved["nic"],
        1 / moved["lane"],
    )


def _rounded(parameters: Parameters) -> Parameters:
    def digits(value: float) -> float:
        return float(f"{value:.4g}")

    return Parameters(
        {kernel: digits(value) for kernel, value in parameters.alpha_us.items()},
        {gpu: digits(value) for gpu, value in parameters.nvlink_gbs.items()},
        digits(parameters.nic_gbs),
        digits(parameters.lane_gbs),
    )


def toml(fitted: Parameters) -> str:
    """Return the file that `committed` reads."""
    kernels = [f"{kernel} = {value:g}" for kernel, value in fitted.alpha_us.items()]
    gpus = [f"{gpu} = {value:g}" for gpu, value in fitted.nvlink_gbs.items()]
    return "\n".join(
        [
            "# Written by `python -m bench.fitting.closed_form --write`.",
            f"nic_gbs = {fitted.nic_gbs:g}",
            f"lane_gbs = {fitted.lane_gbs:g}",
            "",
            "[alpha_us]",
            *kernels,
            "",
            "[nvlink_gbs]",
            *gpus,
            "",
        ]
    )


@click.command()
@click.option("--check", is_flag=True, help="Fail where the committed parameters are others.")
@click.option("--write", is_flag=True, help="Commit the parameters to their file.")
def main(check: bool, write: bool) -> None:
    """Fit the closed form's seven parameters to the twelve published rows about V1's kernels."""
    rows = count_points()
    fitted = fit(rows)
    for row in rows:
        residual = 100 * (math.exp(row.log_ratio(fitted)) - 1)
        click.echo(f"{row.point.row.label:52}{residual:+9.1f}%")
    click.echo(toml(fitted))
    if write:
        PARAMETERS.write_text(toml(fitted))
    elif check and fitted != committed():
        click.echo(f"bench.fitting.closed_form: committed are {committed()}", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
