"""The NCCL model's constants are what its script fits, and a test can tell when they are not."""

from dataclasses import replace

import pytest
from click.testing import CliRunner

from bench.fitting import nccl
from bench.fitting.calibration import Point, read_points
from bench.fitting.nccl import (
    COMMITTED,
    STEP_UNIT_NS,
    Constants,
    Exchange,
    fit,
    is_fixed_point,
    table,
)
from bench.suites import LIBRARY_SMS
from comms.errors import EpbenchError
from comms.sim.state import NVL_IN, NVL_OUT
from kernels.nccl_like import constants


@pytest.fixture(scope="module")
def exchanges() -> tuple[Exchange, Exchange]:
    large, small = read_points()
    return Exchange(large), Exchange(small)


def test_points_are_the_published_ones() -> None:
    large, small = read_points()
    assert (large.published, small.published) == (315, 7.4)
    # 2**29 B in 1491.31 us, of which seven eighths go to others.
    assert large.time_us == pytest.approx(2**29 / 315e3 * 7 / 8)
    assert large.value(large.time_us) == pytest.approx(315)
    assert small.value(small.time_us) == small.time_us == 7.4


def test_exchange_sends_the_matrix() -> None:
    point = Point("few rows", 2**18, 8192, is_rate=True, published=1.0, world_size=8)
    bytes_of_ports = Exchange(point).run(Constants(0, 0)).port_bytes
    for port in (NVL_OUT, NVL_IN):
        # Beside the rows, flags and credits.
        assert (bytes_of_ports[:, port] >= 7 * 2**18).all()
        assert (bytes_of_ports[:, port] < 1.1 * 7 * 2**18).all()


def test_committed_constants_are_where_the_fit_ends(exchanges: tuple[Exchange, Exchange]) -> None:
    assert is_fixed_point(*exchanges, COMMITTED)


@pytest.mark.parametrize("change", [(1, 0), (-1, 0), (0, STEP_UNIT_NS), (0, -STEP_UNIT_NS), (0, 1)])
def test_the_fit_ends_nowhere_near_it(
    exchanges: tuple[Exchange, Exchange], change: tuple[int, int]
) -> None:
    base_ns, step_ns = COMMITTED.base_ns + change[0], COMMITTED.step_ns + change[1]
    assert not is_fixed_point(*exchanges, Constants(base_ns, step_ns))


@pytest.mark.slow
def test_committed_constants_are_the_fitted_ones(exchanges: tuple[Exchange, Exchange]) -> None:
    assert fit(*exchanges) == COMMITTED
    residuals = [line for line in table(exchanges, COMMITTED).splitlines() if line.endswith("%")]
    assert len(residuals) == 2
    assert all(abs(float(line.split()[-1].rstrip("%"))) < 1 for line in residuals)


@pytest.mark.parametrize(
    ("place", "published", "name"), [(0, 400.0, "STEP_NS"), (1, 1.0, "BASE_NS")]
)
def test_what_no_constant_can_slow_down_is_refused(place: int, published: float, name: str) -> None:
    points = list(read_points())
    points[0] = replace(points[0], pair_bytes=2**20)
    points[place] = replace(points[place], published=published)
    with pytest.raises(EpbenchError, match=f"no {name} fits"):
        fit(*(Exchange(point) for point in points))


@pytest.mark.parametrize(("found", "code"), [(COMMITTED, 0), (Constants(1, 10), 1)])
def test_check_fails_where_the_fit_finds_others(
    monkeypatch: pytest.MonkeyPatch, found: Constants, code: int
) -> None:
    monkeypatch.setattr(nccl, "fit", lambda *_: found)
    monkeypatch.setattr(nccl, "table", lambda *_: "")
    assert CliRunner().invoke(nccl.main, ["--check"]).exit_code == code
    assert CliRunner().invoke(nccl.main, []).exit_code == 0


def test_suites_run_the_library_at_its_own_sms() -> None:
    assert LIBRARY_SMS == constants.LIBRARY_SMS
