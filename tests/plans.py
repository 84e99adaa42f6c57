"""Plans of prompts of given lengths."""

import math
from typing import Any

import numpy as np

from actkit.config import Config
from actkit.planning import AUTO_TOKENS, Plan, Shape, make_plan


def plan_of(
    lengths: Any,
    *,
    layers: int = 2,
    hidden: int = 8,
    stored: Any = None,
    arrays: int = 1,
    tower: tuple[int, int, int] | None = None,
    boundary: int | None = None,
    new_tokens: int = 0,
    batch_tokens: int = AUTO_TOKENS,
    **options: Any,
) -> Plan:
    """Make a plan for float32 values; ``tower`` has layers, patches and width."""
    config = Config(model="m", data="d", out="o", **options)
    return make_plan(
        config,
        np.array(lengths, dtype=np.int32),
        layers=layers,
        hidden=hidden,
        token_bytes=4 * arrays * layers * hidden,
        sample_bytes=4 * math.prod(tower) if tower else 0,
        stored=None if stored is None else np.array(stored, dtype=np.int32),
        vision=tower and Shape(tower[0], len(lengths), *tower[1:]),
        boundary=boundary,
        new_tokens=new_tokens,
        batch_tokens=batch_tokens,
    )
