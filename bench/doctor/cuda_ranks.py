"""A rank that a doctor started to look for GPUs: `python -m bench.doctor.cuda_ranks FOLDER`."""

import sys
from pathlib import Path

from bench.doctor.ranks import main

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), "cuda"))
