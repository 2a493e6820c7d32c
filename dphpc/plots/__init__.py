"""Figures of runs and models: each function draws one `matplotlib` figure from plain arrays or files."""
