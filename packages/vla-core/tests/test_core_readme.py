from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import vla_core
from vla_core import registry

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def _run(code: str) -> dict:
    names: dict = {}
    exec(code, names)
    return names


def test_pipeline_example():
    assert len(EXAMPLES[0].splitlines()) <= 12
    names = _run(EXAMPLES[0])
    assert names["seen"].observation.images["camera_0"].shape == (32, 32, 3)
    raw, back = names["sample"].actions, names["actions"]
    np.testing.assert_allclose(back[:, :6], raw[:, :6], atol=1e-5)
    assert set(back[:, 6].tolist()) <= {0.0, 1.0}


def test_policy_example():
    assert len(EXAMPLES[1].splitlines()) <= 10
    names = _run(EXAMPLES[1])
    assert names["first"].shape == (4, 7)
    assert len(names["chunks"]) == 3


def test_tables_name_everything_public():
    for name in [*vla_core.__all__, *registry.names("vla.transforms")]:
        assert f"`{name}`" in README, name
