"""Benchmarks of actkit; README.md describes each of them and lists the results."""

import os

# must be set before torch is imported: threads that spin while waiting take cores from one another
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
