"""Labelled statistics of cubes, over kernels on plain arrays."""
