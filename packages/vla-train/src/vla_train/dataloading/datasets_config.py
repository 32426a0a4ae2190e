"""The ``datasets`` section of a config."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from vla_core.errors import ConfigError, suggest
from vla_core.ranges import BelowOne, Count, Natural, Share, check_ranges

from vla_train.augment.config import AugmentationConfig
from vla_train.dataloading.conversation_config import ConversationsConfig


@dataclass(frozen=True)
class DatasetsConfig:
    """What to train on.

    Args:
        train: one ``{name: <source>, **its Config}`` a data set, of one robot or of several. Each may also
            have ``weight`` (how often an epoch holds each of its samples, 1 unless set), ``label`` (what its
            figures are called) and ``embodiment`` (the robot's name instead of the one that the data set
            gives).
        vlm: conversations that the backbone learns from, see
            :class:`~vla_train.dataloading.conversation_config.ConversationsConfig`; null: none.
        mixtures: name -> a list like ``train``.
        mixture: train on that one of ``mixtures``, instead of ``train``.
        val_fraction: share of the episodes held out for validation (0: none), chosen at random but
            always alike.
        num_workers: processes that decode and collate (0: in the training process).
        neighbours: samples that follow each other in an episode and are drawn together. Batches are less
            mixed, and videos are decoded forward: worth it with a history of frames, or with few key frames
            (see :class:`~vla_data.mixture.Mixture`).
        ram_cache: keep images in memory as they are before the first random transform.
        augmentation: random changes of training batches, see :class:`~vla_train.augment.AugmentationConfig`.
        on_bad_sample: ``error`` stops at a sample that cannot be read; ``quarantine`` notes data set, episode
            and frame in the run's ``quarantine.jsonl``, takes another sample of the same data set, and
            counts.
        bad_sample_budget: most samples that may be quarantined, as a share of an epoch.
        fit_cache: keep what is learned from the numbers (statistics, tokenizers) in
            ``run_root_dir/.fitted``, for later runs on the same numbers.
    """

    train: list[dict[str, Any]] = field(default_factory=list)
    vlm: ConversationsConfig | None = None
    mixtures: dict[str, Any] = field(default_factory=dict)
    mixture: str | None = None
    val_fraction: BelowOne = 0.1
    num_workers: Natural = 0
    neighbours: Count = 1
    ram_cache: bool = False
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    on_bad_sample: Literal["error", "quarantine"] = "error"
    bad_sample_budget: Share = 0.01
    fit_cache: bool = True

    def __post_init__(self) -> None:
        if self.mixture is not None and self.mixture not in self.mixtures:
            raise ConfigError(
                f"datasets.mixture: no mixture '{self.mixture}'{suggest(self.mixture, self.mixtures)}"
            )
        if self.mixture is not None and self.train:
            raise ConfigError("datasets.mixture and datasets.train are both set; leave one out")
        for name, nodes in self.mixtures.items():
            if not isinstance(nodes, list) or not nodes or not all(isinstance(n, dict) for n in nodes):
                raise ConfigError(
                    f"datasets.mixtures.{name} must list data sets like datasets.train, "
                    "e.g. [{name: lerobot, path: DIR, weight: 2}]"
                )
        if not self.train and self.mixture is None and self.vlm is None:
            raise ConfigError(
                "'datasets.train' must list at least one data set, e.g. [{name: lerobot, path: DIR}]"
            )
        check_ranges(self, "datasets.")

    def entries(self) -> list[tuple[str, dict[str, Any]]]:
        """(dotted key, node) of each data set to train on."""
        if self.mixture is None:
            return [(f"datasets.train.{i}", node) for i, node in enumerate(self.train)]
        where = f"datasets.mixtures.{self.mixture}"
        return [(f"{where}.{i}", node) for i, node in enumerate(self.mixtures[self.mixture])]
