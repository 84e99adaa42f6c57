"""Progress of a run, sent to a progress bar, a status file, a log and Weights & Biases."""
