"""What is learned from data is learned once, and kept under all that changes it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from vla_core.errors import ConfigError, UserError
from vla_core.fitting import FitCache, fit
from vla_core.framework import FrameworkConfig
from vla_core.registry import override
from vla_core.resolve import resolve
from vla_core.testing import FakeHead, make_sample, make_spec, register_fakes

SPEC = make_spec()
STEPS = [{"name": "relative_actions", "groups": {"position": "position"}}, {"name": "normalize"}]


class Learning(FakeHead):
    """Counts the chunks that it sees."""

    @classmethod
    def fit(cls, config, chunks, horizon, action_dim, directory):
        seen = -1 if chunks is None else sum(1 for _ in chunks())
        (directory / "seen.json").write_text(json.dumps([seen, horizon, action_dim]))

    def save_assets(self, directory): ...

    def load_assets(self, directory): ...


@pytest.fixture
def resolved():
    with register_fakes():
        undo = override("vla.heads", "learning", Learning)

        def make(head="learning", steps=STEPS, **options):
            config = FrameworkConfig(
                horizon=4, vlm={"name": "fake"}, head={"name": head, **options}, transforms=steps
            )
            return resolve(config)

        yield make
        undo()


class Rows:
    """Rows that count how often they are read."""

    def __init__(self, n=5):
        self.n, self.reads = n, 0

    def __call__(self):
        self.reads += 1
        for seed in range(self.n):
            sample = make_sample(SPEC, seed)
            yield sample.observation.state, sample.actions, sample.action_mask


def test_statistics_are_those_of_the_transformed_rows(resolved):
    rows = Rows()
    fitted = fit(resolved("fake"), {"default": SPEC}, {"default": rows})
    offsets = [s.actions[:, 0] - s.observation.state[0] for s in (make_sample(SPEC, i) for i in range(5))]
    assert fitted.statistics["default"]["action"].mean[0] == pytest.approx(np.mean(offsets))
    assert fitted.head_assets is None
    with pytest.raises(ConfigError, match="must be computed from the data"):
        fit(resolved("fake"), {"default": SPEC})
    given = fit(resolved("fake"), {"default": SPEC}, statistics=fitted.statistics)
    assert given.statistics == fitted.statistics


def test_a_second_run_reads_no_rows(resolved, tmp_path):
    cache, rows = FitCache(tmp_path / "cache", "data 1"), Rows()
    first = fit(resolved(), {"default": SPEC}, {"default": rows}, cache=cache)
    assert json.loads((first.head_assets / "seen.json").read_text()) == [5, 4, 7]
    assert rows.reads == 2  # for the statistics, and for the head
    again = fit(resolved(), {"default": SPEC}, {"default": rows}, cache=cache)
    assert rows.reads == 2
    assert again.statistics == first.statistics
    assert again.head_assets == first.head_assets
    assert [p.name for p in (tmp_path / "cache").iterdir() if p.name.startswith(".")] == []


def test_a_cache_that_cannot_be_written_is_one_line(resolved, tmp_path):
    (tmp_path / "file").write_text("")
    cache = FitCache(tmp_path / "file" / "cache", "data 1")
    with pytest.raises(UserError, match=r"file/cache: cannot be written \(Not a directory\)$"):
        fit(resolved(), {"default": SPEC}, {"default": Rows()}, cache=cache)


def test_all_that_changes_it_is_in_the_key(resolved, tmp_path):
    rows = Rows()

    def learn(framework, spec=SPEC, data="data 1"):
        before = rows.reads
        fit(framework, {"default": spec}, {"default": rows}, cache=FitCache(tmp_path, data))
        return rows.reads > before

    assert learn(resolved())
    assert not learn(resolved())
    assert learn(resolved(), data="data 2")
    assert learn(resolved(noise_scale=0.5))
    assert learn(resolved(steps=[{**STEPS[0], "mode": "delta"}, STEPS[1]]))
    assert learn(resolved(), replace(SPEC, action=replace(SPEC.action, control_hz=5.0)))
    assert not learn(resolved(), data="data 2")


def test_what_another_run_learned_is_taken(resolved, tmp_path):
    assert (
        fit(resolved(), {"default": SPEC}, {"default": Rows()}, head_assets=tmp_path).head_assets == tmp_path
    )


def test_without_data_the_head_is_told_so(resolved):
    fitted = fit(resolved(steps=[{"name": "normalize"}]), {"default": SPEC})
    assert json.loads((fitted.head_assets / "seen.json").read_text())[0] == -1
    directory = fitted.head_assets
    del fitted
    assert not directory.exists()
