"""Test of the core without optional dependencies, which `make test-core` runs in a separate environment.

It is no test of pytest, which that environment has not either.
"""

import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import actkit
from actkit.cli import main
from actkit.schema import TokenKind
from actkit.testing import write_cube

ABSENT = ("torch", "transformers", "huggingface_hub", "datasets", "ipywidgets", "wandb", "pytest")


def run() -> None:
    """Open a cube and analyse it."""
    there = [name for name in ABSENT if find_spec(name)]
    assert not there, f"{there} should not be installed here"
    with tempfile.TemporaryDirectory() as folder:
        run = write_cube(Path(folder, "run"), n_samples=80, n_layers=6, hidden=8)
        assert actkit.verify(run).faults == ()
        cube = actkit.open_cube(run)
        norms = actkit.layer_norms(cube).compute()
        is_text = cube.token_kind == TokenKind.TEXT
        for language in ("english", "arabic"):
            expected = cube.norm.where(is_text & (cube.language == language)).mean(["sample", "token"])
            np.testing.assert_allclose(norms["mean"].sel(language=language), expected, rtol=1e-6)
        neighbours, breaks = actkit.adjacent_cka(cube).compute(), actkit.transitions(cube).compute()
        apart = actkit.group_differential(cube, by="gender").compute()
        assert apart.auroc.sizes == {"language": 2, "layer": 6}
        white = actkit.Whitener.fit(cube, layer=1)
        assert white.rank == 8
        actkit.plots.figure(actkit.plots.adjacent_cka(neighbours, breaks), Path(folder, "cka.png"))
        actkit.report(cube, out=Path(folder, "report.html"))
        actkit.export(run, format="npz", out=Path(folder, "npz"))
        for command in (["info", str(run)], ["verify", str(run)]):
            assert main(command) == 0
    print("the core works alone")


if __name__ == "__main__":
    run()
