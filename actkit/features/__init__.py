"""Sparse autoencoders (SAEs) of cubes: weights, training, quality, and the features of a cube."""
