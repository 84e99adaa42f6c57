"""Whatever a cube holds, reading it is one clear error, soon, or right."""

import json
import random
import shutil
import struct
import time
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
from numcodecs.blosc import Blosc
from numcodecs.zstd import Zstd

from actkit import open_cube, verify
from actkit.cli import main
from actkit.errors import ActkitError, CorruptError, CubeError, Fault
from actkit.store.layout import CUBE, array_of, open_group
from actkit.store.verification import RERUN
from actkit.testing import Synthetic
from tests.store.corruption import DELETED, KINDS, cases, change, replace, seal
from tests.trials import trials

NIGHTLY = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(14400)]
SECONDS = 20  # on a busy machine; what allocates or waits takes for ever

pytestmark = pytest.mark.timeout(600)


def read(run: Path) -> None:
    """Open all of it, and compute with it."""
    for group in ("", "vision"):
        cube = open_cube(run, group=group)
        cube.load(scheduler="synchronous")


def sound(run: Path) -> None:
    faults = verify(run).faults
    if faults:
        raise CubeError("; ".join(map(str, faults)))


def judge(run: Path, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """Read a cube in each way, and return what each refuses with; all other errors are raised."""
    refused = []
    capsys.readouterr()
    for way in (read, sound):
        started = time.monotonic()
        try:
            way(run)
        except ActkitError:
            refused.append(way.__name__)
        assert time.monotonic() - started < SECONDS
    code = main(["info", str(run)])
    output = capsys.readouterr()
    assert all(character.isprintable() or character == "\n" for character in output.out + output.err)
    assert bool(code) == output.err.startswith("actkit: ")
    return refused + ["info"] * code


@pytest.fixture
def restored(run: Path, intact: Path) -> Callable[[], None]:
    """Make the cube what it was."""

    def restore() -> None:
        shutil.rmtree(run / CUBE)
        shutil.copytree(intact / CUBE, run / CUBE)

    return restore


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.03, pytest.param(1, marks=NIGHTLY)], ids=["some", "all"])
def test_any_value_of_any_entry_of_the_metadata(
    run: Path, restored: Callable[[], None], capsys: pytest.CaptureFixture[str], share: float
) -> None:
    every = list(cases(run / CUBE))
    chosen = random.Random(7).sample(every, int(share * len(every)))
    with trials("an entry of zarr.json changed under a right seal × verify, open and read, info") as trial:
        for name, place, value in chosen:
            with trial((name, place, value)):
                change(run / CUBE, name, place, value)
                refused = judge(run, capsys)
                assert ("read" in refused) <= ("sound" in refused), f"sound, but {refused}"
            restored()


def shape(cube: Path, name: str, shape: list[int]) -> None:
    change(cube, name, ("shape",), shape)


INNER = ("codecs", 0, "configuration", "codecs")


def unknown_codec(cube: Path) -> None:
    change(cube, "residual", ("codecs", 0, "configuration", "codecs", 1, "name"), "x")


def shards_within_shards(cube: Path) -> None:
    (whole,) = json.loads((cube / "norm" / "zarr.json").read_bytes())["codecs"]
    change(cube, "norm", (*INNER, 0), whole)


def codecs_around_shards(cube: Path) -> None:
    codecs = json.loads((cube / "norm" / "zarr.json").read_bytes())["codecs"]
    change(cube, "norm", ("codecs",), [*codecs, {"name": "crc32c"}])


def pickles(cube: Path) -> None:
    change(cube, "text", ("codecs", 0), {"name": "numcodecs.pickle", "configuration": {}})


CLEAR: dict[str, tuple[Callable[[Path], None], str]] = {
    "shape 10^18": (lambda cube: shape(cube, "sample", [10**18]), "has 1,000,000,000,000,000,000 elements"),
    "flags 10^18": (lambda cube: shape(cube, "committed", [10**18]), "along `sample` where other arrays"),
    "layers 10^18": (lambda cube: shape(cube, "residual", [10**18, 10, 6, 8]), "along `layer` where other"),
    "hidden 10^18": (lambda cube: shape(cube, "residual", [3, 10, 6, 10**18]), "is divided along `hidden`"),
    "shapes that disagree": (lambda cube: shape(cube, "norm", [3, 10, 7]), "has 7 along `token`"),
    "chunk 0": (
        lambda cube: change(cube, "text", ("chunk_grid", "configuration", "chunk_shape"), [0]),
        "has a shape or chunks that are not valid lengths",
    ),
    "inner chunk 0": (
        lambda cube: change(cube, "norm", ("codecs", 0, "configuration", "chunk_shape"), [1, 0, 6]),
        "has inner chunks that are not valid lengths",
    ),
    "chunk 10^12": (
        lambda cube: change(cube, "layer", ("chunk_grid", "configuration", "chunk_shape"), [10**12]),
        "has chunks of 8,000,000,000,000 bytes",
    ),
    "unknown codec": (unknown_codec, "needs the codec x, which the format does not use"),
    "pickles": (pickles, "needs the codec numcodecs.pickle"),
    "no checksums": (
        lambda cube: change(cube, "text", ("codecs", 2), {"name": "bytes"}),
        "has chunks without checksums",
    ),
    "no checksums within shards": (
        lambda cube: change(cube, "residual", (*INNER, 2), {"name": "bytes"}),
        "has chunks without checksums",
    ),
    "shards that end with another codec": (
        lambda cube: change(cube, "norm", (*INNER, 2), DELETED),
        "has chunks without checksums",
    ),
    "no checksum of an index": (
        lambda cube: change(cube, "norm", ("codecs", 0, "configuration", "index_codecs", 1), DELETED),
        "has an index without checksums",
    ),
    "shards within shards": (shards_within_shards, "needs the codec sharding_indexed"),
    "codecs around shards": (codecs_around_shards, "has codecs around its shards"),
    "another type": (
        lambda cube: change(cube, "layer", ("data_type",), "float64"),
        "has a data type other than",
    ),
    "no array of texts": (lambda cube: shutil.rmtree(cube / "text"), "lists no array `text`"),
    "other windows": (
        lambda cube: change(cube, "committed", ("chunk_grid", "configuration", "chunk_shape"), [2]),
        "has windows of other than",
    ),
    "a group as an array": (
        lambda cube: (cube / "text" / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}'),
        "text/zarr.json: does not describe an array",
    ),
}


@pytest.mark.parametrize("case", CLEAR)
def test_metadata_that_cannot_be_are_named(run: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    damage, message = CLEAR[case]
    damage(run / CUBE)
    seal(run / CUBE)
    assert judge(run, capsys) == ["read", "sound", "info"]
    for way in (open_cube, verify):
        with pytest.raises(CubeError) as caught:
            way(run)
        assert message in str(caught.value)


ATTRIBUTES: list[tuple[str, Any]] = [
    *(("skipped_rows", value) for value in ("many", None, [], True)),
    *(("first_is_content", value) for value in ("no", None, 2, DELETED)),
    *(("options", value) for value in ("{", "[]", 3, "[" * 10**5)),
    *(("model", value) for value in (None, 3, DELETED)),
    *(("coordinates", value) for value in (None, ["a"], DELETED)),
    *(("arrays", value) for value in (None, "{", "[]", '{"../../x": "y"}', '{"/etc": "y"}', "[" * 10**5)),
    *(("arrays", value) for value in ('{"a/b/c": "y"}', '{"": "y"}', '{"text": 3}', '{"a\\u001b": "y"}')),
    *(("arrays", json.dumps({name: "y"})) for name in ("a" * 300, "a/" * 3000 + "b", "text/zarr.json")),
    *(("actkit_format", value) for value in (None, "2", 2.5, [2], 10**400)),
    ("receipts", "yes"),
]


@pytest.mark.parametrize(("name", "value"), ATTRIBUTES, ids=range(len(ATTRIBUTES)))
def test_attributes_that_cannot_be(
    run: Path, capsys: pytest.CaptureFixture[str], name: str, value: Any
) -> None:
    attributes = json.loads((run / CUBE / "zarr.json").read_bytes())["attributes"]
    attributes[name] = value
    if value is DELETED:
        del attributes[name]
    seal(run / CUBE, attributes)
    assert judge(run, capsys) == ["read", "sound", "info"]


FILES = (
    *("zarr.json", "residual/zarr.json", "text/zarr.json", "vision/zarr.json", "committed/zarr.json"),
    *("committed/c.0", "committed/c.2", "residual/c.0.0.0.0", "text/c.0", "token_text/c.1.0", "n_tokens/c.2"),
    *("sample/c.0", "vision/residual/c.0.1.0.0", "committed/receipt.1.json"),
)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", FILES)
def test_a_file_of_another_kind(run: Path, capsys: pytest.CaptureFixture[str], file: str, kind: str) -> None:
    replace(run / CUBE / file, kind)
    refused = judge(run, capsys)
    assert "sound" in refused
    # a receipt is for whoever verifies
    assert ("read" in refused) == ("receipt" not in file)


@pytest.mark.parametrize("name", ["residual", "vision", "committed", "vision/norm"])
def test_a_folder_behind_a_link(
    run: Path, capsys: pytest.CaptureFixture[str], name: str, tmp_path: Path
) -> None:
    (run / CUBE / name).rename(tmp_path / "elsewhere")
    (run / CUBE / name).symlink_to(tmp_path / "elsewhere")
    assert judge(run, capsys) == ["read", "sound", "info"]
    with pytest.raises(CubeError, match="lies behind a link"):
        open_cube(run)


@pytest.mark.slow
@pytest.mark.parametrize("count", [0, 3, 2**31 - 1])
def test_a_chunk_that_claims_another_number_of_strings(run: Path, count: int) -> None:
    file = run / CUBE / "text" / "c.0"
    strings = Zstd().decode(file.read_bytes()[:-4])
    chunk = Zstd().encode(count.to_bytes(4, "little") + strings[4:])
    file.write_bytes(chunk + int(google_crc32c.value(chunk)).to_bytes(4, "little"))
    declared = int.from_bytes(strings[:4], "little")
    what = f"is truncated or corrupted: claims to hold {count:,} strings instead of {declared:,}"
    faults = [Fault("text/c.0", what, RERUN)]
    assert list(verify(run).faults) == faults
    with pytest.raises(CorruptError) as error:
        open_cube(run).load()
    assert list(error.value.faults) == faults


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sample", "n_tokens", "norm", "residual"])
def test_chunks_of_blosc_that_claim_to_be_large(run: Path, name: str) -> None:
    folder = run / CUBE / name
    codecs = json.loads((folder / "zarr.json").read_bytes())["codecs"]
    bomb = Blosc("zstd", 9).encode(np.zeros(10**6, dtype="u1"))
    content = bomb + int(google_crc32c.value(bomb)).to_bytes(4, "little")
    size = len(content)
    file = sorted(folder.glob("c.*"))[0]
    if codecs[0]["name"] == "sharding_indexed":  # each chunk of a shard is the same one
        sharded = array_of(open_group(run / CUBE), name)
        assert sharded.shards is not None
        count = prod(sharded.shards) // prod(sharded.chunks)
        index = np.tile(np.array([0, size], dtype="<u8"), count).tobytes()
        content += index + int(google_crc32c.value(index)).to_bytes(4, "little")
    file.write_bytes(content)
    what = f"is truncated or corrupted: claims to hold 1,000,000 bytes in {size:,}"
    faults = [Fault(f"{name}/{file.name}", what, RERUN)]
    assert list(verify(run).faults) == faults
    with pytest.raises(CorruptError) as error:
        open_cube(run)[name].load()
    assert list(error.value.faults) == faults
    if name == "residual":
        with pytest.raises(CorruptError) as error:  # reads one chunk of the shard
            open_cube(run).residual[0, 0, 0].load()
        assert list(error.value.faults) == faults


@pytest.mark.slow
@pytest.mark.parametrize("size", [2**33, 2**40, 2**63])
def test_texts_that_claim_to_be_large(run: Path, capsys: pytest.CaptureFixture[str], size: int) -> None:
    # a frame of zstd with its size in eight bytes, and one empty raw block
    frame = struct.pack("<IBQ", 0xFD2FB528, 0xE0, size) + b"\x01\x00\x00"
    frame += int(google_crc32c.value(frame)).to_bytes(4, "little")
    (run / CUBE / "text" / "c.0").write_bytes(frame)
    assert judge(run, capsys) == ["read", "sound", "info"]


@pytest.mark.slow
def test_what_controls_a_terminal_is_shown_and_not_sent(
    tmp_path: Path, numbers: Synthetic, capsys: pytest.CaptureFixture[str]
) -> None:
    evil = "\x1b]0;owned\x07\x9b31m\u202egnp.exe\r\x00"
    rows = {**numbers.rows, "language": numbers.rows["language"] + evil}
    made = Synthetic(
        numbers.plan, numbers.coords, numbers.labels, rows, numbers.values, model=f"a model{evil}"
    )
    writer = made.create(tmp_path)
    for window in range(made.plan.n_windows):
        writer.write(window, made.part(window))
    assert judge(tmp_path, capsys) == []
    assert main(["info", str(tmp_path)]) == 0
    assert r"a model\x1b]0;owned\x07\x9b31m\u202egnp.exe\r\x00" in capsys.readouterr().out
    (tmp_path / CUBE / "text" / "c.0").unlink()
    evil_path = tmp_path / "a\x1b[31m"
    (tmp_path / CUBE).rename(evil_path)
    for command in ("info", "verify"):
        assert main([command, str(evil_path)]) == 1
        output = capsys.readouterr()
        assert "\x1b" not in output.out + output.err
