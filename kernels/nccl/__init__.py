"""`nccl`: the baseline where NCCL carries the data, a framework's pack and unpack around it.

The kernels before and after are those of `kernels.packing`, on all SMs. Counts are exchanged
between the GPUs and then read by the host, which names the size of each message to NCCL: that wait
is part of the time, as it is in frameworks. It is hidden as far as it can be: counts travel before
rows are packed, and the host waits for them alone (`sizes`), except where packing needs them.

`dedup` and `selection` send and receive by one group of ncclSend and ncclRecv for rows, ids and
weights. `padded` does by ncclAlltoAll, with all messages as long as the longest; `copy_engine`
likewise without an SM, by the GPUs' copy engines, where both buffers lie in windows that NCCL
knows.

`allgather` sends every token to every rank. Its combine exchanges `num_tokens` rows between every
two ranks and adds them at the source, by ascending rank, in FP32, rounded once: the sum that all
contenders here must give, bit for bit. `reduce_scatter` is what frameworks do there: each rank has
a row for each token of the world, zero where it has none to give, and ncclReduceScatter adds them
in BF16. It rounds on the way and in an order of its own (a ring rounds after each rank, a switch
once), so its sums of any rows are not those of the others. They are checked on rows of small whole
numbers, which have the same sum in every order and with every such rounding
(`Protocol.whole_numbers`).

An SM budget is the communicator's. NCCL rounds the channels of point-to-point calls up to a power
of two (src/graph/paths.cc), so a budget asks for the power of two that it holds. With LIBRARY_SMS
and more NCCL chooses for itself: that is what it gets where nobody limits it.
"""

from dataclasses import replace

from comms.collectives import Wanted
from kernels.nccl_like.constants import LIBRARY_SMS
from kernels.packing import Variant
from kernels.packing.hosted import hosted
from kernels.protocol import MOST_WHOLE, Op, Protocol
from kernels.shape import Shape

#: BF16 has every integer up to this.
_MOST_EXACT = 256


def _library(shape: Shape) -> Wanted:
    return Wanted() if shape.num_sms >= LIBRARY_SMS else Wanted.within(shape.num_sms)


def _copy_engines(shape: Shape) -> Wanted:
    return Wanted(zero_ctas=True)


def _one_node(shape: Shape, op: Op, *, cross_rail: str) -> str | None:
    if shape.num_nodes == 1:
        return None
    return "one node only: NCCL's copy engines write over NVLink"


def _variant(variant: Variant, summary: str) -> Protocol:
    protocol = hosted("nccl", variant, summary, devices=("cuda",), library=_library, queues=True)
    return replace(protocol, route="pxn")


def _by_copy_engine() -> Protocol:
    summary = "ncclAlltoAll by copy engines and no SM, each message padded to the longest"
    protocol = hosted(
        "nccl", "padded", summary, devices=("cuda",), library=_copy_engines, queues=True
    )
    return replace(protocol, variant="copy_engine", refuses=_one_node)


def _by_reduce_scatter() -> Protocol:
    summary = "ncclAllGather of all tokens; ncclReduceScatter back, in BF16 and NCCL's order"
    protocol = hosted(
        "nccl",
        "allgather",
        summary,
        devices=("cuda",),
        library=_library,
        queues=True,
        adds_back=True,
    )

    def refuses(shape: Shape, op: Op, *, cross_rail: str) -> str | None:
        if MOST_WHOLE * shape.num_topk > _MOST_EXACT:
            return (
                f"sums of {shape.num_topk} rows of whole numbers are not exact in BF16, so nothing "
                "could check them: use nccl/allgather"
            )
        return protocol.refuses(shape, op, cross_rail=cross_rail)

    return replace(
        protocol,
        variant="reduce_scatter",
        route="pxn",
        refuses=refuses,
        whole_numbers=True,
    )


PROTOCOLS = (
    _variant("dedup", "ncclSend and ncclRecv, a row per (token, rank): the strongest baseline"),
    _variant("selection", "ncclSend and ncclRecv, a row per (token, expert): what frameworks do"),
    _variant("padded", "ncclAlltoAll, each message padded to the longest of the world"),
    _by_copy_engine(),
    _variant(
        "allgather", "ncclAllGather of all tokens; ncclAlltoAll back, and a sum at the source"
    ),
    _by_reduce_scatter(),
)
