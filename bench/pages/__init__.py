"""What a reader sees: tables of a run and their layouts."""
