"""The loop over the windows of a run, which are read, computed and written concurrently."""
