"""Fits the constants of models to published measurements."""
