"""Replays frames, tries the causes, and says which would explain the error.

Shapes: N frames, T steps, A action dims, G groups.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from vla_core.errors import UserError
from vla_core.images import resize, resize_depth, resize_intrinsics
from vla_core.specs import RobotSpec
from vla_core.types import Observation

from vla_serve.clients.async_client import AsyncPolicyClient
from vla_serve.clients.errors import PolicyBusy
from vla_serve.doctor.causes import input_causes, output_causes
from vla_serve.doctor.errors import Yardstick
from vla_serve.doctor.frames import Frames

Array = NDArray[np.float64]

FOLLOWED = 0.5
"""A group whose error is below this share of knowing nothing follows the recording."""
EXPLAINS = 2 / 3
"""A cause explains an error that falls to this share, or less, when it is undone.

A policy that does its task may be half as far from the recording as knowing nothing: mistakes add to it.
"""
STILL_FOLLOWED = 0.7
"""And to less than this share of knowing nothing."""
HOPELESS = 3.0
AT_ONCE = 8
"""Requests under way."""


@dataclass(frozen=True)
class Finding:
    """A cause that was tried.

    Args:
        name: of the cause.
        before, after: errors relative to knowing nothing, averaged over the groups that it is about and that
            do not follow the recording.
        total: after, over all groups, a hopeless one counted as :data:`HOPELESS`.
        explains: the error falls, and no other group loses what it follows.
    """

    name: str
    before: float
    after: float
    total: float
    explains: bool


@dataclass
class Diagnosis:
    """What was found.

    Args:
        answers: ``[N, T, A]`` to the frames as they are.
        scores: ``[G]`` of them, relative to knowing nothing.
        findings: every cause that was tried, the one that helps most first.
        refused: causes that could not be tried, and why: what the policy says to such frames.
        image_influence: the most that a change of the images moved the answers, relative to how they differ
            between frames. Images of other frames are always tried; None: there was one frame.
    """

    answers: Array
    scores: Array
    findings: list[Finding] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    image_influence: float | None = None

    @property
    def explanation(self) -> Finding | None:
        """The cause that explains most of the error, if one does."""
        return next((finding for finding in self.findings if finding.explains), None)


class Doctor:
    """Examines the policy that a server has.

    Args:
        address: of the server.
        options: of the clients.
        frames: that are replayed.
        seed: of the policy's noise; frame ``i`` is always asked with ``seed + i``.
    """

    def __init__(self, address: str, options: dict[str, Any], frames: Frames, seed: int = 0) -> None:
        self._address, self._options, self._frames, self._seed = address, options, frames, seed
        self._sent = frames.observations if frames.sent is None else frames.sent

    async def examine(self, every: bool = False) -> Diagnosis:
        """Measure; try the causes if something does not follow the recording, or ``every`` time."""
        async with AsyncPolicyClient(self._address, **self._options) as client:
            contract = client.contract
            yardstick = Yardstick(contract.action, self._frames)
            answers = await self._replay(client, self._sent)
            found = Diagnosis(answers, yardstick.scores(answers))
            if len(self._sent) > 1:
                _moved(found, await self._replay(client, exchanged(self._sent)))
            if not every and (found.scores < FOLLOWED).all():
                return found
            await self._inputs(client, yardstick, found)
            self._outputs(contract, yardstick, found)
            await self._embodiments(client, yardstick, found)
        self._affine(contract, yardstick, found)
        found.findings.sort(key=lambda finding: (not finding.explains, finding.total))
        return found

    async def _inputs(self, client: AsyncPolicyClient, yardstick: Yardstick, found: Diagnosis) -> None:
        for cause in input_causes(client.contract, self._frames):
            frames = [cause.undo(fitted(o, client.contract)) for o in self._sent]
            try:
                with _unsaid():  # a state that is far off on purpose
                    answers = await self._replay(client, frames)
            except UserError as error:
                found.refused[cause.name] = str(error)
                continue
            self._judge(cause.name, yardstick, found, answers)
            if cause.of_images:
                _moved(found, answers)

    def _outputs(self, contract: RobotSpec, yardstick: Yardstick, found: Diagnosis) -> None:
        names = [group.name for group in contract.action.groups]
        for cause in output_causes(contract, self._frames):
            about = np.array([name in cause.groups for name in names])
            self._judge(cause.name, yardstick, found, cause.undo(found.answers), about)

    async def _embodiments(self, client: AsyncPolicyClient, yardstick: Yardstick, found: Diagnosis) -> None:
        """Statistics are an embodiment's: does another one of the policy answer as recorded?"""
        own = client.contract
        asked = self._options.get("policy", "")
        for policy in (await client.server_info()).policies:
            if policy.name != (asked or policy.name):
                continue
            for name in policy.embodiments:
                if name == own.embodiment:
                    continue
                try:
                    async with AsyncPolicyClient(
                        self._address, **{**self._options, "embodiment": name}
                    ) as other:
                        if other.contract.action.dim != own.action.dim:
                            continue
                        if other.contract.action.horizon != own.action.horizon:
                            continue
                        with _unsaid():  # states of one robot are far off for another
                            answers = await self._replay(other, self._sent)
                except UserError as error:
                    found.refused[f"statistics key: {name}"] = str(error)
                    continue
                words = f"wrong statistics key: embodiment '{name}' of the policy answers as recorded"
                self._judge(words, yardstick, found, answers)

    def _affine(self, contract: RobotSpec, yardstick: Yardstick, found: Diagnosis) -> None:
        """Un-normalised with other statistics: off by a factor and an offset for each dim.

        Fitted on half of the frames and judged on the others; it is the last resort, for the factor of a dim
        also turns a polarity, so anything that has a name goes before it.
        """
        half = np.arange(len(found.answers)) % 2 == 0
        if half.sum() < 4 or any(finding.explains for finding in found.findings):
            return
        mask, recorded = self._frames.mask, self._frames.actions
        fitted_answers = found.answers.copy()
        words = []
        for dim in range(contract.action.dim):
            chosen = mask[half][..., dim]
            x, y = found.answers[half][..., dim][chosen], recorded[half][..., dim][chosen]
            if x.std() == 0 or y.std() == 0:
                continue
            factor = float(np.cov(x, y, bias=True)[0, 1] / x.var())
            offset = float(y.mean() - factor * x.mean())
            fitted_answers[..., dim] = factor * found.answers[..., dim] + offset
            words.append(f"dim {dim}: x {factor:.3g} {offset:+.3g}")
        rest = np.flatnonzero(~half)
        after = yardstick.scores(fitted_answers, rest)
        if (after < FOLLOWED).all():  # a fit to answers that mean nothing ends at 1
            name = f"wrong statistics: answers x factor + offset would be as recorded ({', '.join(words)})"
            found.findings.append(_finding(name, yardstick.scores(found.answers, rest), after))

    def _judge(
        self,
        name: str,
        yardstick: Yardstick,
        found: Diagnosis,
        answers: Array,
        about: NDArray[np.bool_] | None = None,
    ) -> None:
        found.findings.append(_finding(name, found.scores, yardstick.scores(answers), about))

    async def _replay(self, client: AsyncPolicyClient, observations: Sequence[Observation]) -> Array:
        contract, turn = client.contract, asyncio.Semaphore(AT_ONCE)

        async def ask(number: int, observation: Observation) -> Array:
            async with turn:
                while True:
                    try:
                        frame = fitted(observation, contract)
                        chunk = await client.predict(frame, seed=self._seed + number)
                        return chunk.actions.astype(np.float64)
                    except PolicyBusy as error:
                        await asyncio.sleep(error.retry_after_s)

        return np.stack(await asyncio.gather(*(ask(n, o) for n, o in enumerate(observations))))


@contextlib.contextmanager
def _unsaid() -> Iterator[None]:
    """What the client logs of answers is left out."""

    def nothing(_: logging.LogRecord) -> bool:
        return False

    log = logging.getLogger("vla_serve.clients.client")
    log.addFilter(nothing)
    try:
        yield
    finally:
        log.removeFilter(nothing)


def exchanged(observations: Sequence[Observation]) -> list[Observation]:
    """Each with the pictures (and depths) of the one that is half of them further on."""
    n = len(observations)
    others = [observations[(i + n // 2) % n] for i in range(n)]
    return [replace(o, images=e.images, depth=e.depth) for o, e in zip(observations, others, strict=True)]


def _moved(found: Diagnosis, answers: Array) -> None:
    """Note how far other images moved the answers."""
    moved = np.abs(answers - found.answers).mean() / max(1e-9, _spread(found.answers))
    found.image_influence = max(found.image_influence or 0.0, float(moved))


def _spread(answers: Array) -> float:
    return float(np.abs(answers - answers.mean(0)).mean())


def _finding(name: str, before: Array, after: Array, about: NDArray[np.bool_] | None = None) -> Finding:
    about = np.ones(before.size, np.bool_) if about is None else about
    bad = about & (before >= FOLLOWED)
    judged = bad if bad.any() else about
    was, now = float(before[judged].mean()), float(after[judged].mean())
    spoiled = ~bad & (after > np.maximum(FOLLOWED, 1.2 * before))
    explains = bool(bad.any() and now <= EXPLAINS * was and now < STILL_FOLLOWED and not spoiled.any())
    return Finding(name, was, now, float(np.minimum(after, HOPELESS).mean()), explains)


def fitted(observation: Observation, contract: RobotSpec) -> Observation:
    """The cameras of the contract, stretched to its sizes where the data has others, with what is known."""
    images, depth, intrinsics, extrinsics = {}, {}, {}, {}
    for camera in contract.observation.cameras:
        name, size = camera.name, (camera.height, camera.width)
        image = np.asarray(observation.images[name])
        images[name] = resize(image, *size)
        if observation.depth is not None and name in observation.depth:
            depth[name] = resize_depth(observation.depth[name], *size)
        if observation.intrinsics is not None and name in observation.intrinsics:
            old = (image.shape[0], image.shape[1])
            intrinsics[name] = resize_intrinsics(observation.intrinsics[name], old, size)
        if observation.extrinsics is not None and name in observation.extrinsics:
            extrinsics[name] = observation.extrinsics[name]
    state = observation.state if contract.observation.state else None
    return Observation(
        images,
        observation.instruction,
        state,
        depth=depth or None,
        intrinsics=intrinsics or None,
        extrinsics=extrinsics or None,
    )
