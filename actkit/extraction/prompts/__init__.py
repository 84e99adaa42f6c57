"""Rows to what a model reads."""
