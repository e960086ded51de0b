"""Bounds in microseconds against arithmetic by hand."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest

from bench.traffic.bounds import PortBytes, bound_us
from comms.fabric import load_fabric

H800 = load_fabric("h800")


def _ports(**num_bytes: list[int]) -> PortBytes:
    zero = np.zeros(2, np.int64)
    fields = {name: np.array(num_bytes.get(name, zero), np.int64) for name in
              ("nvlink_out", "nvlink_in", "nic_out", "nic_in")}  # fmt: skip
    return PortBytes(**fields)


@pytest.mark.parametrize("port", ["nvlink_out", "nvlink_in"])
def test_bound_of_nvlink(port: str) -> None:
    # 160 GB/s is 6.25 ps a byte, rounded up; the latency is 0.75 us.
    assert bound_us(_ports(**{port: [1, 0]}), H800) == pytest.approx(0.750007, abs=1e-9)
    assert bound_us(_ports(**{port: [5, 16_000_000]}), H800) == pytest.approx(100.75, abs=1e-9)


@pytest.mark.parametrize("port", ["nic_out", "nic_in"])
def test_bound_of_the_nic(port: str) -> None:
    # 47 GB/s, 2.8 us.
    assert bound_us(_ports(**{port: [47_000, 3]}), H800) == pytest.approx(3.8, abs=1e-9)
    assert bound_us(_ports(**{port: [0, 47_001]}), H800) == pytest.approx(3.800022, abs=1e-9)


def test_the_slower_link_binds_with_its_latency() -> None:
    both = _ports(nvlink_out=[16_000_000, 0], nic_in=[47_000, 0])
    assert bound_us(both, H800) == pytest.approx(100.75, abs=1e-9)
    # NVLink's transfer takes longer, the NIC's transfer and latency together do.
    close = _ports(nvlink_out=[320_000, 0], nic_in=[47_000, 0])
    assert bound_us(close, H800) == pytest.approx(3.8, abs=1e-9)


def test_nothing_to_move_takes_no_time() -> None:
    assert bound_us(_ports(), H800) == 0.0


def test_bounds_are_exact_past_64_bits() -> None:
    most = 2**62
    expected = -(-most * 10**6 // 160_000) + 750_000
    assert bound_us(_ports(nvlink_in=[most, 0]), H800) == expected / 10**6


def test_a_cap_that_is_no_whole_number_is_used_in_mb_per_s() -> None:
    odd = msgspec.structs.replace(
        H800.nvlink, payload_gbs=msgspec.structs.replace(H800.nvlink.payload_gbs, value=0.3)
    )
    assert bound_us(_ports(nvlink_out=[300, 0]), replace(H800, nvlink=odd)) == pytest.approx(1.75)


def test_ports_add() -> None:
    one, two = _ports(nvlink_out=[16_000_000, 0]), _ports(nic_in=[0, 47_000])
    total = one + two
    assert (total.nvlink_out.tolist(), total.nic_in.tolist()) == ([16_000_000, 0], [0, 47_000])
    assert not total.nvlink_in.any()
    assert not total.nic_out.any()
