"""Checkpoints, the models loaded from them, and the hook points of these models."""
