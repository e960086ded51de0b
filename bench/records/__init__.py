"""What a run leaves: its records, the files that keep them, and frames of them."""
