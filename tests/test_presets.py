"""Presets: sizes as published, names, and what a wrong name says."""

from dataclasses import replace

import pytest

from bench.workloads.presets import PRESETS, preset
from comms.errors import UsageError


@pytest.mark.parametrize(
    ("name", "hidden", "num_experts", "num_topk", "groups", "moe_intermediate"),
    [
        ("deepseek-v3", 7168, 256, 8, (8, 4), 2048),
        ("deepseek-v3.2", 7168, 256, 8, (8, 4), 2048),
        ("deepseek-v2", 5120, 160, 6, (8, 3), 1536),
        ("kimi-k2.6", 7168, 384, 8, (1, 1), 2048),
        ("kimi-k3", 3584, 896, 16, (1, 1), 3072),
        ("qwen1.5-moe-a2.7b", 2048, 60, 4, (0, 0), 1408),
        ("gpt-oss-120b", 2880, 128, 4, (0, 0), 2880),
        ("nemotron-3-super", 1024, 512, 22, (0, 0), None),
        ("llama-4-maverick", 5120, 128, 1, (0, 0), 8192),
        ("ep-ll-test", 7168, 288, 8, (0, 0), None),
    ],
)
def test_sizes_are_the_published_ones(
    name: str,
    hidden: int,
    num_experts: int,
    num_topk: int,
    groups: tuple[int, int],
    moe_intermediate: int | None,
) -> None:
    found = preset(name)
    assert (found.hidden, found.num_experts, found.num_topk) == (hidden, num_experts, num_topk)
    assert (found.num_groups, found.num_topk_groups) == groups
    assert found.moe_intermediate == moe_intermediate
    assert found.name == name


def test_the_table_has_every_row_and_alias() -> None:
    assert len(PRESETS) == 27 + 3 + 1 + 1
    # A row's sizes, its name and remark aside, are its own.
    assert len({replace(found, name="", source="") for found in PRESETS.values()}) == 27


def test_groups_divide_experts_and_hold_the_selection() -> None:
    for found in PRESETS.values():
        if found.num_groups:
            assert found.num_experts % found.num_groups == 0, found.name
            group_size = found.num_experts // found.num_groups
            assert found.num_topk <= found.num_topk_groups * group_size, found.name


def test_numbers_from_memory_say_so() -> None:
    unsure = {name for name, found in PRESETS.items() if "memory" in found.source}
    assert unsure == {"gpt-oss-20b", "llama-4-maverick"}


def test_a_wrong_name_meets_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"'deepseek-v33'.*nearest.*deepseek-v3\b"):
        preset("deepseek-v33")
    with pytest.raises(UsageError, match="known: deepseek-v3, .*ep-ll-test"):
        preset("###")
