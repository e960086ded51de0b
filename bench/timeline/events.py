"""The trace file: Trace Event JSON, which ui.perfetto.dev and chrome://tracing open.

Each rank is a process with its launches, ports and what of them is used, and each of its SMs one of
its own after it: a thread for each warp, and below it threads for the transfers that it has under
way, as many as overlap. Times are those of the run, in microseconds.
"""

import gzip
import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.timeline.busy import Busy
from bench.timeline.passing import passing
from bench.timeline.summary import PIPE_NAMES, PORT_NAMES, port_busy
from bench.timeline.warps import short_place
from comms.errors import UsageError
from comms.sim import state
from comms.sim.timeline import Records, Timeline

#: Points of a counter.
_NUM_BINS = 400
#: Process numbers of a rank: its own, and those of its SMs after it.
_RANK_STRIDE = 1000
#: Thread numbers of a warp: its own, and those of its transfers after it.
_WARP_STRIDE = 1000
_PS_PER_NS, _PS_PER_US = 1000, 10**6
_LINKS = {state.NVL_OUT: "NVLink", state.NIC_OUT: "NIC", state.HBM: "HBM"}
_KINDS = {
    state.ROW: "rows",
    state.TOPK: "ids and weights",
    state.STORE: "store",
    state.ADD: "add",
    state.FETCH_ADD: "fetch_add",
    state.READ_DATA: "read",
    state.READ_REQUEST: "read request",
    state.PUT: "put",
    state.ROW_LATE: "bulk rows",
    state.SIGNAL: "signal",
}

_WORDS = (state.STORE, state.ADD, state.FETCH_ADD, state.SIGNAL)
_SPAN = ("begin", "end")

Event = dict[str, Any]


def write_trace(path: Path, timeline: Timeline) -> None:
    """Write the trace of a run, compressed where the name ends with `.gz`.

    Raises:
        UsageError: the file cannot be written.
    """
    try:
        raw = path.open("wb")
        # A name or a date inside would make two files of one run differ.
        packed = gzip.GzipFile("", "wb", 6, raw, mtime=0) if path.suffix == ".gz" else raw
        with raw, packed:
            packed.write(b'{"displayTimeUnit": "ns", "traceEvents": [\n')
            for index, event in enumerate(trace_events(timeline)):
                packed.write(b",\n" if index else b"")
                packed.write(json.dumps(event, separators=(",", ":")).encode())
            packed.write(b"\n]}\n")
    except OSError as error:
        raise UsageError(f"cannot write the trace to {path}: {error.strerror}") from error


def trace_events(timeline: Timeline) -> Iterator[Event]:
    """Yield the events of a run."""
    yield from _names(timeline)
    yield from _launches(timeline)
    yield from _ports(timeline)
    yield from _pipes(timeline)
    yield from _stages(timeline)
    yield from _waits(timeline)
    yield from _passes(timeline)
    yield from _transfers(timeline)


def _slice(pid: int, tid: int, name: str, begin: int, end: int, **args: object) -> Event:
    # Cut to whole nanoseconds, at both ends alike, slices keep lying inside each other.
    first, last = begin // _PS_PER_NS, end // _PS_PER_NS
    event: Event = {"ph": "X", "pid": pid, "tid": tid, "name": name}
    event |= {"ts": first / 1000, "dur": (last - first) / 1000}
    return event | ({"args": args} if args else {})


def _rank(rank: int) -> int:
    return rank * _RANK_STRIDE + 1


def _sm(rank: int, sm: int) -> int:
    return _rank(rank) + 1 + sm


def _warp_name(warp: int) -> str:
    return f"warp {warp}"


def _named(pid: int, name: str, tid: int | None = None) -> Iterator[Event]:
    what = "process" if tid is None else "thread"
    where = {"pid": pid} if tid is None else {"pid": pid, "tid": tid}
    yield {"ph": "M", **where, "name": f"{what}_name", "args": {"name": name}}
    order = pid if tid is None else tid
    yield {"ph": "M", **where, "name": f"{what}_sort_index", "args": {"sort_index": order}}


def _names(timeline: Timeline) -> Iterator[Event]:
    num_sms = max((launch.num_blocks for launch in timeline.launches), default=0)
    num_warps = max((launch.num_warps for launch in timeline.launches), default=0)
    for rank in timeline.ranks:
        yield from _named(_rank(rank), f"rank {rank}")
        yield from _named(_rank(rank), "launches", 1)
        for port, name in PORT_NAMES.items():
            yield from _named(_rank(rank), name, 2 + port)
        for sm in range(num_sms):
            yield from _named(_sm(rank, sm), f"rank {rank} sm {sm}")
            for warp in range(num_warps):
                pid, tid = _thread((rank, sm, warp))
                yield from _named(pid, _warp_name(warp), tid)


def _launches(timeline: Timeline) -> Iterator[Event]:
    for launch, one in enumerate(timeline.launches):
        for rank in timeline.ranks:
            begin, end = int(timeline.start_ps[launch, rank]), int(timeline.end_ps[launch, rank])
            if begin >= 0:
                yield _slice(_rank(rank), 1, one.name, begin, end)


def _ports(timeline: Timeline) -> Iterator[Event]:
    for (rank, port), busy in port_busy(timeline).items():
        one = busy.stretches()
        for begin, end, num_bytes in zip(
            one.begin.tolist(), one.end.tolist(), one.num_bytes.tolist(), strict=True
        ):
            yield _slice(_rank(rank), 2 + port, "busy", begin, end, bytes=num_bytes)
        yield from _counter(timeline, _rank(rank), PORT_NAMES[port], [busy])


def _pipes(timeline: Timeline) -> Iterator[Event]:
    num_sms = max((launch.num_blocks for launch in timeline.launches), default=0)
    for rank in timeline.ranks:
        for pipe, name in PIPE_NAMES.items():
            uses = [Busy(*timeline.pipe_use(rank, sm, pipe)) for sm in range(num_sms)]
            if any(len(busy.spans.begin) for busy in uses):
                yield from _counter(timeline, _rank(rank), name, uses)


def _counter(timeline: Timeline, pid: int, name: str, uses: Sequence[Busy]) -> Iterator[Event]:
    """Yield the mean of what several things are used, in percent of the time of each bin."""
    last = int(timeline.end_ps.max())
    edges = np.linspace(0, last, _NUM_BINS + 1).astype(np.int64)
    busy = np.mean([np.diff(use.until(edges)) for use in uses], axis=0)
    percents = 100 * busy / np.maximum(np.diff(edges), 1)
    for edge, percent in zip(edges.tolist(), [*percents.round(2).tolist(), 0.0], strict=True):
        counter: Event = {"ph": "C", "pid": pid, "name": f"{name}, % busy"}
        yield counter | {"ts": edge // _PS_PER_NS / 1000, "args": {"%": percent}}


def _stages(timeline: Timeline) -> Iterator[Event]:
    for *warp, launch, code, begin, end in _rows(timeline.stages, "launch", "code", *_SPAN):
        yield _slice(*_thread(warp), timeline.stage_name(launch, code), begin, end)


def _waits(timeline: Timeline) -> Iterator[Event]:
    waits = timeline.waits
    names, places = timeline.wait_names(waits).tolist(), timeline.wait_places(waits).tolist()
    short = {place: short_place(place) for place in set(places)}
    rows = _rows(waits, "code", "seen", "value", *_SPAN)
    for name, place, row in zip(names, places, rows, strict=True):
        *warp, code, seen, value, begin, end = row
        args: Event = {"line": short[place]} if place else {}
        title = f"wait {name}"
        if code == state.WAIT_GE:
            args |= {"seen": seen, "wanted": value}
        elif code == state.WAIT_ANY:
            args |= {"seen": seen, "words": value}
        else:
            title = f"wait for {name}"
        yield _slice(*_thread(warp), title, begin, end, **args)


def _passes(timeline: Timeline) -> Iterator[Event]:
    for *warp, num_bytes, begin, end in _rows(passing(timeline), "num_bytes", *_SPAN):
        yield _slice(*_thread(warp), "rows pass the SM", begin, end, bytes=num_bytes)


def _transfers(timeline: Timeline) -> Iterator[Event]:
    """Yield each transfer from its issue to its arrival, in the first thread that is free."""
    hops = timeline.hops
    hops = hops[np.isin(hops["rank"], timeline.ranks) & (hops["code"] != state.READ_REQUEST)]
    hops = hops[np.argsort(hops["issued"], kind="stable")]
    free_at: dict[tuple[int, int], list[int]] = defaultdict(list)
    fields = ("code", "port", "source", "peer", "offset", "num_bytes", "begin", "issued", "end")
    for *warp, code, port, source, peer, offset, num_bytes, left, begin, end in _rows(
        hops, *fields
    ):
        pid, tid = _thread(warp)
        lanes = free_at[pid, tid]
        lane = next((index for index, free in enumerate(lanes) if free <= begin), len(lanes))
        if lane == len(lanes):
            lanes.append(0)
            number = f" {lane + 1}" if lane else ""
            yield from _named(pid, f"{_warp_name(warp[-1])} transfers{number}", tid + 1 + lane)
        lanes[lane] = end
        args: Event = {"link": _LINKS[port], "bytes": num_bytes, "left_us": left / _PS_PER_US}
        if code in _WORDS:
            args["flag"] = timeline.layout.describe(offset)
        where = f"from rank {source}" if code == state.READ_DATA else f"to rank {peer}"
        yield _slice(pid, tid + 1 + lane, f"{_KINDS[code]} {where}", begin, end, **args)


def _rows(records: Records, *fields: str) -> Iterator[tuple[int, ...]]:
    """Yield rank, sm and warp of each record, then the fields."""
    columns = (records[name].tolist() for name in ("rank", "sm", "warp", *fields))
    return zip(*columns, strict=True)


def _thread(warp: Sequence[int]) -> tuple[int, int]:
    """Return process and thread of a warp, given by rank, sm and warp."""
    rank, sm, index = warp
    return _sm(rank, sm), (index + 1) * _WARP_STRIDE
