"""ARCHITECTURE.md names every module, and no other."""

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PARTS = (
    "store",
    "stats",
    "stats/kernels",
    "plots",
    "reporting",
    "exporting",
    "importing",
    "extraction",
    "extraction/models",
    "extraction/prompts",
    "widgets",
)


def test_every_module_is_named() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([a-z_]+)(?:\.py)?`", row)}
    modules = {path.stem for path in (ROOT / "actkit").glob("*.py") if path.stem != "__init__"}
    modules |= {
        path.stem
        for part in PARTS
        for path in (ROOT / "actkit" / part).glob("*.py")
        if path.stem != "__init__"
    }
    assert modules - named == set()
    # beside modules, the table names public functions
    assert named - modules <= {"__init__", "open_cube", "verify"}
