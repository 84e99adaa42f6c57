"""Formulas on plain arrays, without labels, in float64."""
