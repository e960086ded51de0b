"""Constants of the NCCL model: two fitted ones, and the sizes of its FIFOs."""

#: Bytes of a chunk and of a FIFO slot. NCCL's buffer of 4 MiB in 8 slots is shared by the 16 warps of a channel
#: (NCCL_BUFFSIZE, NCCL_STEPS); a stream here is one of its 8 pairs of warps.
CHUNK_BYTES, NUM_SLOTS = 32768, 8
#: Fixed time of an exchange before its first chunk, fitted to the latency of small all-to-alls (7.4 us, calibration.csv).
BASE_NS = 0
#: Time of a chunk beside its copy, fitted to the bus bandwidth of large all-to-alls (315 GB/s, calibration.csv).
STEP_NS = 0
