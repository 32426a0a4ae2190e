"""The two clients have the same methods; several observations at once, by either."""

from __future__ import annotations

import asyncio
import inspect
from dataclasses import replace

import numpy as np
import pytest
from vla_core.specs import CameraSpec
from vla_core.testing import make_observation, make_spec
from vla_serve import AsyncPolicyClient, PolicyClient, PolicyClientError, PolicyServer, SessionLost
from vla_serve.testing import TimedPolicy

SPEC = make_spec(1)
SEEN = make_observation(SPEC)


@pytest.fixture(scope="module")
def timed():
    with PolicyServer(TimedPolicy(SPEC)) as server:
        yield server


def public(kind):
    return {name for name in dir(kind) if not name.startswith("_")}


def test_the_twin_has_every_method_with_the_same_arguments():
    assert public(PolicyClient) == public(AsyncPolicyClient)
    for name in public(PolicyClient):
        one, other = getattr(PolicyClient, name), getattr(AsyncPolicyClient, name)
        if inspect.isfunction(one):
            assert inspect.signature(one) == inspect.signature(other)
            assert inspect.iscoroutinefunction(other)


@pytest.fixture(params=["synchronous", "asynchronous"])
def use(request, timed):
    """Calls of a client's methods, of either kind, each with the client that made the one before."""

    def of_one(*calls, **options):
        with PolicyClient(timed.address, **options) as client:
            return [call(client) for call in calls]

    def of_the_twin(*calls, **options):
        async def go():
            async with AsyncPolicyClient(timed.address, **options) as client:
                return [await call(client) for call in calls]

        return asyncio.run(go())

    return of_one if request.param == "synchronous" else of_the_twin


@pytest.mark.parametrize("encoding", ["raw", "png"])
def test_several_observations(use, encoding):
    seen = [make_observation(SPEC, number) for number in range(5)]
    together, *alone = use(
        lambda c: c.predict_batch(seen, range(5), steps=np.arange(5)),
        *[lambda c, n=n: c.predict(seen[n], seed=n, step=n + 5) for n in range(5)],
        encoding=encoding,
    )
    for one, other in zip(together, alone, strict=True):
        np.testing.assert_array_equal(one.actions, other.actions)


WRONG = {
    "instruction": replace(SEEN, instruction=5),
    "half a character": replace(SEEN, instruction="\ud800"),
    "no observation": "go left",
    "nothing": None,
    "images in a list": replace(SEEN, images=[1]),
    "a camera that is a number": replace(SEEN, images={1: SEEN.images["camera_0"]}),
    "a ragged state": replace(SEEN, state=[[1.0, 2.0], [3.0]]),
    "a ragged image": replace(SEEN, images={"camera_0": [[1, 2], [3]]}),
}


def test_what_is_passed_wrong_in_a_batch_is_named_and_costs_no_other_its_answer(use):
    (results,) = use(lambda c: c.predict_batch([SEEN, *WRONG.values(), SEEN]))
    for case, error in zip(WRONG, results[1:-1], strict=True):
        assert isinstance(error, PolicyClientError), case
        (field,) = error.fields
        assert field.startswith("observation"), case
    assert results[0].actions.shape == results[-1].actions.shape == (4, 7)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((None,), "observations: a NoneType, expected several"),
        (([SEEN], 5), "seeds: a int, expected several"),
        (([SEEN], [1, 2]), "seeds: 2 for 1 observations"),
        (([SEEN], None, float("inf")), "timeout_s: must be positive"),
        (([SEEN], None, 1e300), r"timeout_s: 1e\+300 s is longer than"),
    ],
)
def test_what_is_no_batch_is_named(use, arguments, words):
    with pytest.raises(PolicyClientError, match=words):
        use(lambda c: c.predict_batch(*arguments))


def test_a_session_that_a_batch_finds_lost_is_opened_anew(use, timed):
    def lose(client):
        timed.sessions._sessions.clear()
        return client.predict_batch([SEEN, SEEN])

    lost, _, again = use(lose, lambda c: c.open(), lambda c: c.predict_batch([SEEN]))
    assert [type(error) for error in lost] == [SessionLost] * 2
    assert again[0].actions.shape == (4, 7)


def test_contract_and_differences_before_a_session(use):
    contract, differences = use(lambda c: c.policy_contract(), lambda c: c.check_compatibility())
    assert contract.action == SPEC.action
    assert differences == []


@pytest.mark.parametrize("kind", [PolicyClient, AsyncPolicyClient])
def test_differences_are_listed_by_either(kind, timed):
    other = replace(SPEC.observation, cameras=(CameraSpec("camera_0", 1, 1),))
    client = kind(timed.address, observation_spec=other)
    found = client.check_compatibility()
    found = asyncio.run(found) if inspect.iscoroutine(found) else found
    assert [d.field for d in found] == [
        f"observation.cameras[camera_0].{side}" for side in ("height", "width")
    ]
    client._leave()
