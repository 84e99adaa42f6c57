"""Run every benchmark, each in a separate process: ``python -m benchmarks [--quick]``."""

import argparse
import subprocess
import sys
import time

from .timing import print_machine

# sizes with which all benchmarks take a few minutes; the results are meaningless
QUICK = {
    "engine": ["--limit", "32", "--rounds", "1"],
    "naive": ["--models", "minilm", "--limit", "32", "--rounds", "1"],
    "peers": ["--limit", "32", "--rounds", "1"],
    "padding": ["--limit", "256"],
    "scaling": ["--limit", "2000"],
    "reading": ["--limit", "32", "--rounds", "1"],
    "chunks": ["--limit", "16", "--rounds", "1"],
    "writing": ["--limit", "64"],
    "plan": ["--limit", "64", "--rounds", "1"],
    "analyses": ["--limit", "100", "--rounds", "1"],
    "pitfalls": ["--trials", "10"],
    "probes": ["--limit", "200", "--layers", "2", "--rounds", "1"],
    "saes": ["--limit", "100", "--rounds", "1"],
    "app": ["--limit", "40", "--rounds", "1", "--sessions", "2"],
}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--quick", action="store_true", help="only check that everything works")
    quick = options.parse_args().quick
    print_machine()
    started = time.monotonic()
    for program, sizes in QUICK.items():
        command = [sys.executable, "-m", f"benchmarks.{program}", *(sizes if quick else [])]
        subprocess.run(command, check=True)
    print(f"\ntotal: {(time.monotonic() - started) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
