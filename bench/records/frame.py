"""Results as tidy pandas frames: one row per case, or per phase of a case."""

from collections.abc import Iterable
from pathlib import Path

import msgspec
import pandas as pd

from bench.records.record import Case, Run
from bench.records.store import read_run

_RUN_COLUMNS = ("run_id", "machine_id", "start_time", "complete")
_NESTED = ("caps", "bytes", "gbs", "check", "sim", "clocks", "source")
_LISTS = ("samples_us", "phases_us", "rank_us", "rank_timer_us", "memcpy_samples_us")


def load_frame(paths: Iterable[Path]) -> pd.DataFrame:
    """Return the cases of run files, see `results_frame`.

    Raises:
        UsageError: a file cannot be read or is not a run file.
    """
    return results_frame(read_run(path) for path in paths)


def results_frame(runs: Iterable[Run]) -> pd.DataFrame:
    """Return one row per case of the runs.

    The columns are the fields of `bench.records.record.Case`; nested ones are flattened
    (`bytes_nvlink`, `gbs_rdma`, `check_num_wrong`, `caps_nvlink_gbs`, `clocks_sm_mhz_min`,
    `source_path`), `knobs` and
    `turned` become text (`chunk_rows=1 push_warps=8`), `samples_us` becomes `num_samples` and
    `phases_us` is left to `phases_frame`. The run's `run_id`, `machine_id`, `start_time` and
    `complete` come first. Absent values are NA. Columns are there with their types even where no
    run has a case.
    """
    records = [
        {**{name: getattr(run, name) for name in _RUN_COLUMNS}, **_flat(case)}
        for run in runs
        for case in run.cases
    ]
    types = _column_types()
    return pd.DataFrame(records, columns=list(types)).astype(types)


def phases_frame(runs: Iterable[Run]) -> pd.DataFrame:
    """Return one row per phase: `run_id`, `case_id`, `phase`, `time_us`."""
    records = [
        (run.run_id, case.case_id, phase, time_us)
        for run in runs
        for case in run.cases
        for phase, time_us in case.phases_us.items()
    ]
    columns = ["run_id", "case_id", "phase", "time_us"]
    return pd.DataFrame(records, columns=columns).astype({"time_us": "Float64"})


def _flat(case: Case) -> dict[str, object]:
    row: dict[str, object] = {"num_samples": len(case.samples_us)}
    for field in msgspec.structs.fields(case):
        value = getattr(case, field.name)
        if field.name in _NESTED:
            row |= {f"{field.name}_{key}": item for key, item in _items(value)}
        elif field.name == "knobs":
            row["knobs"] = " ".join(f"{name}={number}" for name, number in case.knobs.items())
        elif field.name == "turned":
            row["turned"] = " ".join(f"{name}={case.knobs[name]}" for name in case.turned)
        elif field.name not in _LISTS:
            row[field.name] = value
    return row


def _items(value: object) -> list[tuple[str, object]]:
    if not isinstance(value, msgspec.Struct):
        return []
    pairs = [(field.name, getattr(value, field.name)) for field in msgspec.structs.fields(value)]
    return [(name, ", ".join(item) if isinstance(item, list) else item) for name, item in pairs]


def _column_types() -> dict[str, str]:
    types = {
        "run_id": "string",
        "machine_id": "string",
        "start_time": "string",
        "complete": "boolean",
    }
    for field in msgspec.structs.fields(Case):
        if field.name in _NESTED:
            nested = _struct_of(field.type)
            types |= {
                f"{field.name}_{f.name}": _dtype(f.type) for f in msgspec.structs.fields(nested)
            }
        elif field.name == "samples_us":
            types["num_samples"] = "Int64"
        elif field.name in ("knobs", "turned"):
            types[field.name] = "string"
        elif field.name not in _LISTS:
            types[field.name] = _dtype(field.type)
    return types


def _struct_of(annotation: object) -> type[msgspec.Struct]:
    options = [annotation, *getattr(annotation, "__args__", ())]
    return next(one for one in options if isinstance(one, type) and issubclass(one, msgspec.Struct))


def _dtype(annotation: object) -> str:
    options = getattr(annotation, "__args__", (annotation,))
    if float in options:
        return "Float64"
    return "Int64" if int in options else "string"
