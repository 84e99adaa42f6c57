"""Benchmark of a report: CPU seconds relative to another checkout, alternated, and from the cache.

python -m benchmarks.report RUN --than CHECKOUT [--rounds 1]

RUN is a cube of the MT-GenEval sentences by MiniLM, and CHECKOUT a git worktree of the commit compared with.
Each report is a separate process, imports included, with one thread of BLAS.
"""

import hashlib
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from .timing import parser, print_machine, print_table, spread

_PROGRAM = """
import sys, time
import actkit
actkit.report(actkit.open_cube(sys.argv[1]), out=sys.argv[2])
print(time.process_time())
"""


def cpu_seconds(code: Path, run: Path, out: Path) -> float:
    """Return the CPU time of a report by the code of a checkout."""
    environment = os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", _PROGRAM, str(run), str(out)]
    ended = subprocess.run(command, cwd=code, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return float(ended.stdout.split()[-1])


def _digest(code: Path) -> str:
    """Return a hash of the package, on which the cache depends."""
    files = sorted((code / "actkit").rglob("*.py"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def main() -> None:
    made = parser(__doc__, limit=None, rounds=1)
    made.add_argument("run", type=Path, help="run folder")
    made.add_argument("--than", type=Path, required=True, help="checkout compared with")
    options = made.parse_args()
    here = Path(__file__).parents[1]
    actions = {"other checkout": options.than, "this one": here, "this one, from the cache": here}
    times: dict[str, list[float]] = {name: [] for name in actions}
    measured = _digest(here)
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(options.rounds):
            run = Path(temporary, f"run-{number}")
            shutil.copytree(options.run, run, ignore=shutil.ignore_patterns("summaries"))
            for name, code in actions.items():
                times[name].append(cpu_seconds(code.resolve(), run, Path(temporary, "report.html")))
            shutil.rmtree(run)
    if _digest(here) != measured:
        raise SystemExit(f"{here} was edited while it was measured; measure the checkout of a commit")
    first = statistics.median(times["other checkout"])
    print_machine()
    print_table(
        [
            {
                "": name,
                "CPU seconds: median (least to most)": spread(each),
                "to the other checkout": f"{statistics.median(each) / first:.2f}",
            }
            for name, each in times.items()
        ]
    )


if __name__ == "__main__":
    main()
