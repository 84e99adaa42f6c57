"""Checks and estimates of everything that a run needs, before its model is loaded."""
