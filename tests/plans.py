"""Plans for prompts of given lengths, and for many prompts."""

import math
from typing import Any

import numpy as np
from hypothesis import strategies as st

from actkit.batch_plan import AUTO_TOKENS, Plan, Shape, make_plan
from actkit.config import Config


def plan_of(
    lengths: Any,
    *,
    layers: int = 2,
    hidden: int = 8,
    k: int = 0,
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
        k=k,
        token_bytes=4 * arrays * layers * hidden,
        sample_bytes=4 * math.prod(tower) if tower else 0,
        stored=None if stored is None else np.array(stored, dtype=np.int32),
        vision=tower and Shape(tower[0], len(lengths), *tower[1:]),
        boundary=boundary,
        new_tokens=new_tokens,
        batch_tokens=batch_tokens,
    )


many_lengths = st.lists(st.integers(1, 300) | st.integers(1, 5000), min_size=1, max_size=60)
many_towers = st.none() | st.tuples(
    st.integers(1, 27), st.sampled_from([1, 64, 256, 4096]), st.sampled_from([4, 1152])
)
many_plans = st.builds(
    plan_of,
    many_lengths,
    layers=st.integers(1, 48),
    arrays=st.integers(1, 3),
    tower=many_towers,
    hidden=st.sampled_from([16, 768, 5376]),
    k=st.sampled_from([4, 32]),
    batch_size=st.just("auto") | st.integers(1, 20),
    window_samples=st.integers(1, 80),
    memory_budget=st.sampled_from([2, 32, 1024]),
)
