"""Reading machine code: instructions, accesses, loops, and what moves rows."""

import struct
from dataclasses import replace

import pytest
from sass_for_tests import FOLDER, bulk, code_of, compiles, cubin, ldst, stored

from bench.asm import tools
from bench.asm.accesses import count_accesses
from bench.asm.flow import find_loops, in_step, walk
from bench.asm.rows import find_ldst_loops
from bench.asm.sass import Resources, read_instructions, read_resources
from bench.asm.symbols import function_addresses
from comms.errors import RuntimeFailure
from kernels.direct import PUSH
from kernels.protocol import KernelLaunch

# Instructions and resources


def test_instructions_have_addresses_predicates_and_operands() -> None:
    code = stored()["copy1"]
    assert [each.address for each in code[:3]] == [0, 16, 32]
    (load,) = (each for each in code if each.name == "LDG")
    assert load.opcode == "LDG.E.128"
    assert load.modifiers == ("E", "128")
    assert load.operands[0].startswith("R")
    assert load.predicate is None
    back = next(each for each in code if each.name == "BRA" and each.predicate)
    assert int(back.operands[-1], 16) < back.address


@pytest.mark.parametrize(
    "text", ["", "{}", "[{}]", '[{}, [{"function-name": "f"}]]', "nvdisasm fatal: no"]
)
def test_other_forms_of_instructions_are_refused(text: str) -> None:
    with pytest.raises(RuntimeFailure, match="nvdisasm --emit-json prints is not what"):
        read_instructions(text)


def test_resources_are_read_by_function() -> None:
    used = read_resources((FOLDER / "sm_90.txt").read_text())
    assert used["copy8"] == Resources(48, 0, 0, 1024)
    assert used["spill"].stack_bytes == 224
    assert used["flags"].shared_bytes == 1024 + 8 * 64


def test_other_forms_of_resources_are_refused() -> None:
    with pytest.raises(RuntimeFailure, match="cuobjdump -res-usage prints is not what"):
        read_resources(" Function f:\n  REGISTERS:8\n")


def elf(names: bytes, symbols: list[tuple[int, int, int]]) -> bytes:
    """Return an ELF file with a symbol table of (name, info, address)."""
    table = b"".join(struct.pack("<IBBHQQ", name, info, 0, 1, at, 0) for name, info, at in symbols)
    begin = 64 + 3 * 64
    sections = bytes(64)
    sections += struct.pack("<IIQQQQIIQQ", 0, 2, 0, 0, begin, len(table), 2, 0, 8, 24)
    sections += struct.pack("<IIQQQQIIQQ", 0, 3, 0, 0, begin + len(table), len(names), 0, 0, 1, 0)
    header = b"\x7fELF".ljust(0x28, b"\0") + struct.pack("<Q", 64)
    header = header.ljust(0x3A, b"\0") + struct.pack("<HHH", 64, 3, 0)
    return header + sections + table + names


def test_functions_are_found_by_their_symbols() -> None:
    file = elf(b"\0kernel\0$kernel$f\0data\0", [(1, 0x12, 0), (8, 2, 0x120), (18, 1, 64)])
    assert function_addresses(file) == {"kernel": 0, "$kernel$f": 0x120}
    with pytest.raises(RuntimeFailure, match="no cubin"):
        function_addresses(b"nothing")


# Accesses


def test_widths_and_the_share_of_wide_ones() -> None:
    wide, narrow = (count_accesses(stored()[name]) for name in ("copy8", "narrow"))
    assert wide.widths == {"LDG": {128: 8}, "STG": {128: 8}}
    assert wide.share_128 == 1.0
    assert narrow.widths == {"LDG": {32: 1}, "STG": {32: 1}}
    assert narrow.share_128 == 0.0


def test_every_width_is_told_apart() -> None:
    code = code_of("""
        LDG.E.U8 R0,[R2.64]
        LDG.E.S16 R0,[R2.64]
        LD.E.64 R0,[R2.64]
        ST.E.128 [R2.64],R4
        ATOMG.E.ADD.64.STRONG.SYS PT,R0,[R2.64],R4
        REDG.E.ADD.STRONG.GPU [R2.64],R4
        ATOMS.ADD RZ,[R2],R4
        LDS.128 R0,[R2]
        STL.64 [R1],R2
    """)
    assert count_accesses(code).widths == {
        "LDG": {8: 1, 16: 1, 64: 1},
        "STG": {128: 1},
        "LDS": {128: 1},
        "STL": {64: 1},
        "ATOM": {32: 1, 64: 1},
        "RED": {32: 1},
    }
    assert count_accesses(code).share_128 == 0.25


def test_flags_are_told_apart_from_rows() -> None:
    counted = count_accesses(stored()["flags"])
    assert counted.strong == {"LDG.STRONG.SYS": 1, "REDG.STRONG.GPU": 1, "STG.STRONG.SYS": 2}
    assert counted.share_128 is None
    assert counted.fences == {
        "CCTL.IVALL": 1,
        "CGAERRBAR": 1,
        "ERRBAR": 1,
        "MEMBAR.ALL.SYS": 1,
    }
    assert counted.barriers == {"BAR.SYNC": 1}


def test_kernels_without_flags_have_no_fences() -> None:
    counted = count_accesses(stored()["copy8"])
    assert counted.fences == counted.strong == counted.bulk == counted.mbarriers == {}
    assert counted.barriers == {}


def test_bulk_copies_and_their_barriers() -> None:
    counted = count_accesses(stored()["bulk"])
    assert counted.bulk["UBLKCP.S.G"] == counted.bulk["UBLKCP.G.S"] == 1
    assert counted.mbarriers["SYNCS.ARRIVE.TRANS64"] == 1
    assert counted.fences["FENCE.VIEW.ASYNC.S"] == 2


# Loops


def spans(text: str) -> list[tuple[int, int, int]]:
    """Return first line, last line and number of instructions of each loop of a listing."""
    return [
        (
            loop.instructions[0].address // 16,
            loop.instructions[-1].address // 16,
            len(loop.instructions),
        )
        for loop in walk(find_loops(code_of(text)))
    ]


def test_loops_inside_loops() -> None:
    nested = """
        MOV R0,RZ
        MOV R1,RZ
        IADD3 R1,R1,0x1,RZ
        @P0 BRA 0x20
        IADD3 R0,R0,0x1,RZ
        @P1 BRA 0x10
        EXIT
    """
    assert spans(nested) == [(1, 5, 5), (2, 3, 2)]


def test_code_that_was_moved_to_the_end_belongs_to_its_loop() -> None:
    moved = """
        MOV R0,RZ
        @P0 BRA 0x50
        IADD3 R0,R0,0x1,RZ
        @P1 BRA 0x10
        EXIT
        IADD3 R2,R2,0x1,RZ
        BRA 0x20
    """
    assert spans(moved) == [(1, 6, 5)]


def test_a_branch_back_that_nothing_follows_is_no_loop() -> None:
    back = """
        @P0 BRA 0x40
        MOV R0,RZ
        EXIT
        NOP
        BRA 0x10
    """
    assert spans(back) == []


def test_copies_of_code_for_warps_out_of_step_do_not_count() -> None:
    divergent = """
        MOV R0,RZ
        BRA.DIV UR4,0x60
        SHFL.IDX PT,R1,R1,R2,0x1f
        IADD3 R0,R0,0x1,RZ
        @P1 BRA 0x10
        EXIT
        WARPSYNC.COLLECTIVE R5,0x70
        SHFL.IDX PT,R1,R1,R2,0x1f
        BRA 0x30
    """
    assert spans(divergent) == [(1, 4, 4)]
    assert [each.name for each in in_step(code_of(divergent))].count("SHFL") == 1


def test_warps_in_step_leave_out_what_brings_them_there() -> None:
    converging = """
        MOV R0,RZ
        BRA.CONV ~URZ,0x40
        MOV R16,0x40
        CALL.REL.NOINC $warpsync
        IADD3 R0,R0,0x1,RZ
        @P1 BRA 0x10
        EXIT
    """
    assert spans(converging) == [(1, 5, 3)]


def test_loops_of_called_functions_are_their_own() -> None:
    calling = code_of("""
        MOV R16,0x20
        CALL.REL.NOINC 0x50
        IADD3 R0,R0,0x1,RZ
        @P1 BRA 0x0
        EXIT
        LDG.E.128 R4,[R2.64]
        STG.E.128 [R12.64],R4
        @P0 BRA 0x50
        RET.REL.NODEC R16
    """)
    told = [len(loop.instructions) for loop in walk(find_loops(calling))]
    assert told == [4, 3]
    assert ldst(calling)[0].num_instructions == 3
    assert len(in_step(calling)) == 9


def test_calls_by_symbol_go_to_addresses() -> None:
    text = """[{}, [{"function-name": "f", "length": 16, "sass-instructions":
        [{"opcode": "CALL.REL.NOINC", "operands": "$f$g"}]}]]"""
    assert read_instructions(text, {"$f$g": 256})["f"][0].operands == ("0x100",)
    assert read_instructions(text)["f"][0].operands == ("$f$g",)


def test_turns_of_lanes_are_no_loop() -> None:
    turns = """
        MOV R0,RZ
        @P0 ELECT P1,URZ,PT
        UBLKCP.S.G [UR8],[UR6],UR10
        @P0 BRA.U.ANY 0x10
        EXIT
    """
    assert spans(turns) == []


def test_lanes_that_meet_go_on_where_they_meet() -> None:
    text = """
        BSSY B0,0x60
        @P0 BRA 0x50
        MOV R0,RZ
        BSYNC B0
        EXIT
        BSYNC B0
        @P1 BRA 0x0
        EXIT
    """
    assert spans(text) == [(0, 6, 6)]


def test_a_branch_to_a_register_may_reach_all_code() -> None:
    table = """
        BRX R2,-0x10
        IADD3 R0,R0,0x1,RZ
        @P0 BRA 0x10
        EXIT
    """
    assert spans(table) == [(1, 2, 2)]


# Rows


def test_a_loop_with_one_load_has_an_eighth_of_the_bytes_under_way() -> None:
    (eight,), (one,) = ldst(stored()["copy8"]), ldst(stored()["copy1"])
    assert eight.lane_bytes_in_flight == 8 * one.lane_bytes_in_flight == 128
    assert eight.moves == one.moves == "copies"
    assert eight.lane_bytes == 8 * one.lane_bytes == 128


def test_instructions_for_16_bytes_are_those_of_the_loop() -> None:
    (eight,), (one,) = ldst(stored()["copy8"]), ldst(stored()["copy1"])
    assert eight.instructions_per_16b == eight.num_instructions / 8 == 31 / 8
    assert one.instructions_per_16b == one.num_instructions == 15


def test_a_sum_loads_more_than_it_stores() -> None:
    (loop,) = ldst(stored()["sum8"])
    assert loop.moves == "sums"
    assert (loop.loaded_bytes, loop.stored_bytes, loop.lane_bytes) == (128, 16, 128)
    assert loop.lane_bytes_in_flight == 128


def test_kernels_without_wide_accesses_have_no_row_loop() -> None:
    for name in ("narrow", "flags", "bulk"):
        assert ldst(stored()[name]) == []


LOOP = """
    MOV R0,RZ
    {body}
    @P0 BRA 0x10
    EXIT
"""


def in_flight(*body: str) -> int:
    """Return the bytes that a lane has under way in a loop of these instructions."""
    (loop,) = ldst(code_of(LOOP.format(body="\n".join(body))))
    return loop.lane_bytes_in_flight


def test_a_use_between_loads_ends_what_is_under_way() -> None:
    load_a, load_b = "LDG.E.128 R4,[R2.64]", "LDG.E.128 R8,[R2.64+0x200]"
    store_a, store_b = "STG.E.128 [R12.64],R4", "STG.E.128 [R12.64+0x200],R8"
    assert in_flight(load_a, load_b, store_a, store_b) == 32
    assert in_flight(load_a, store_a, load_b, store_b) == 16
    assert in_flight(load_a, "IADD3 R20,R7,0x1,RZ", load_b, store_b) == 16
    assert in_flight(load_a, "IADD3 R20,R3,0x1,RZ", load_b, store_b, store_a) == 32


def test_loads_for_the_next_pass_are_under_way_too() -> None:
    assert in_flight("STG.E.128 [R12.64],R4", "LDG.E.128 R4,[R2.64]") == 16
    assert (
        in_flight(
            "STG.E.128 [R12.64],R4",
            "MOV R4,R8",
            "LDG.E.128 R8,[R2.64]",
            "LDG.E.128 R16,[R2.64]",
            "STG.E.128 [R12.64],R16",
        )
        == 32
    )


def test_narrow_loads_and_flags_are_not_bytes_under_way() -> None:
    wide, store = "LDG.E.128 R4,[R2.64]", "STG.E.128 [R12.64],R4"
    assert in_flight(wide, "LDG.E R8,[R2.64]", store) == 16
    assert in_flight(wide, "LDG.E.128.STRONG.SYS R8,[R2.64]", store) == 16


def test_copies_into_shared_memory_are_under_way_until_they_are_awaited() -> None:
    into = "LDGSTS.E.BYPASS.128 [R7],[R2.64]"
    assert in_flight(into, into, "DEPBAR.LE SB0,0x0", "STG.E.128 [R12.64],R4") == 32
    assert in_flight(into, "DEPBAR.LE SB0,0x0", into, "DEPBAR.LE SB0,0x0") == 16


def test_the_loop_with_most_wide_accesses_is_the_row_loop() -> None:
    text = """
        LDG.E.128 R4,[R2.64]
        STG.E.128 [R12.64],R4
        @P0 BRA 0x0
        LDG.E.128 R4,[R2.64]
        LDG.E.128 R8,[R2.64]
        STG.E.128 [R12.64],R4
        STG.E.128 [R12.64],R8
        @P0 BRA 0x30
        NOP
        @P1 BRA 0x0
        EXIT
    """
    (loop,) = ldst(code_of(text))
    assert (loop.num_instructions, loop.num_accesses, loop.lane_bytes) == (5, 4, 32)


def test_a_loop_that_only_stores_moves_no_row_where_another_does() -> None:
    clears = """
        STG.E.128 [R12.64],RZ
        STG.E.128 [R14.64],RZ
        @P0 BRA 0x0"""
    copies = """
        LDG.E.128 R4,[R2.64]
        STG.E.128 [R12.64],R4
        @P0 BRA 0x30
        EXIT
    """
    (loop,) = ldst(code_of(clears + copies))
    assert (loop.num_accesses, loop.lane_bytes) == (2, 16)
    alone = find_loops(code_of(clears))
    assert [each.num_accesses for each in find_ldst_loops(alone)] == [2]
    assert find_ldst_loops(alone, has_bulk=True) == []


def test_a_loop_around_a_row_loop_is_none() -> None:
    text = """
        LDG.E.128 R16,[R2.64]
        STG.E.128 [R12.64],R16
        STG.E.128 [R12.64],R16
        LDG.E.128 R4,[R2.64]
        STG.E.128 [R12.64],R4
        @P0 BRA 0x30
        @P1 BRA 0x0
        EXIT
    """
    (loop,) = ldst(code_of(text))
    assert loop.num_instructions == 3


def test_bulk_copies_of_a_known_size() -> None:
    loop = bulk(stored()["bulk"])
    assert loop is not None
    assert loop.warp_bytes == 8192
    assert loop.instructions_per_16b == loop.num_instructions / 16


def test_bulk_copies_of_an_unknown_size() -> None:
    text = """
        LDC R0,c[0x0][0x210]
        R2UR UR10,R0
        UBLKCP.S.G [UR8],[UR6],UR10
        @P0 BRA 0x10
        EXIT
    """
    loop = bulk(code_of(text))
    assert loop is not None
    assert loop.warp_bytes is None
    assert loop.instructions_per_16b is None
    assert bulk(stored()["copy8"]) is None


# What compilers make now


@compiles()
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_compiled_kernels_are_what_they_were_written_to_be(arch: str) -> None:
    code = cubin(arch)
    functions = read_instructions(tools.instructions_text(code))
    used = read_resources(tools.resources_text(code))
    (eight,), (one,) = ldst(functions["copy8"]), ldst(functions["copy1"])
    assert eight.lane_bytes_in_flight == 8 * one.lane_bytes_in_flight == 128
    assert eight.instructions_per_16b < one.instructions_per_16b
    (sums,) = ldst(functions["sum8"])
    assert (sums.moves, sums.lane_bytes_in_flight) == ("sums", 128)
    assert count_accesses(functions["copy8"]).share_128 == 1.0
    assert count_accesses(functions["narrow"]).share_128 == 0.0
    assert ldst(functions["narrow"]) == []
    assert used["copy8"].registers > used["copy1"].registers > 0
    assert used["spill"].stack_bytes > 0 == used["copy8"].stack_bytes
    flags = count_accesses(functions["flags"])
    assert flags.fences["MEMBAR.ALL.SYS"] == flags.fences["CCTL.IVALL"] == 1
    assert (flags.strong["LDG.STRONG.SYS"], flags.strong["STG.STRONG.SYS"]) == (1, 2)
    assert ("bulk" in functions) == (arch != "sm_80")
    if "bulk" in functions:
        loop = bulk(functions["bulk"])
        assert loop is not None
        assert loop.warp_bytes == 8192


@compiles()
@pytest.mark.slow
def test_all_code_is_reached_where_no_warp_is_in_step() -> None:
    from kernels.isa.cuda_kernel import compile_kernel

    launch = PUSH.launches("combine", "fresh")[0]
    assert isinstance(launch, KernelLaunch)
    made = compile_kernel(launch, 16, arch="sm_90")
    told = tools.instructions_text(made.code)
    code = read_instructions(told, function_addresses(made.code))[made.entry]
    anyhow = [
        replace(each, opcode="BRA.ANY") if each.opcode in ("BRA.DIV", "BRA.CONV") else each
        for each in code
    ]
    missing = [each for each in set(anyhow) - set(in_step(anyhow)) if each.name != "NOP"]
    # What ends a kernel's section goes to itself.
    assert [each.operands for each in missing] == [(hex(missing[0].address),)]
    assert len(in_step(code)) < len(code)


@compiles()
def test_listings_name_labels() -> None:
    text = tools.listing(cubin())
    assert "copy8" in text
    assert "LDG.E.128" in text
    assert ".L_x_" in text


@compiles()
def test_what_is_no_cubin_is_told_in_one_sentence() -> None:
    with pytest.raises(RuntimeFailure, match="nvdisasm --emit-json failed: ") as caught:
        tools.instructions_text(b"nothing")
    assert "\n" not in str(caught.value)
