"""Kernels of other projects, tuned where those are installed: imported, never copied."""
