"""A checkpoint to a model whose blocks and their parts are found and checked."""
