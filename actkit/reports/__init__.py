"""Report of a run: one HTML page with plots, sentences and methods, which opens without a network."""

from .html_page import report

__all__ = ["report"]
