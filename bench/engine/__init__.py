"""How fast the simulator itself runs, beside an independent SimPy program."""
