"""Weights of loss terms, and of micro-batches: a step is one mean over all its valid entries.

A part returns each term as the mean over what it counts. Micro-batches of a step, and ranks, have
different numbers of such entries (an episode's last chunks are padded), so the mean of their means is not the
mean over all of them. Each term is therefore weighted by its micro-batch's share of the step's entries:
2 x 16 samples then give the gradient of 32, on one process or on several.

What a term counts (:data:`vla_core.auxiliary.MeanOver`) follows from what its part asks the backbone for.
Two terms have no exact share: a flow head that freezes random first steps (``rtc_max_delay``) is weighted by
the entries before freezing, which is right in expectation; and a term over the batch as a whole (``rows``: a
variance) is what it is for its rows, so that it depends on how they are divided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from vla_core.answers import NO_LABEL
from vla_core.auxiliary import MeanOver
from vla_core.batch import Batch, ConversationBatch
from vla_core.conversing import CONVERSATION_LOSS
from vla_core.errors import ConfigError, suggest

from vla_train.auxiliary import weights_at
from vla_train.config import RunConfig
from vla_train.dataloading.conversation_config import LossScale
from vla_train.engine import Engine
from vla_train.engine.sum_later import SumLater

KINDS: tuple[MeanOver, ...] = ("actions", "answers", "tokens", "views", "futures", "rows", "conversations")


def entries(batch: Batch | ConversationBatch) -> list[int]:
    """How many of each of :data:`KINDS` a batch on the CPU has."""
    talk = batch if isinstance(batch, ConversationBatch) else batch.conversations
    spoken = 0 if talk is None else talk.tokens.n_answer
    if isinstance(batch, ConversationBatch):
        return [0] * (len(KINDS) - 1) + [spoken]
    rows = len(batch)
    mask, labels, futures = batch.action_mask, batch.tokens.labels, batch.future_mask
    return [
        0 if mask is None else int(mask.sum()),
        0 if labels is None else int((labels != NO_LABEL).sum()),
        batch.tokens.n_answer,
        int(batch.view_mask.sum()),
        rows if futures is None else int(futures.sum()),
        rows,
        spoken,
    ]


def means_of(model: Any) -> dict[str, MeanOver]:
    """Term -> what it is a mean over, for the terms that are no mean over the actions."""
    spoken: dict[str, MeanOver] = {"labels": "answers", "vocabulary": "tokens"}
    # Tokens compared with geometry are those of the views that are there.
    means: dict[str, MeanOver] = {CONVERSATION_LOSS: "conversations"}
    if model.fusion is not None:
        means["align"] = "views"
    if model.auxiliary is not None:
        means.update(model.auxiliary.mean_over)
    if model.head is not None:
        logits = model.head.request("train").logits
        if logits in spoken:
            means["action_loss"] = spoken[logits]
    return means


class Shares:
    """For each micro-batch float32 ``[len(KINDS)]``: its entries over the mean micro-batch's of the step.

    They are 1 where all micro-batches of all ranks have as many.

    Args:
        local: entries of this rank's micro-batches, float32 ``[micro-batches, len(KINDS)]``.
        world: number of ranks.
    """

    def __init__(self, local: Tensor, world: int) -> None:
        self._local, self._world = local, world
        # Needed where the first loss is: until then the other ranks may take their time.
        self._total = SumLater(local.sum(0), world)
        self._shares: Tensor | None = None

    def __getitem__(self, i: int) -> Tensor:
        if self._shares is None:
            mean = self._total.wait() / (len(self._local) * self._world)
            # Nothing to count anywhere: the terms are 0, whatever they are multiplied with.
            self._shares = torch.where(mean > 0, self._local / mean.clamp(min=1e-9), 1.0)
        return self._shares[i]


class Balance:
    """Weighs terms.

    Args:
        means: term -> what it is a mean over; terms not named are means over the actions.
        engine: for the sum over ranks.
        weights: term -> the user's weight; terms not named weigh 1.
        scale: of the robots' terms and of the conversations'.
    """

    def __init__(
        self,
        means: Mapping[str, MeanOver],
        engine: Engine,
        weights: Mapping[str, float],
        scale: LossScale,
    ) -> None:
        self.means, self.engine, self.weights, self.scale = means, engine, weights, scale

    def _scale(self, name: str) -> float:
        return self.scale.vlm if name == CONVERSATION_LOSS else self.scale.vla

    def shares(self, batches: Sequence[Batch | ConversationBatch]) -> Shares:
        """Of the micro-batches of a step. Called by all ranks; nobody waits before they are looked at."""
        counts = torch.tensor([entries(batch) for batch in batches], dtype=torch.float64)
        local = counts.to(torch.float32).to(self.engine.device, non_blocking=True)
        return Shares(local, self.engine.world)

    def check(self, terms: Iterable[str], scheduled: Iterable[str]) -> None:
        """Of the names of a step's terms, and of those with a schedule.

        Raises:
            ConfigError: ``trainer.loss_weights`` names no term, or one with a schedule of its own.
        """
        for name in self.weights:
            if name in scheduled:
                raise ConfigError(f"trainer.loss_weights: '{name}' has its weight in framework.auxiliary")
            if name not in terms:
                raise ConfigError(f"trainer.loss_weights: no loss term '{name}'{suggest(name, terms)}")

    def __call__(
        self, terms: Mapping[str, Tensor], share: Tensor, scheduled: Mapping[str, float]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss to differentiate, and the terms weighted by their share, for the log.

        Raises:
            ConfigError: as :meth:`check`.
        """
        self.check(terms, scheduled)
        weights = {**self.weights, **scheduled}
        shared = {
            name: term * share[KINDS.index(self.means.get(name, "actions"))] for name, term in terms.items()
        }
        weighed = [weights.get(name, 1.0) * self._scale(name) * term for name, term in shared.items()]
        loss = torch.stack(weighed).sum()
        return loss, shared


def balance_of(model: Any, engine: Engine, config: RunConfig, terms: Sequence[str]) -> Balance:
    """As a run's config asks for; ``terms``: names of the model's, () where they are not known yet.

    Raises:
        ConfigError: as :meth:`Balance.check`.
    """
    settings = config.trainer
    balance = Balance(means_of(model), engine, settings.loss_weights, settings.loss_scale.of(config.job))
    if terms:
        balance.check(terms, weights_at(model, 1))
    return balance
