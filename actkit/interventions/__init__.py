"""Interventions on a model: metrics of its output, and edits of its activations during a forward pass."""
