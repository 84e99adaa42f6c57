"""Formulas on plain arrays, without labels; float64 throughout."""
