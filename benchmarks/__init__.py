"""Programs that measure actkit; README.md says what each one measures, and keeps the figures."""

import os

# before torch is imported: threads that spin while they wait would take the cores from one another
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
