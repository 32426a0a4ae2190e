"""Going on with a rollout, comparing two, and the intervals in between."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vla_core import registry
from vla_core.errors import UserError
from vla_serve import PolicyServer, RolloutSettings, rollout
from vla_serve.rates import bootstrap, mean_of_tasks, wilson
from vla_serve.rollout_cli import main
from vla_serve.rollouts import report
from vla_serve.rollouts.compare import compare, sign_test
from vla_serve.rollouts.compare import text as comparison_text
from vla_serve.rollouts.results import suite, summarise, table, text
from vla_serve.rollouts.worker import Done, EpisodeResult
from vla_serve.testing import ToyPolicy


@pytest.fixture(scope="module")
def address():
    with PolicyServer(ToyPolicy()) as server:
        yield server.address


@pytest.fixture
def toy_with_expert(tmp_path_factory, monkeypatch):
    # Spawned processes import the class by name.
    folder = tmp_path_factory.mktemp("sims")
    (folder / "toy_with_expert.py").write_text(
        "import numpy as np\nfrom vla_serve.testing import ToyEnv\n"
        "class ToyExpertEnv(ToyEnv):\n"
        "    def expert_action(self):\n"
        "        return np.array([-1.0 if self._config.task == 'left' else 1.0], np.float32)\n"
    )
    monkeypatch.syspath_prepend(str(folder))
    undo = registry.override("vla.envs", "toy_expert", __import__("toy_with_expert").ToyExpertEnv)
    yield
    undo()


def settings(address, **changes):
    base = RolloutSettings(
        address=address, env="toy", tasks=("left",), episodes=3, videos="none", workers=1, seed=7
    )
    return replace(base, **changes)


def test_a_second_call_runs_what_is_missing_alone(address, toy, tmp_path):
    first = rollout(settings(address, env_options={"fail_seed": 8}), tmp_path)
    assert not first["complete"]
    told = []
    # The same simulator, which would fail again at seed 8; the two others are kept as they were.
    again = rollout(
        settings(address, env_options={"fail_seed": 8}), tmp_path, on_episode=lambda d, *_: told.append(d)
    )
    assert [d.episode.seed for d in told] == [8]
    kept = [e for e in again["episodes"] if e["error"] is None]
    assert kept == [e for e in first["episodes"] if e["error"] is None]
    assert again["wall_s"] > first["wall_s"]
    assert again["total"]["latency_ms"]["requests"] == first["total"]["latency_ms"]["requests"]


@pytest.mark.slow
def test_more_tasks_and_episodes_go_on_from_fewer(address, toy, tmp_path):
    rollout(settings(address, episodes=1), tmp_path / "grown")
    grown = rollout(settings(address, episodes=2, tasks=("left", "right")), tmp_path / "grown")
    whole = rollout(settings(address, episodes=2, tasks=("left", "right")), tmp_path / "whole")
    outcome = [(e["task"], e["seed"], e["success"], e["steps"]) for e in whole["episodes"]]
    assert [(e["task"], e["seed"], e["success"], e["steps"]) for e in grown["episodes"]] == outcome
    assert grown["complete"]
    every = {"tasks": 2, "mean": 1.0, "interval": pytest.approx(wilson(4, 4)), "score": None}
    assert grown["suite"] == whole["suite"] == every
    assert grown["provenance"]["packages"]["numpy"] == np.__version__


def test_suites_have_means_of_their_own(tmp_path):
    solved = {"libero_spatial_0": 4, "libero_spatial_1": 2, "libero_goal_3": 0}
    seeds = {task: range(4) for task in solved}
    done = [
        Done(EpisodeResult(task, seed, seed < solved[task], 10, instruction="go"), (5.0,))
        for task in seeds
        for seed in seeds[task]
    ]
    told = {"address": "here:1", "executed_steps": 8, "rtc": False, "delay_steps": None}
    results = summarise(done, seeds, told, {}, 1.0)
    assert {name: (node["tasks"], node["mean"]) for name, node in results["suites"].items()} == {
        "libero_spatial": (2, 0.75),
        "libero_goal": (1, 0.0),
    }
    assert results["suite"]["mean"] == 0.5
    said = text(results)
    assert "libero_spatial: mean over 2 tasks 75.0 % (95 %" in said
    assert "\nmean over 3 tasks 50.0 %" in said
    page = report.page(results, tmp_path, said)
    assert "libero_goal: mean over 1 task 0.0 %" in page
    assert "8 steps from request to request" in page
    assert "<div><i>executed_steps</i> 8</div><div><i>rtc</i> no</div></td>" in page  # no delay: left out
    assert summarise(done[:8], dict(list(seeds.items())[:2]), told, {}, 1.0)["suites"] == {}


def test_other_settings_are_refused_unless_overwritten(address, toy, tmp_path):
    rollout(settings(address, episodes=1), tmp_path)
    before = (tmp_path / "results.json").read_text()
    with pytest.raises(UserError, match=r"something else \(execute_steps None, now 1\).*--overwrite"):
        rollout(settings(address, episodes=1, execute_steps=1), tmp_path)
    assert (tmp_path / "results.json").read_text() == before
    replaced = rollout(settings(address, episodes=1, execute_steps=1), tmp_path, overwrite=True)
    assert replaced["settings"]["executed_steps"] == 1
    node = json.loads(before)
    node["policy"]["weights_digest"] = "another"
    (tmp_path / "results.json").write_text(json.dumps(node))
    with pytest.raises(UserError, match="weights 'another'"):
        rollout(settings(address, episodes=1), tmp_path)


def test_results_and_report_are_there_whatever_happens(address, toy, tmp_path):
    def stop(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rollout(settings(address), tmp_path, on_episode=stop)
    saved = json.loads((tmp_path / "results.json").read_text())
    assert (len(saved["episodes"]), saved["complete"]) == (1, False)
    page = (tmp_path / "report.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 1
    assert re.search(r'<div class="success" title="left seed 7: success', page)


def test_partial_credit_of_a_benchmark_is_averaged(tmp_path, monkeypatch):
    """The last score that a step says is the episode's; no benchmark, no column."""
    (tmp_path / "toy_with_score.py").write_text(
        "from dataclasses import replace\nimport numpy as np\nfrom vla_serve.testing import ToyEnv\n"
        "class Scored(ToyEnv):\n"
        "    def expert_action(self):\n"
        "        return np.array([-1.0], np.float32)\n"
        "    def step(self, action):\n"
        "        result = super().step(action)\n"
        "        score = 1.0 if result.success else 0.25 if self._steps == 2 else None\n"
        "        return replace(result, score=score)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    expert = replace(settings("a:1"), address="", policy="expert", tasks=("left", "right"), episodes=2)
    results = rollout(expert, tmp_path / "out", env_class=__import__("toy_with_score").Scored)
    assert [e["score"] for e in results["episodes"]] == [1.0, 1.0, 0.25, 0.25]
    assert [task["score_mean"] for task in results["tasks"]] == [1.0, 0.25]
    assert results["suite"]["score"] == pytest.approx(0.625)
    assert re.findall(r"% +(\d\.\d{3}) ", table(results)) == ["1.000", "0.250", "0.625"]
    assert suite(results).endswith("score 0.625\n")


def made(outcomes, seed=0):
    """Results of tasks whose episodes had these outcomes."""
    episodes = [
        {"task": t, "seed": seed + i, "success": x} for t, xs in outcomes.items() for i, x in enumerate(xs)
    ]
    return {
        "settings": {"env": "toy"},
        "policy": {},
        "tasks": [{"task": task} for task in outcomes],
        "episodes": episodes,
    }


def test_the_program_compares(tmp_path, capsys):
    for name, right, said in (("a", [False, False], "go left"), ("b", [True, True], None)):
        node = made({"left": [True, True], "right": right})
        node["settings"]["instruction"] = said
        (tmp_path / name).mkdir()
        (tmp_path / name / "results.json").write_text(json.dumps(node))
    numbers = tmp_path / "numbers.json"
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "b"), "--json", str(numbers)]) == 0
    printed = capsys.readouterr().out
    assert "instruction: A go left, B None" in printed
    assert "right  A 0/2  B 2/2  (2 won, 0 lost)" in printed
    assert "B - A: +50.0 points" in printed
    assert "over 2 tasks and 4 pairs; only B succeeded 2 times, only A 0" in printed
    result = json.loads(numbers.read_text())
    assert (result["difference"], result["second_only"], result["first_only"]) == (0.5, 2, 0)
    assert main(["compare", str(tmp_path / "a"), str(tmp_path / "none")]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["comapre", str(tmp_path / "a"), str(tmp_path / "b")]) == 2
    assert "no command 'comapre' (did you mean 'compare'?)" in capsys.readouterr().err


def test_one_of_a_thing_is_said_as_one():
    said = comparison_text(compare(made({"a": [False]}), made({"a": [True]})), "a", "b")
    assert "over 1 task and 1 pair; only B succeeded 1 time, only A 0" in said


outcomes = st.lists(st.sampled_from([True, False, None]), min_size=1, max_size=4)


@hypothesis.settings(deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), st.tuples(outcomes, outcomes), min_size=1))
def test_a_comparison_turned_round_has_the_other_sign(pairs):
    one, two = (made({task: pair[i] for task, pair in pairs.items()}) for i in (0, 1))
    if not any(x is not None and y is not None for p in pairs.values() for x, y in zip(*p, strict=False)):
        with pytest.raises(UserError, match="no episode"):
            compare(one, two)
        return
    there, back = compare(one, two), compare(two, one)
    assert there["difference"] == pytest.approx(-back["difference"])
    assert (there["first_only"], there["second_only"]) == (back["second_only"], back["first_only"])
    assert there["p"] == back["p"]
    assert -1 <= there["interval"][0] <= there["interval"][1] <= 1
    assert compare(one, one)["difference"] == 0


def test_other_simulators_are_no_pairs():
    other = made({"a": [True]})
    other["settings"]["env"] = "metaworld"
    with pytest.raises(UserError, match="'toy' and 'metaworld'"):
        compare(made({"a": [True]}), other)


def test_the_sign_test():
    assert sign_test(0, 0) == 1.0
    assert sign_test(0, 5) == pytest.approx(2 / 32)
    assert sign_test(1, 9) == sign_test(9, 1) == pytest.approx(22 / 1024)


def test_the_bootstrap_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    hits = 0
    for k in range(100):
        rates = rng.beta(4, 2, size=(1, 30, 1))
        outcomes = (rng.random((1, 30, 10)) < rates).astype(float)
        interval = bootstrap(outcomes, draws=400, seed=k)
        hits += interval[0] <= 4 / 6 <= interval[1]
    assert hits >= 88


def test_outcomes_that_are_alike_are_no_certainty():
    """Every draw of a bootstrap is the same then, which says nothing of what other starts would give."""
    won, nothing = np.ones((1, 4, 3)), np.zeros((1, 4, 3))
    assert bootstrap(won) == pytest.approx(wilson(12, 12))
    assert bootstrap(nothing) == pytest.approx(wilson(0, 12))
    nothing[0, 0, 0] = np.nan
    assert bootstrap(nothing) == pytest.approx(wilson(0, 11))
    other = wilson(0, 12)[1]
    assert bootstrap(won - 1, paired=True) == pytest.approx((-other, other))
    assert bootstrap(won, paired=True) == pytest.approx((1 - 2 * other, 1))
    assert bootstrap(-won, paired=True) == pytest.approx((-1, 2 * other - 1))
    one = compare(made({"a": [True, False]}), made({"a": [True, False]}))
    assert one["interval"] == pytest.approx([-wilson(0, 2)[1], wilson(0, 2)[1]])


def test_a_task_counts_once_however_many_of_its_episodes_ended():
    outcomes = np.array([[[1.0, np.nan], [0.0, 0.0], [np.nan, np.nan]]])
    assert mean_of_tasks(outcomes) == 0.5
    assert bootstrap(np.full((1, 2, 2), np.nan)) is None
    assert mean_of_tasks(np.full((1, 2, 2), np.nan)) is None


def test_an_expert_needs_no_server(toy_with_expert, tmp_path, capsys):
    words = ["--env", "toy_expert", "--task", "left", "--videos", "none", "--out", str(tmp_path)]
    assert main([*words, "--policy", "expert", "--episodes", "2"]) == 0
    printed = capsys.readouterr().out
    assert "left  2/2" in printed
    assert "scripted expert, asked at every step" in printed
    saved = json.loads((tmp_path / "results.json").read_text())
    assert saved["total"]["latency_ms"] == {"requests": 0, "mean": None, "p50": None, "p99": None}
    for extra, says in (
        (["--policy", "expert", "--instruction", "go"], "instruction: an expert sees"),
        (["--policy", "other"], "say where vla-serve listens"),
    ):
        assert main([*words, *extra]) == 2
        assert says in capsys.readouterr().err


def test_a_simulator_without_expert_is_refused(toy, tmp_path, capsys):
    words = ["--env", "toy", "--task", "left", "--videos", "none", "--out", str(tmp_path)]
    assert main([*words, "--policy", "expert"]) == 2
    assert "'toy' has no scripted expert" in capsys.readouterr().err


def test_a_registered_gymnasium_environment_is_rolled_out(address, tmp_path, monkeypatch, capsys):
    pytest.importorskip("gymnasium")
    (tmp_path / "line_for_rollout.py").write_text(
        "import gymnasium\nimport numpy as np\nfrom gymnasium.spaces import Box, Dict\n"
        "from vla_serve.testing import ToyEnv, ToyEnvConfig\n"
        "class Line(gymnasium.Env):\n"
        "    observation_space = Dict({'view': Box(0, 255, (32, 32, 3), np.uint8), 'z': Box(-9, 9, (1,))})\n"
        "    action_space = Box(-2.0, 2.0, (1,), np.float32)\n"
        "    toy = ToyEnv(ToyEnvConfig(task='right'))\n"
        "    def see(self, o):\n"
        "        return {'view': o.images['top'], 'z': o.state}\n"
        "    def reset(self, *, seed=None, options=None):\n"
        "        return self.see(self.toy.reset(seed)), {}\n"
        "    def step(self, action):\n"
        "        r = self.toy.step(action)\n"
        "        return self.see(r.observation), r.reward, r.terminated, r.truncated, {'done': r.success}\n"
        "gymnasium.register('rollout/Line-v0', Line, max_episode_steps=30)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "line.yaml").write_text(
        "imports: [line_for_rollout]\ncameras: {top: view}\ncontrol_hz: 10\nsuccess: done\n"
        "state: [{name: height, key: z, dim: 1, unit: m}]\ninstruction: go right\nembodiment: toy\n"
        "action: [{name: velocity, dim: 1, unit: m/s, representation: delta}]\n"
    )
    words = ["--address", address, "--env", "gymnasium", "--task", "any name", "--episodes", "2"]
    words += ["--env.id", "rollout/Line-v0", "--env.repack", str(tmp_path / "line.yaml")]
    assert main([*words, "--videos", "none", "--workers", "1", "--out", str(tmp_path / "out")]) == 0
    assert "any name  2/2" in capsys.readouterr().out
