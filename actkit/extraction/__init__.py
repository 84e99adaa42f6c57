"""Extraction: a model runs over prompts, and the outputs of its layers are written to a cube."""
