"""The run file: field names that scripts rely on, strict types, case ids."""

import dataclasses
import json
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
from conftest import timed

from bench.cases import CaseSpec, blank_case
from bench.records.environment import RECORDED_VARIABLES, environment, machine_id, tool
from bench.records.record import Case, Run, decode_run, encode_run, run_schema
from comms.fabric import load_fabric

#: Design section 8, name by name.
CASE_FIELDS = re.findall(
    r"\w+",
    """
    case_id kernel impl variant form op device fidelity fabric nodes world_size preset num_tokens
    hidden num_experts num_topk dispatch_dtype combine_dtype routing seed num_sms status reason
    time_us samples_us skew_pct bound_own_us bound_best_us efficiency phases_us bytes gbs check sim
    """,
)
NESTED_FIELDS = {
    "bytes": ["logical", "logical_rdma", "local", "nvlink", "rdma"],
    "gbs": ["logical", "nvlink", "rdma"],
    "check": ["num_wrong", "num_checked"],
    "sim": ["events", "rows", "wall_s"],
}


def test_file_has_the_fields_scripts_rely_on(run: Run) -> None:
    case = json.loads(encode_run(run))["cases"][0]
    assert [name for name in CASE_FIELDS if name not in case] == []
    assert {name: list(case[name]) for name in NESTED_FIELDS} == NESTED_FIELDS


def test_run_survives_a_round_trip(run: Run) -> None:
    assert decode_run(encode_run(run)) == run


def test_skipped_case_has_null_times_and_a_zero_check(run: Run) -> None:
    cases = json.loads(encode_run(run))["cases"]
    skipped = next(case for case in cases if case["status"] == "skipped")
    assert skipped["time_us"] is None
    assert skipped["bytes"] is None
    assert skipped["check"] == {"num_wrong": 0, "num_checked": 0}
    assert skipped["reason"] == "no push here"


@pytest.mark.parametrize(
    ("name", "value"),
    [("time_us", "812"), ("num_sms", 8.5), ("op", "reduce"), ("check", None), ("status", "ok")],
)
def test_wrong_type_is_refused(run: Run, name: str, value: object) -> None:
    plain = json.loads(encode_run(run))
    plain["cases"][0][name] = value
    with pytest.raises(msgspec.ValidationError):
        decode_run(json.dumps(plain).encode())


def test_other_major_version_is_refused_and_newer_minor_is_read(run: Run) -> None:
    plain = json.loads(encode_run(run))
    plain["schema_version"] = "1.7.0"
    plain["cases"][0]["field_of_1_7"] = 3
    assert decode_run(json.dumps(plain).encode()).cases == run.cases
    plain["schema_version"] = "2.0.0"
    with pytest.raises(ValueError, match=r"2\.0\.0"):
        decode_run(json.dumps(plain).encode())


@pytest.mark.parametrize(
    "changes", [{"status": "error", "reason": None}, {"time_us": float("nan")}]
)
def test_contradictory_case_is_refused(run: Run, changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="must have"):
        msgspec.structs.replace(run.cases[0], **changes)


def test_schema_lists_every_field() -> None:
    definitions = run_schema()["$defs"]
    assert isinstance(definitions, dict)
    assert set(definitions["Case"]["properties"]) == set(Case.__struct_fields__)
    assert set(CASE_FIELDS) <= set(definitions["Case"]["properties"])


def test_case_id_is_a_sorted_slug_of_the_axes(specs: list[CaseSpec]) -> None:
    case_id = specs[0].case_id("dispatch")
    names = [part.partition("=")[0] for part in case_id.split(",")]
    assert names == sorted(names)
    assert set(names) == {*specs[0].axes(), "op"}
    assert "kernel=direct" in case_id
    assert not set(case_id) & set(" /\\\"'\n")


def test_case_id_tells_every_axis_apart(specs: list[CaseSpec], in_tmp: Path) -> None:
    Path("a").mkdir()
    for name in ("a/b.npy", "a_b.npy"):
        np.save(name, np.zeros((4, 8), dtype=np.int32) + np.arange(8, dtype=np.int32))
    spec = specs[0]
    work = spec.workload
    others = [
        dataclasses.replace(spec, variant="push"),
        dataclasses.replace(spec, form="cached"),
        dataclasses.replace(spec, nodes=2, ranks_per_node=4),
        dataclasses.replace(spec, nodes=2),
        dataclasses.replace(spec, num_sms=9),
        dataclasses.replace(spec, skew_us=1.5),
        dataclasses.replace(spec, fabric=load_fabric("h100")),
        dataclasses.replace(spec, fabric=load_fabric("h800", cross_rail="forbidden")),
        dataclasses.replace(spec, fabric=spec.fabric.at("low")),
        dataclasses.replace(spec, knobs=(("warps", 4),)),
        dataclasses.replace(spec, knobs=(("warps", 2),)),
        dataclasses.replace(spec, workload=dataclasses.replace(work, num_tokens=7)),
        dataclasses.replace(spec, workload=dataclasses.replace(work, routing="file:a/b.npy")),
        dataclasses.replace(spec, workload=dataclasses.replace(work, routing="file:a_b.npy")),
        dataclasses.replace(spec, workload=dataclasses.replace(work, seed=1)),
        dataclasses.replace(spec, workload=dataclasses.replace(work, masked_ratio=0.5)),
        dataclasses.replace(spec, workload=dataclasses.replace(work, prefix=None)),
        dataclasses.replace(spec, workload=dataclasses.replace(work, dispatch_dtype="bf16")),
    ]
    ids = [one.case_id("dispatch") for one in [spec, *others]] + [spec.case_id("combine")]
    assert len(set(ids)) == len(ids)


def test_blank_case_repeats_the_axes_and_the_caps(specs: list[CaseSpec]) -> None:
    spec = dataclasses.replace(specs[0], nodes=2)
    row = blank_case(spec, "pair", "error", reason="why", impl="numba", granularity="rank")
    assert {name: getattr(row, name) for name in spec.axes()} == spec.axes()
    assert row.world_size == 16
    assert (row.caps.nvlink_gbs, row.caps.rdma_gbs) == (160.0, 47.0)
    free = dataclasses.replace(spec, fabric=load_fabric("uncapped"))
    uncapped = blank_case(free, "pair", "error", reason="why", impl="numba", granularity="rank")
    assert uncapped.caps.nvlink_gbs is None


def test_shape_of_a_spec_has_its_sizes(specs: list[CaseSpec]) -> None:
    shape = dataclasses.replace(specs[0], nodes=2).shape()
    assert (shape.world_size, shape.num_sms, shape.hidden, shape.num_topk) == (16, 8, 7168, 8)


def test_environment_records_only_listed_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EPBENCH_TEST_TOKEN", "hunter2")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    recorded = environment()
    assert recorded.env["OMP_NUM_THREADS"] == "3"
    assert set(recorded.env) <= set(RECORDED_VARIABLES)
    assert b"hunter2" not in msgspec.json.encode(recorded)


def test_machine_id_follows_the_constants(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = machine_id("sim")
    assert before == machine_id("sim")
    monkeypatch.setattr("bench.records.environment.FABRICS_DIR", tmp_path)
    assert machine_id("sim") != before


def test_tool_names_the_commit_of_its_own_clone_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bench.records.environment._ROOT", tmp_path)
    assert tool().git_sha is None


def test_timed_helper_is_consistent(run: Run) -> None:
    assert timed(run.cases[0], 160.0).efficiency == 0.5
