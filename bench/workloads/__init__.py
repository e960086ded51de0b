"""What is exchanged: sizes, presets, and which tokens go to which experts."""
