"""The cube on disk: layout, writing, verification and reading; and the run folder around it."""
