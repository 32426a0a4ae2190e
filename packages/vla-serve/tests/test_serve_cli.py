"""The program ``vla-serve`` as a process."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import grpc
import numpy as np
import pytest
from vla_core.testing import make_observation, make_spec, register_fakes
from vla_core.testing.ports import reserved_port
from vla_serve import PolicyClient
from vla_serve.v1 import admin_pb2 as pb
from vla_serve.v1.admin_pb2_grpc import PolicyAdminServiceStub

pytest.importorskip("torch", reason="needs the extra vla-serve[server]")

# A process of its own knows only parts found by entry point; these fakes are not.
SERVE = """
import sys
import torch
torch.set_num_threads(1)
from vla_core.testing import register_fakes
from vla_serve.server_cli import main
with register_fakes():
    sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    from vla_core.testing import tiny_policy

    policy = tiny_policy(make_spec()).eval()
    path = tmp_path_factory.mktemp("run") / "checkpoints" / "steps_3"
    policy.save(path, step=3, config={"framework": policy.config})
    return policy, path


def start(*arguments: object) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", SERVE, *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


def port_of(process, port_file) -> int:
    deadline = time.monotonic() + 60
    while not port_file.exists():
        assert process.poll() is None, process.stderr.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(port_file.read_text())


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT])
def test_serves_a_checkpoint_bit_equal_and_stops_cleanly(checkpoint, tmp_path, stop):
    policy, path = checkpoint
    weights = next(path.glob("*.safetensors"))
    target = path if stop == signal.SIGTERM else weights
    port_file = tmp_path / "sub" / "port"
    options = ("--port", 0, "--port_file", port_file, "--threads", 1, "--denoise_steps", 2)
    process = start("--ckpt_path", target, *options)
    try:
        observation = make_observation(make_spec(), 4)
        with PolicyClient(f"127.0.0.1:{port_of(process, port_file)}") as client:
            served = client.predict(observation, seed=9).actions
        np.testing.assert_array_equal(served, policy.act([observation], [9], 2)[0].actions)
    finally:
        process.send_signal(stop)
        log = process.communicate(timeout=30)[1]
    assert process.returncode == 0, log
    assert "Traceback" not in log
    for event in ("warmed up", "serving", "session opened", "session closed", "stopped"):
        assert sum(event in line for line in log.splitlines()) == 1, (event, log)


def test_idle_cores_poll_while_it_serves(checkpoint, tmp_path):
    policy, path = checkpoint
    port_file = tmp_path / "port"
    options = ("--port", 0, "--port_file", port_file, "--threads", 1, "--idle_poll")
    process = start("--ckpt_path", path, *options)
    try:
        observation = make_observation(make_spec(), 4)
        with PolicyClient(f"127.0.0.1:{port_of(process, port_file)}") as client:
            served = client.predict(observation, seed=9).actions
        np.testing.assert_array_equal(served, policy.act([observation], [9])[0].actions)
    finally:
        process.terminate()
        log = process.communicate(timeout=30)[1]
    assert process.returncode == 0, log
    assert "idle cores poll: " in log
    assert "halted again" not in log


@pytest.fixture
def admin_port():
    with reserved_port() as port:
        yield port


def test_a_reload_of_a_named_checkpoint_in_bfloat16(checkpoint, tmp_path, admin_port):
    """All of it by the program: names, admin, digests, JSON lines."""
    policy, path = checkpoint
    port_file = tmp_path / "port"
    options = ("--port_file", port_file, "--admin_port", admin_port, "--log_format", "json", "--use_bf16")
    token_file = tmp_path / "admin.token"
    options += ("--admin_token_file", token_file)
    process = start("--policy", f"arm={path}", "--port", 0, *options)
    try:
        observation = make_observation(make_spec(), 4)
        with (
            PolicyClient(f"127.0.0.1:{port_of(process, port_file)}", policy="arm") as client,
            grpc.insecure_channel(f"127.0.0.1:{admin_port}") as channel,
        ):
            before = client.predict(observation, seed=9)
            request = pb.LoadPolicyRequest(policy="arm", path=str(path), promote=True)
            metadata = [("authorization", f"Bearer {token_file.read_text().strip()}")]
            PolicyAdminServiceStub(channel).LoadPolicy(request, timeout=60, metadata=metadata)
            after = client.predict(observation, seed=9)
        exact = policy.act([observation], [9])[0].actions
        assert before.actions.dtype == np.float32
        assert 0 < np.abs(before.actions - exact).max() < 0.3
        np.testing.assert_array_equal(before.actions, after.actions)
        assert (before.revision.revision, after.revision.revision) == ("1", "2")
        (weights,) = path.glob("*.safetensors")
        assert after.revision.weights_digest == hashlib.sha256(weights.read_bytes()).hexdigest()
        statistics = (path / "norm_stats.json").read_bytes()
        assert after.revision.statistics_digest == hashlib.sha256(statistics).hexdigest()
        assert before.revision.checkpoint == after.revision.checkpoint == str(path)
    finally:
        process.terminate()
        log = process.communicate(timeout=30)[1]
    assert process.returncode == 0, log
    messages = [json.loads(line)["message"] for line in log.splitlines()]
    assert any(message.startswith("promoted policy=arm revision=2") for message in messages)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--ckpt_path", "no/such/steps_1", "--port", 0), "no/such/steps_1"),
        (("--port", 0), "--ckpt_path: missing"),
        (("--policy", "arm", "--port", 0), "--policy: 'arm' is no NAME=PATH"),
        (("--ckpt_path", "CHECKPOINT", "--policy", "default=x", "--port", 0), "'default' is given twice"),
        (("--ckpt_path", "CHECKPOINT", "--port", 0, "--max_sessions", 0), "max_sessions: 0 is outside"),
        (
            ("--ckpt_path", "CHECKPOINT", "--port", 0, "--admin_port", 0),
            "admin_port: needs --admin_token_file",
        ),
        (("--ckpt_path", "CHECKPOINT", "--admin_token_file", "x"), "there is no --admin_port"),
        (("--ckpt_path", "CHECKPOINT", "--port", 0, "--threads", 0), "--threads: must be at least 1"),
        (
            ("--ckpt_path", "CHECKPOINT", "--host", "256.0.0.1", "--port", 0),
            "host: '256.0.0.1' is no name or address",
        ),
        (("--ckpt_path", "CHECKPOINT", "--port", 0, "--cache_mib", 8), "cache_mib: given, but this policy"),
        (("--ckpt_path", "CHECKPOINT", "--port", 0, "--device", "cuda"), "no CUDA device here"),
        (("--ckpt_path", "CHECKPOINT", "--port", 0, "--device", "tpu"), "--device tpu: expected cpu, cuda"),
        (("--ckpt_path", "CHECKPOINT", "--port", 0, "--device", "mps"), "--device mps: expected cpu, cuda"),
        (
            ("--ckpt_path", "CHECKPOINT", "--port", 0, "--port_file", "/proc/none/port"),
            "port_file: /proc/none",
        ),
        (("--ckpt_path", "CHECKPOINT", "--port", 0, "--port_file", "/"), "port_file: / is a directory"),
        (
            ("--ckpt_path", "CHECKPOINT", "--port", 0, "--admin_port", 0, "--admin_token_file", "/"),
            "admin_token_file: / is a directory",
        ),
        (("--ckpt_path", "CHECKPOINT", "--port", 99999), "port: 99999 is outside 0 to 65535"),
        (("--ckpt_path", "CHECKPOINT", "--port", -1), "port: -1 is outside 0 to 65535"),
        (("--ckpt_path", "CHECKPOINT", "--port", 0, "--max_batch", 0), "max_batch: 0 is outside 1 to"),
        (("--ckpt_path", "CHECKPOINT", "--port", 0, "--grace_s", -1), "grace_s: must be finite"),
        (("--ckpt_path", "CHECKPOINT", "--port", 0, "--grace_s", "nan"), "grace_s: must be finite"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(checkpoint, capsys, arguments, words):
    import torch
    from vla_serve.server_cli import main

    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has a CUDA device")
    with register_fakes():
        code = main([str(checkpoint[1]) if a == "CHECKPOINT" else str(a) for a in arguments])
    text = capsys.readouterr().err
    assert code == 2
    assert words in text
    assert len([line for line in text.splitlines() if line.startswith("vla-serve:")]) == 1


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:200]), "it may be truncated"),
        (lambda p: p.write_bytes(b""), "it may be truncated"),
        (lambda p: (p.parent / "meta.json").write_text("{"), "damaged checkpoint"),
        (
            lambda p: (p.parent / "meta.json").unlink(),
            "not a checkpoint of this project, it has no meta.json",
        ),
        (lambda p: pickled(p, {"run": print}), "not a state dict of tensors"),
        (lambda p: pickled(p, [1, 2]), "cannot be read as weights"),
        (lambda p: starvla(p), "vla-train import-starvla"),
        (lambda p: lerobot(p, "pi05"), "vla-train import-lerobot"),
        (lambda p: lerobot(p, "act"), "a policy 'act' of lerobot; only pi0 and pi05 can be taken over"),
    ],
)
def test_damaged_checkpoints_are_one_line_and_exit_code_2(checkpoint, tmp_path, capsys, damage, words):
    from vla_serve.server_cli import main

    path = tmp_path / "checkpoints" / "steps_3"
    shutil.copytree(checkpoint[1], path)
    damage(path / "model.safetensors")
    with register_fakes():
        assert main(["--ckpt_path", str(path), "--port", "0"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert line.startswith("vla-serve: ")
    assert words in line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--ckpt_pth", "x"], "vla-serve: unknown option --ckpt_pth (did you mean --ckpt_path?)"),
        (["prob"], "vla-serve: no program 'prob' (did you mean 'probe'?)"),
        (["probe", "--adress=x"], "vla-serve probe: unknown option --adress (did you mean --address?)"),
        (["doctor", "--address", "x", "--dta", "y"], "unknown option --dta (did you mean --data?)"),
        (["--nonsense"], "vla-serve: unknown option --nonsense;"),
        (["bridge"], "the following arguments are required: --address"),
        (["--compile", "all"], "argument --compile: no choice 'all'"),
    ],
)
def test_a_wrong_option_is_one_line_that_names_the_nearest(capsys, words, said):
    from vla_serve.server_cli import main

    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert line.endswith("--help")


@pytest.mark.parametrize(
    ("words", "inside", "name"),
    [
        (["--ckpt_path", "x"], "vla_serve.server_cli._server", "vla-serve"),
        (["probe", "--address", "127.0.0.1:1"], "vla_serve.probe_cli._run", "vla-serve probe"),
        (
            ["doctor", "--address", "127.0.0.1:1", "--data", "x"],
            "vla_serve.doctor_cli._run",
            "vla-serve doctor",
        ),
    ],
)
def test_an_interruption_is_one_line(monkeypatch, capsys, words, inside, name):
    from vla_serve.server_cli import main

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(inside, interrupt)
    assert main(words) == 130
    assert capsys.readouterr().err.strip() == f"{name}: interrupted"


def pickled(weights, content):
    """In place of the weights, under the name that a pickle has."""
    weights.unlink()
    (weights.parent / "steps_3_pytorch_model.pt").write_bytes(pickle.dumps(content, 2))


def lerobot(weights, kind):
    """A policy of lerobot in place of the checkpoint."""
    for name in ("config.yaml", "meta.json", "norm_stats.json"):
        (weights.parent / name).unlink()
    (weights.parent / "config.json").write_text(json.dumps({"type": kind, "input_features": {}}))


def starvla(weights):
    """A StarVLA run has its files a level higher, and weights alone in this place."""
    for file in [*weights.parent.glob("*.json"), weights.parent / "config.yaml"]:
        file.unlink()
    (weights.parent / "dataset_statistics.json").write_text("{}")
