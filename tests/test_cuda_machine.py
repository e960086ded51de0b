"""What kernels are told and what they report: as the C++ headers have it, and in words."""

import re
from pathlib import Path

import pytest

from comms.cuda import machine
from comms.cuda.machine import ABORTED, NO_FLAG, TIMED_OUT, Machine, Report, describe, machine_words
from comms.memory import Layout
from comms.waits import place_of
from kernels.direct import PROTOCOLS
from kernels.isa.bind import name_files
from kernels.isa.cuda_kernel import entry_source
from kernels.protocol import KernelLaunch

CUH = Path(machine.__file__).parent.parent.parent / "kernels/isa/cuh"
LAYOUT = Layout({"flags": 64, "meet": 16})


def _fields(name: str) -> list[str]:
    """Return the int64 fields of a struct of `machine.cuh`, in order."""
    text = (CUH / "machine.cuh").read_text()
    body = re.search(rf"struct (?:alignas\(\d+\) )?{name} {{(.*?)\n}};", text, re.DOTALL)
    assert body
    lines = [line.partition("//")[0] for line in body[1].splitlines()]
    declared = [re.fullmatch(r"\s*i64 (.*);\s*", line) for line in lines if line.strip()]
    assert all(declared)
    return [name.strip() for one in declared if one for name in one[1].split(",")]


def _constant(name: str) -> int:
    text = "".join(path.read_text() for path in sorted(CUH.glob("*.cuh")))
    found = re.search(rf"constexpr (?:int|i32|i64) {name} = (-?\d+);", text)
    assert found
    return int(found[1])


def test_structs_are_those_of_the_header() -> None:
    assert _fields("Machine") == ["bases[MAX_RANKS]", *Machine._fields]
    assert _fields("Report") == list(Report._fields)
    found = {name: _constant(name) for name in ("MAX_RANKS", "TIMED_OUT", "ABORTED", "NO_FLAG")}
    assert found == {
        "MAX_RANKS": machine.MAX_RANKS,
        "TIMED_OUT": TIMED_OUT,
        "ABORTED": ABORTED,
        "NO_FLAG": NO_FLAG,
    }


def test_words_begin_with_the_bases_of_all_ranks() -> None:
    words = machine_words([4096, 8192], Machine(0, 2, 2, 24, 10**9, 77))
    assert words[:3].tolist() == [4096, 8192, 0]
    assert words[machine.MAX_RANKS :].tolist() == [0, 2, 2, 24, 10**9, 77]
    with pytest.raises(AssertionError):
        machine_words([4096], Machine(0, 2, 2, 24, 10**9, 77))


def test_an_entry_takes_its_parameters_in_the_order_of_their_fields() -> None:
    for protocol in PROTOCOLS:
        for launch in protocol.launches("dispatch", "fresh"):
            assert isinstance(launch, KernelLaunch)
            source = entry_source(launch, 4, frozenset(), is_virtual=True)
            taken = re.search(r"epbench_\w+\((.*?)\) \{", source, re.DOTALL)
            assert taken
            names = [part.split()[-1] for part in taken[1].split(",")]
            assert names == ["stride", "num_tokens_addr", *launch.params._fields]


def _line() -> tuple[int, str]:
    """Return a place in a kernel, and its words."""
    from comms import waits

    (launch,) = PROTOCOLS[0].launches("dispatch", "fresh")[:1]
    assert isinstance(launch, KernelLaunch)
    name_files(launch.kernel)
    tag = waits.name_file(launch.kernel.__module__, launch.kernel.__code__.co_filename)
    return place_of(tag, 12), f"{launch.kernel.__code__.co_filename}:12"


def test_a_report_names_flag_line_and_what_was_seen() -> None:
    place, words = _line()
    told = describe(Report(TIMED_OUT, 3, 1, 2, 24, 5, 6, place), LAYOUT, "meet", 2.0)
    assert told.is_timeout
    assert told.sentence == "no end: a wait reached its limit of 2 s"
    assert told.waits == [("rank 3 sm 1 warp 2", f"{words} waits for flags[3] >= 6, sees 5")]


def test_files_of_helpers_are_named_without_binding() -> None:
    from comms import waits
    from kernels import exchange

    for protocol in PROTOCOLS:
        for launch in protocol.launches("dispatch", "fresh"):
            assert isinstance(launch, KernelLaunch)
            name_files(launch.kernel)
    place = place_of(waits.name_file(exchange.__name__, ""), 7)
    name_files(exchange.signal)
    assert waits.describe_place(place) == f"{exchange.__file__}:7"


def test_reports_of_waits_that_have_no_flag() -> None:
    place, words = _line()
    told = describe(Report(TIMED_OUT, 0, 0, 0, NO_FLAG, 1, 2, place), LAYOUT, "meet", 2.0)
    assert told.waits[0][1] == f"{words} waits for other warps of its block, or for a copy"
    offset = LAYOUT["meet"].offset
    told = describe(Report(TIMED_OUT, 0, 0, 0, offset, 1, 4, 0), LAYOUT, "meet", 2.0)
    assert told.sentence == "a rank did not come to the start within 2 s"
    assert told.waits[0][1] == "waits for the others: 1 of 4 came"
    told = describe(Report(TIMED_OUT, 0, 0, 0, NO_FLAG, 1, 4, 0), LAYOUT, "meet", 2.0)
    assert told.waits[0][1] == "waits for its host"


def test_a_report_of_what_others_have_ended_is_no_cause() -> None:
    place, _ = _line()
    told = describe(Report(ABORTED, 0, 0, 0, 24, 1, 2, place), LAYOUT, "meet", 2.0)
    assert (told.sentence, told.is_timeout) == ("another rank's program failed", False)
