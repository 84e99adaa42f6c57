"""The cube on disk: how it is laid out, written, checked and read."""
