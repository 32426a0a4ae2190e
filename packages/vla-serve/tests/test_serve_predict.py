from __future__ import annotations

import threading
import time
from dataclasses import replace

import numpy as np
import pytest
from vla_core.testing import make_observation, make_spec
from vla_serve import PolicyClient, PolicyServer
from vla_serve.engine import quick
from vla_serve.engine.manager import Loaded
from vla_serve.testing import TimedPolicy


def test_one_chunk_in_real_units(client, policy, spec):
    observation = make_observation(spec, 3)
    chunk = client.predict(observation, seed=7, step=0, denoise_steps=2)
    expected = 7 + float(np.mean(observation.state)) + np.arange(4)
    np.testing.assert_array_equal(chunk.actions, np.repeat(expected[:, None], 7, 1).astype(np.float32))
    assert chunk.spec == spec.action
    assert client.seed == 7
    got, seed, steps = policy.calls[0]
    assert (seed, steps) == (7, 2)
    assert got.instruction == observation.instruction
    np.testing.assert_array_equal(got.state, observation.state)
    for name, image in observation.images.items():
        np.testing.assert_array_equal(got.images[name], image)
    assert list(got.images) == [c.name for c in spec.observation.cameras]


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_lossless_encodings_arrive_bit_equal(server, policy, spec, encoding):
    observation = make_observation(spec, 1)
    with PolicyClient(server.address, encoding=encoding) as client:
        client.predict(observation)
    for name, image in observation.images.items():
        np.testing.assert_array_equal(policy.calls[0][0].images[name], image)


def test_raw_pictures_of_a_known_instruction_take_no_other_thread(monkeypatch):
    """Whatever must be unpacked does: it would keep the loop that answers all others waiting."""
    monkeypatch.setattr(quick, "LIMIT_S", 60.0)
    policy = TimedPolicy(make_spec(1))
    threads, prepare = [], policy.prepare
    observation = make_observation(make_spec(1))
    with PolicyServer(policy) as server:
        policy.prepare = lambda rows: threads.append(threading.current_thread().name) or prepare(rows)
        for encoding in ("raw", "png"):
            with PolicyClient(server.address, encoding=encoding) as client:
                for instruction in ("open it", "open it", "close it", "open it"):
                    client.predict(replace(observation, instruction=instruction))
                    while server.engine._desk.running_s:  # the answer is there a moment before that
                        time.sleep(0.001)
    assert [name == "vla-rpc" for name in threads] == [False, True, False, True] + 4 * [False]


def test_jpeg_arrives_close(server, policy, spec):
    smooth = np.broadcast_to(np.linspace(0, 255, 32).astype(np.uint8)[:, None, None], (32, 32, 3))
    observation = replace(make_observation(spec), images={c.name: smooth for c in spec.observation.cameras})
    with PolicyClient(server.address, encoding="jpeg") as client:
        client.predict(observation)
    got = policy.calls[0][0].images["camera_0"].astype(int)
    assert np.abs(got - smooth).max() < 8


def test_geometry_travels(client, policy, spec):
    depth = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    observation = replace(
        make_observation(spec),
        depth={"camera_0": depth},
        intrinsics={"camera_1": np.eye(3)},
        extrinsics={"camera_0": np.eye(4, dtype=np.float32)},
    )
    client.predict(observation)
    got = policy.calls[0][0]
    np.testing.assert_array_equal(got.depth["camera_0"], depth)
    np.testing.assert_array_equal(got.intrinsics["camera_1"], np.eye(3, dtype=np.float32))
    assert list(got.extrinsics) == ["camera_0"]


def test_contract_and_info(client, server, spec):
    assert client.contract == replace(spec, statistics=client.contract.statistics)
    assert not client.contract.statistics.vectors
    info = client.server_info()
    assert info.policies[0].framework == "Toy"
    assert list(info.policies[0].embodiments) == ["default"]
    assert info.max_sessions == 3


def test_instruction_of_the_reset_is_used_when_the_observation_has_none(client, policy, spec):
    observation = make_observation(spec)
    client.reset("open the faucet")
    client.predict(replace(observation, instruction=""))
    client.predict(observation)
    assert [call[0].instruction for call in policy.calls] == ["open the faucet", observation.instruction]


def test_server_draws_a_seed_and_returns_it(client, policy, spec):
    client.predict(make_observation(spec))
    assert client.seed == policy.calls[0][1]
    client.predict(make_observation(spec))
    assert client.seed != policy.calls[0][1]


def test_a_policys_own_number_of_denoise_steps_is_asked_for_as_none(policy, spec):
    """Named or not, they are the same run, and on a GPU the same graph."""
    with (
        PolicyServer(Loaded(policy, steps=4), denoise_steps=4) as server,
        PolicyClient(server.address) as client,
    ):
        assert policy.calls[-1][2] is None  # the warm-up
        for steps, asked in ((None, None), (4, None), (5, 5)):
            client.predict(make_observation(spec), denoise_steps=steps)
            assert policy.calls[-1][2] == asked


def test_timings_add_up(client, spec):
    client.predict(make_observation(spec))
    t = client.timings
    assert 0 < t.model_ms <= t.server_ms <= t.round_trip_ms
    assert t.decode_ms + t.queue_ms + t.model_ms <= t.server_ms


def test_two_clients_at_once(server, spec):
    wrong: list[str] = []

    def drive(base: int) -> None:
        with PolicyClient(server.address, observation_spec=spec.observation) as client:
            for i in range(40):
                observation = make_observation(spec, base + i)
                chunk = client.predict(observation, seed=base + i)
                expected = np.float32(base + i + observation.state.mean())
                if not np.isclose(chunk.actions[0, 0], expected):
                    wrong.append(f"{base + i}: {chunk.actions[0, 0]} != {expected}")

    threads = [threading.Thread(target=drive, args=(base,)) for base in (0, 500)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()
    assert not wrong


def test_a_policy_of_torch_parts():
    pytest.importorskip("torch")
    from vla_core.testing import tiny_policy

    spec = make_spec()
    policy = tiny_policy(spec).eval()
    observations = [make_observation(spec, i) for i in range(3)]
    with PolicyServer(policy, denoise_steps=2) as server, PolicyClient(server.address) as client:
        served = [client.predict(o, seed=i).actions for i, o in enumerate(observations)]
    for i, observation in enumerate(observations):
        direct = policy.act([observation], [i], 2)[0].actions
        np.testing.assert_array_equal(served[i], direct)


def test_rows_that_share_a_run_get_the_answers_of_their_solo_runs():
    """Beyond rounding an answer does not depend on who else asks; with ``deterministic`` not even by that."""
    pytest.importorskip("torch")
    from vla_core.testing import tiny_policy

    spec = make_spec()
    policy = tiny_policy(spec).eval()
    observations = [make_observation(spec, i) for i in range(16)]
    for deterministic in (False, True):
        with PolicyServer(policy, denoise_steps=2, deterministic=deterministic) as server:
            with PolicyClient(server.address) as client:
                solo = [client.predict(o, seed=i).actions for i, o in enumerate(observations)]
            together: dict[int, np.ndarray] = {}
            sizes = set()

            def drive(i: int, server=server, together=together, sizes=sizes) -> None:
                with PolicyClient(server.address) as client:
                    for _ in range(5):
                        together[i] = client.predict(observations[i], seed=i).actions
                        sizes.add(client.timings.batch)

            threads = [threading.Thread(target=drive, args=(i,)) for i in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        assert max(sizes) > 1
        for i, alone in enumerate(solo):
            if deterministic:
                np.testing.assert_array_equal(together[i], alone)
            else:
                np.testing.assert_allclose(together[i], alone, atol=1e-5)
