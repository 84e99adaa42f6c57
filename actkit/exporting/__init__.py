"""Cubes as the files that other scripts read."""
