"""What can be set about conversations: ``datasets.vlm``, and the weights of the two losses of co-training."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from vla_core.errors import ConfigError
from vla_core.ranges import Count, NonNegative, check_ranges

Job = Literal["vla", "vlm", "cotrain"]


@dataclass(frozen=True)
class ConversationsConfig:
    """Conversations that the backbone learns from.

    Args:
        sources: one ``{name: llava, **its Config}`` a data set; they are joined, and an epoch holds each
            conversation once.
        batch_size: conversations a step and process, before gradient accumulation; null:
            ``trainer.batch_size``.
        max_tokens: length of a row; a longer conversation is an error.
        pack: put several conversations into a row where they fit; else each is padded.
        image_size: (height, width) of all images; null: that of the robot's cameras after the transforms, and
            in a run without robots that of the ``resize`` in ``framework.transforms``.
    """

    sources: list[dict[str, Any]] = field(default_factory=list)
    batch_size: Count | None = None
    max_tokens: Count = 2048
    pack: bool = True
    image_size: tuple[Count, Count] | None = None

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError(
                "'datasets.vlm.sources' must list at least one, e.g. [{name: llava, annotation_path: FILE}]"
            )
        check_ranges(self, "datasets.vlm.")


@dataclass(frozen=True)
class LossScale:
    """Weights of the losses of ``trainer.job``.

    Args:
        vla: of all terms of the robots' batch together.
        vlm: of the conversations' term in job ``cotrain``; in job ``vlm`` there is no other, and it weighs 1.
    """

    vla: NonNegative = 1.0
    vlm: NonNegative = 0.1

    def __post_init__(self) -> None:
        check_ranges(self, "trainer.loss_scale.")

    def check(self, job: Job) -> None:
        """Raise :class:`ConfigError` where all that a job trains on weighs nothing."""
        held = self.of(job)
        if job == "cotrain" and held.vla == held.vlm == 0:
            raise ConfigError("trainer.loss_scale: vla and vlm are 0, so nothing would be learned; raise one")
        if job == "vla" and held.vla == 0:
            raise ConfigError("trainer.loss_scale.vla is 0, so nothing would be learned; raise it")

    def of(self, job: Job) -> LossScale:
        """The weights that hold in a job."""
        return LossScale(self.vla, self.vlm if job == "cotrain" else 1.0)


def choose_job(named: Job | None, robots: bool, conversations: bool) -> Job:
    """The job of a run: the one that is named, or the one that the data are for.

    Raises:
        ConfigError: data that the named job needs are missing.
    """
    if named is None:
        return "cotrain" if robots and conversations else "vla" if robots else "vlm"
    missing = [
        key
        for key, needed, given in (
            ("datasets.train", named != "vlm", robots),
            ("datasets.vlm", named != "vla", conversations),
        )
        if needed and not given
    ]
    if missing:
        raise ConfigError(
            f"trainer.job: {named} needs {' and '.join(missing)}; set it, or choose another job"
        )
    return named
