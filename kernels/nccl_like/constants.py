"""Constants of the NCCL model: two fitted ones, the sizes of its FIFOs, its SMs.

`python -m bench.fitting.nccl` fits BASE_NS and STEP_NS to the two rows about NCCL in
bench/fitting/data/calibration.csv. That is a fit: with as many rows as constants it
validates nothing.
"""

#: Bytes of a chunk and of a FIFO slot. NCCL's buffer of 4 MiB in 8 slots is shared by the 16 warps
#: of a channel (NCCL_BUFFSIZE, NCCL_STEPS); a stream here is one of its 8 pairs of warps.
CHUNK_BYTES, NUM_SLOTS = 32768, 8
#: Bytes of a chunk of ids or weights, which move whole where rows move a prefix. It is less
#: than CHUNK_BYTES to save memory, and takes hardly more time.
IDS_CHUNK_BYTES = 8192
#: SMs of an all-to-all that nobody limits, one for each channel of point-to-point transfers. NCCL
#: rounds its collectives' channels up to a power of two (src/graph/paths.cc): 24 on 8 H100s, which
#: is assumed here, to 32. H800s have fewer links and log 16 (NVIDIA/nccl issue 892); 32 is what
#: they get at most, and never slower in this model but for the order in queues.
LIBRARY_SMS = 32
#: Fixed time of an exchange before its first chunk: small all-to-alls take 7.4 us.
BASE_NS = 739
#: Time of a full chunk beside its copy: large all-to-alls reach 315 GB/s of bus bandwidth.
STEP_NS = 11760
