"""Runs from the `.pt` and NumPy files of other scripts."""
