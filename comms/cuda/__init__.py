"""GPUs: the compilers, memory that several of them address, and the libraries between them."""
