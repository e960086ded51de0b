"""Results as tidy pandas frames."""

from pathlib import Path

import msgspec
import pandas as pd

from bench.records.frame import load_frame, phases_frame, results_frame
from bench.records.record import Clocks, Run, encode_run


def test_one_row_per_case_in_order(run: Run) -> None:
    frame = results_frame([run])
    assert list(frame["case_id"]) == [case.case_id for case in run.cases]
    assert frame["run_id"].unique().tolist() == [run.run_id]


def test_cells_are_scalars_with_nested_fields_flattened(run: Run) -> None:
    frame = results_frame([run])
    row = frame.iloc[0]
    case = run.cases[0]
    assert case.bytes is not None
    assert row["bytes_nvlink"] == case.bytes.nvlink
    assert row["check_num_checked"] == 77
    assert row["caps_rdma_gbs"] == 47.0
    assert row["sim_events"] == 10
    assert row["num_samples"] == 2
    assert not [
        name
        for name in frame.columns
        if frame[name].map(lambda cell: isinstance(cell, (list, dict))).any()
    ]


def test_clocks_are_flattened(run: Run) -> None:
    clocks = Clocks(
        sm_mhz_min=1, sm_mhz_max=2, reasons=["power cap", "heat"], num_slowed=3, num_discarded=0
    )
    run.cases = [msgspec.structs.replace(run.cases[0], clocks=clocks), run.cases[1]]
    frame = results_frame([run])
    assert frame.iloc[0]["clocks_reasons"] == "power cap, heat"
    assert frame.iloc[0]["clocks_num_slowed"] == 3
    assert pd.isna(frame.iloc[1]["clocks_reasons"])


def test_absent_is_na_and_types_stay(run: Run) -> None:
    frame = results_frame([run])
    skipped = frame[frame["status"] == "skipped"]
    assert len(skipped) == 2
    assert skipped["time_us"].isna().all()
    assert skipped["bytes_nvlink"].isna().all()
    assert str(frame["time_us"].dtype) == "Float64"
    assert str(frame["num_sms"].dtype) == "Int64"
    assert str(frame["bytes_nvlink"].dtype) == "Int64"
    assert str(frame["complete"].dtype) == "boolean"


def test_no_cases_keep_columns_and_types(run: Run) -> None:
    empty = results_frame([msgspec.structs.replace(run, cases=[])])
    full = results_frame([run])
    assert len(empty) == 0
    pd.testing.assert_series_equal(empty.dtypes, full.dtypes)


def test_grouping_needs_no_preparation(run: Run) -> None:
    frame = results_frame([run])
    times = frame.groupby(["kernel", "op"])["time_us"].min()
    assert times["direct", "dispatch"] == 108.0


def test_phases_are_long(run: Run) -> None:
    frame = phases_frame([run])
    passed = [case for case in run.cases if case.status == "passed"]
    assert len(frame) == 2 * len(passed)
    assert frame.iloc[0].to_dict() == {
        "run_id": run.run_id,
        "case_id": run.cases[0].case_id,
        "phase": "notify",
        "time_us": 10.0,
    }


def test_load_frame_joins_files(run: Run, tmp_path: Path) -> None:
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path in paths:
        path.write_bytes(encode_run(run))
    assert len(load_frame(paths)) == 2 * len(run.cases)
