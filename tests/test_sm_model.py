"""The analytic SM count, against the numbers that its source gives."""

import pytest

from bench.traffic.sm_model import expected_owners, model_sms, per_byte
from comms.fabric import load_fabric


@pytest.mark.parametrize(
    ("fabric", "nodes", "num_sms"),
    [
        ("h100", 2, 12),
        ("h100", 4, 6),
        ("b200", 1, 24),
        ("b200", 2, 12),
        ("h800", 1, 6),
        ("h800", 2, 8),
        ("h800", 4, 6),
        ("h800", 8, 4),
    ],
)
def test_counts_of_the_source(fabric: str, nodes: int, num_sms: int) -> None:
    """256 experts, top-8, nodes of 8: the README's column and what was worked out from the code."""
    assert model_sms(load_fabric(fabric), nodes, 8, 256, 8) == num_sms


def test_where_nothing_bounds_there_is_no_count() -> None:
    assert model_sms(load_fabric("uncapped"), 1, 8, 256, 8) is None
    assert model_sms(load_fabric("h800"), 1, 1, 256, 8) is None


def test_nodes_of_one_rank_have_no_nvlink() -> None:
    assert per_byte(4, 1, 256, 8).nvlink == 0
    assert model_sms(load_fabric("h800"), 4, 1, 256, 8) is not None


def test_distinct_owners() -> None:
    assert expected_owners(8, 1, 2) == pytest.approx(1)
    assert expected_owners(8, 8, 2) == pytest.approx(4)
    # Two of three experts, owners of 2 and 1: {0, 1} has one owner, the others two.
    assert expected_owners(3, 2, 2) == pytest.approx(5 / 3)


def test_what_one_hop_moves_for_a_received_byte() -> None:
    moved = per_byte(1, 4, 8, 8)
    assert (moved.read, moved.write, moved.nvlink, moved.rdma) == (0.25, 1, 0.75, 0)


def test_what_two_hops_move_for_a_received_byte() -> None:
    """Every token to all 4 ranks of both nodes."""
    moved = per_byte(2, 2, 8, 8)
    assert (moved.read, moved.write, moved.nvlink, moved.rdma) == (0.75, 1.5, 0.5, 0.25)
