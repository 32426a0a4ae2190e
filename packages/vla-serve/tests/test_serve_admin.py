"""Several policies in one server, and policies that come and go while robots ask."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from vla_core.errors import UserError
from vla_core.testing import make_observation, make_spec
from vla_serve import PolicyClient, PolicyClientError, PolicyServer, PolicyUnavailable
from vla_serve.host.listen import own_token
from vla_serve.server import Digests, Loaded
from vla_serve.testing import TimedPolicy
from vla_serve.v1 import admin_pb2 as pb
from vla_serve.v1.admin_pb2_grpc import PolicyAdminServiceStub

SPEC = make_spec(1)


class Marked(TimedPolicy):
    """Answers its mark."""

    def __init__(self, mark: float, spec=SPEC, run_s: float = 0.003) -> None:
        super().__init__(spec, run_s)
        self.mark = mark

    def predict(self, prepared, steps=None):
        return np.full_like(super().predict(prepared, steps), self.mark)


def load(path: Path) -> Loaded:
    """A checkpoint's name is its mark; one of them is of another robot."""
    if path.name == "broken":
        raise UserError(f"{path}: damaged checkpoint")
    spec = make_spec(1, horizon=2) if path.name == "other" else SPEC
    mark = 0.0 if path.name == "other" else float(path.name)
    return Loaded(Marked(mark, spec), Digests(f"weights of {path.name}", "statistics"))


@pytest.fixture
def server():
    with PolicyServer(load(Path("1")), admin_port=0, loader=load) as running:
        yield running


class Bearer(grpc.UnaryUnaryClientInterceptor):
    """Brings a token to each call."""

    def __init__(self, token: str) -> None:
        self.metadata = [("authorization", f"Bearer {token}")]

    def intercept_unary_unary(self, continuation, details, request):
        return continuation(details._replace(metadata=self.metadata), request)


def stub(server, channel) -> PolicyAdminServiceStub:
    return PolicyAdminServiceStub(grpc.intercept_channel(channel, Bearer(server.admin_token)))


@pytest.fixture
def admin(server):
    with grpc.insecure_channel(f"127.0.0.1:{server.admin_port}") as channel:
        yield stub(server, channel)


def until(condition, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)


def ask(client: PolicyClient) -> tuple[float, str]:
    chunk = client.predict(make_observation(SPEC))
    return float(chunk.actions[0, 0]), chunk.revision.revision


def states(admin) -> dict[tuple[str, str], str]:
    return {
        (s.revision.policy, s.revision.revision): pb.PolicyState.Name(s.state).removeprefix("POLICY_STATE_")
        for s in admin.ListPolicies(pb.ListPoliciesRequest()).policies
    }


def test_policies_by_name():
    with PolicyServer({"one": Marked(1), "two": Marked(2)}) as server:
        with pytest.raises(PolicyClientError, match=r"config\.policy: name one of one, two"):
            PolicyClient(server.address).open()
        with pytest.raises(PolicyClientError, match=r"'tow' is not served .did you mean 'two'"):
            PolicyClient(server.address, policy="tow").open()
        with (
            PolicyClient(server.address, policy="one") as one,
            PolicyClient(server.address, policy="two") as two,
        ):
            assert [p.name for p in one.server_info().policies] == ["one", "two"]
            assert (ask(one)[0], ask(two)[0]) == (1, 2)
            assert [c.actions[0, 0] for c in two.predict_batch([make_observation(SPEC)] * 3)] == [2, 2, 2]


@pytest.mark.parametrize("reloads", [10, pytest.param(20, marks=pytest.mark.slow)])
def test_reloads_under_load_fail_no_request(server, admin, reloads):
    """Eight clients in a closed loop, each of which is answered by each of eleven or twenty-one revisions."""
    revisions, over = reloads + 1, threading.Event()
    order: list[list[float]] = [[] for _ in range(8)]

    def drive(number: int) -> None:
        with PolicyClient(server.address) as client:
            while not over.is_set():
                chunk = client.predict(make_observation(SPEC, number), seed=number)
                mark = float(chunk.actions[0, 0])
                assert (chunk.actions == mark).all()
                assert chunk.revision.weights_digest == f"weights of {mark:.0f}"
                order[number].append(mark)

    with ThreadPoolExecutor(8) as pool:
        driving = [pool.submit(drive, number) for number in range(8)]
        try:
            for mark in range(1, revisions + 1):
                if mark > 1:
                    request = pb.LoadPolicyRequest(policy="default", path=f"{mark}", promote=True)
                    status = admin.LoadPolicy(request, timeout=30).status
                    assert status.state == pb.POLICY_STATE_CURRENT
                until(lambda mark=mark: any(d.done() for d in driving) or all(mark in o for o in order))
        finally:
            over.set()
        for client in driving:
            client.result()  # no request failed
    for answers in order:  # nobody is ever sent back
        assert answers == sorted(answers)
    until(lambda: len(states(admin)) == 1)
    assert states(admin) == {("default", str(revisions)): "CURRENT"}
    alive = [thread.name for thread in threading.enumerate() if thread.name.startswith("vla-model")]
    assert len(alive) == 1


def test_the_way_back(server, admin):
    with PolicyClient(server.address) as client:
        assert ask(client) == (1, "1")
        admin.LoadPolicy(pb.LoadPolicyRequest(policy="default", path="2"), timeout=30)
        assert ask(client) == (1, "1")
        assert states(admin) == {("default", "1"): "CURRENT", ("default", "2"): "STANDBY"}
        admin.PromotePolicy(pb.PromotePolicyRequest(policy="default"), timeout=10)
        assert ask(client) == (2, "2")
        admin.PromotePolicy(pb.PromotePolicyRequest(policy="default", revision="1"), timeout=10)
        assert ask(client) == (1, "1")
        admin.UnloadPolicy(pb.UnloadPolicyRequest(policy="default", revision="2", timeout_s=5), timeout=10)
        assert states(admin) == {("default", "1"): "CURRENT"}
        assert ask(client) == (1, "1")


def test_a_drained_policy_takes_no_requests_and_comes_back(server, admin):
    with PolicyClient(server.address) as client:
        reply = admin.DrainPolicy(pb.DrainPolicyRequest(policy="default", timeout_s=5), timeout=10)
        assert reply.empty
        with pytest.raises(PolicyUnavailable, match=r"policy 'default' takes no requests now$"):
            ask(client)
        admin.PromotePolicy(pb.PromotePolicyRequest(policy="default"), timeout=10)
        assert ask(client) == (1, "1")
        admin.LoadPolicy(pb.LoadPolicyRequest(policy="more", path="5"), timeout=10)
        admin.PromotePolicy(pb.PromotePolicyRequest(policy="more"), timeout=10)
        with PolicyClient(server.address, policy="more") as other:
            assert ask(other)[0] == 5
        admin.DrainPolicy(pb.DrainPolicyRequest(policy="more", timeout_s=5), timeout=10)
        admin.UnloadPolicy(pb.UnloadPolicyRequest(policy="more", timeout_s=5), timeout=10)
        assert states(admin) == {("default", "1"): "CURRENT"}


def test_a_policy_that_never_answered_cannot_be_drained(server, admin):
    admin.LoadPolicy(pb.LoadPolicyRequest(policy="more", path="5"), timeout=10)
    with pytest.raises(grpc.RpcError) as caught:
        admin.DrainPolicy(pb.DrainPolicyRequest(policy="more"), timeout=10)
    assert caught.value.code() is CODES.FAILED_PRECONDITION
    assert caught.value.details() == "policy 'more' has no revision that answers (standing by: 1)"


CODES = grpc.StatusCode


@pytest.mark.parametrize(
    ("method", "request_", "code", "words"),
    [
        ("LoadPolicy", pb.LoadPolicyRequest(policy="default", path="broken"), CODES.INVALID_ARGUMENT,
         "path: broken: damaged checkpoint"),
        ("LoadPolicy", pb.LoadPolicyRequest(policy="default", path="other"), CODES.FAILED_PRECONDITION,
         "served with another contract"),
        ("LoadPolicy", pb.LoadPolicyRequest(policy="a\nb", path="2"), CODES.INVALID_ARGUMENT, "policy: must"),
        ("LoadPolicy", pb.LoadPolicyRequest(policy="a"), CODES.INVALID_ARGUMENT, "path: missing"),
        ("PromotePolicy", pb.PromotePolicyRequest(policy="defautl"), CODES.INVALID_ARGUMENT,
         "did you mean 'default'"),
        ("PromotePolicy", pb.PromotePolicyRequest(policy="default", revision="7"), CODES.INVALID_ARGUMENT,
         "revision: '7' is not here"),
        ("UnloadPolicy", pb.UnloadPolicyRequest(policy="default"), CODES.FAILED_PRECONDITION,
         "answers requests; drain the policy first"),
        ("DrainPolicy", pb.DrainPolicyRequest(policy="no"), CODES.INVALID_ARGUMENT, "'no' is not served"),
        ("DrainPolicy", pb.DrainPolicyRequest(policy="default", timeout_s=-1), CODES.INVALID_ARGUMENT,
         "timeout_s: -1.0 is no time"),
    ],
)  # fmt: skip
def test_mistakes(server, admin, method, request_, code, words):
    with pytest.raises(grpc.RpcError) as caught:
        getattr(admin, method)(request_, timeout=10)
    assert caught.value.code() is code
    assert words in caught.value.details()
    with PolicyClient(server.address) as client:
        assert ask(client) == (1, "1")


def test_a_warm_up_that_fails_changes_nothing(server, admin, monkeypatch):
    monkeypatch.setattr(Marked, "predict", lambda *_: 1 / 0)
    with pytest.raises(grpc.RpcError) as caught:
        admin.LoadPolicy(pb.LoadPolicyRequest(policy="default", path="2", promote=True), timeout=10)
    assert caught.value.code() is CODES.INTERNAL
    monkeypatch.undo()
    assert states(admin) == {("default", "1"): "CURRENT"}
    with PolicyClient(server.address) as client:
        assert ask(client) == (1, "1")


class Gone:
    """A loader whose policies tell when they are gone, and whether something still refers to them then."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, bool]] = []
        self.warming = threading.Event()
        self.go_on = threading.Event()

    def __call__(self, path: Path) -> Loaded:
        loaded = load(Path("2") if path.name in ("dies", "slow") else path)
        alive = weakref.ref(loaded.policy)

        def on_gone() -> None:
            gc.collect()
            self.calls.append((path.name, alive() is not None))

        def on_warm(run) -> None:
            if path.name == "dies":
                raise RuntimeError("out of memory")
            if path.name == "slow":
                self.warming.set()
                assert self.go_on.wait(20)

        return replace(loaded, on_gone=on_gone, on_warm=on_warm)


def test_what_could_not_be_started_is_let_go_like_what_was_unloaded():
    gone = Gone()
    threads = set(threading.enumerate())
    with (
        PolicyServer(load(Path("1")), admin_port=0, loader=gone) as server,
        grpc.insecure_channel(f"127.0.0.1:{server.admin_port}") as channel,
    ):
        admin = stub(server, channel)
        for path in ("other", "dies"):
            with pytest.raises(grpc.RpcError):
                admin.LoadPolicy(pb.LoadPolicyRequest(policy="default", path=path), timeout=10)
        assert gone.calls == [("other", False), ("dies", False)]
        admin.LoadPolicy(pb.LoadPolicyRequest(policy="default", path="3"), timeout=10)
        request = pb.UnloadPolicyRequest(policy="default", revision="2", timeout_s=5)
        admin.UnloadPolicy(request, timeout=10)
        assert gone.calls[2:] == [("3", False)]
        # Who asked goes while it is warmed up: nothing of it stays, and the next load waits for that.
        call = admin.LoadPolicy.future(pb.LoadPolicyRequest(policy="default", path="slow", promote=True))
        assert gone.warming.wait(10)
        call.cancel()
        until(lambda: server._manager._ending)  # the server knows that nobody waits
        gone.go_on.set()
        until(lambda: len(gone.calls) == 4)
        assert gone.calls[3:] == [("slow", False)]
        assert states(admin) == {("default", "1"): "CURRENT"}
        assert sum(t.name == "vla-model-0" for t in set(threading.enumerate()) - threads) == 1


def test_an_account_without_the_token_changes_nothing(server, admin):
    with grpc.insecure_channel(f"127.0.0.1:{server.admin_port}") as channel:
        for others in (channel, grpc.intercept_channel(channel, Bearer("wrong"))):
            with pytest.raises(grpc.RpcError) as caught:
                PolicyAdminServiceStub(others).DrainPolicy(
                    pb.DrainPolicyRequest(policy="default"), timeout=10
                )
            assert caught.value.code() is CODES.UNAUTHENTICATED
    assert states(admin) == {("default", "1"): "CURRENT"}


def test_a_token_file_is_written_for_its_owner_alone(tmp_path):
    path = tmp_path / "admin.token"
    token = own_token(path)
    assert len(token) >= 32
    assert path.stat().st_mode & 0o777 == 0o600
    assert own_token(path) == token
    path.chmod(0o640)
    with pytest.raises(UserError, match="open to other accounts; chmod 600"):
        own_token(path)
    with pytest.raises(UserError, match=r"admin_token_file: .*No such file"):
        own_token(tmp_path / "none" / "admin.token")


def test_off_by_default(server):
    with grpc.insecure_channel(server.address) as channel, pytest.raises(grpc.RpcError) as caught:
        PolicyAdminServiceStub(channel).ListPolicies(pb.ListPoliciesRequest(), timeout=10)
    assert caught.value.code() is CODES.UNIMPLEMENTED
    with PolicyServer(Marked(1)) as plain:
        assert plain.admin_port == 0
    with pytest.raises(UserError, match=f"admin_port: {server.admin_port} of 127.0.0.1 is taken"):
        PolicyServer(Marked(1), admin_port=server.admin_port).start()
