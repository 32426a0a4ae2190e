"""The config of a run: what can be set in YAML and on the command line outside ``framework``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING
from vla_core.errors import ConfigError, suggest

from vla_train.conversation_config import ConversationsConfig, Job, LossScale, choose_job
from vla_train.lora import LoRAConfig


@dataclass(frozen=True)
class DatasetsConfig:
    """What to train on.

    Args:
        train: one ``{name: <source>, **its Config}`` a data set; they must describe the same robot.
        vlm: conversations that the backbone learns from, see :class:`ConversationsConfig`; null: none.
        val_fraction: share of the episodes held out for validation (0: none), chosen at random but
            always alike.
        num_workers: processes that decode and collate (0: in the training process).
        ram_cache: keep images in memory as they are before the first random transform.
    """

    train: list[dict[str, Any]] = field(default_factory=list)
    vlm: ConversationsConfig | None = None
    val_fraction: float = 0.1
    num_workers: int = 0
    ram_cache: bool = False

    def __post_init__(self) -> None:
        if not self.train and self.vlm is None:
            raise ConfigError(
                "'datasets.train' must list at least one data set, e.g. [{name: lerobot, path: DIR}]"
            )
        if not 0 <= self.val_fraction < 1:
            raise ConfigError(f"datasets.val_fraction must be in [0, 1), got {self.val_fraction}")
        if self.num_workers < 0:
            raise ConfigError(f"datasets.num_workers must be >= 0, got {self.num_workers}")


@dataclass(frozen=True)
class EvaluationConfig:
    """Closed-loop evaluation after training, by ``vla-serve`` and ``vla-rollout`` as processes.

    Args:
        env: name of the simulator (entry point ``vla.envs``).
        env_options: its Config, without the task.
        tasks: tasks to run; empty: no evaluation.
        episodes: episodes a task, with seeds ``seed``, ``seed + 1``, ...
        seed: first seed; keep it away from the seeds of the demonstrations.
        execute_steps: actions of a chunk executed before the next request; null: vla-rollout's own.
        workers: simulator processes.
        timeout_minutes: give up after so long.
    """

    env: str = "metaworld"
    env_options: dict[str, Any] = field(default_factory=dict)
    tasks: tuple[str, ...] = ()
    episodes: int = 20
    seed: int = 10_000
    execute_steps: int | None = None
    workers: int = 2
    timeout_minutes: float = 60.0

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.workers < 1:
            raise ConfigError("trainer.evaluation.episodes and .workers must be at least 1")
        if self.seed < 0:
            raise ConfigError(f"trainer.evaluation.seed must be at least 0, got {self.seed}")
        if not 0 < self.timeout_minutes < math.inf:
            raise ConfigError(
                f"trainer.evaluation.timeout_minutes must be positive and finite, got {self.timeout_minutes}"
            )


@dataclass(frozen=True)
class TrainerConfig:
    """How to train.

    Args:
        job: ``vla`` trains a policy on ``datasets.train``, ``vlm`` its backbone alone on ``datasets.vlm``,
            ``cotrain`` both at once, with one batch of either in every step; null: the job that the given
            data are for. Data that a named job doesn't use are left alone.
        max_steps: optimisation steps.
        batch_size: samples a step and process, before gradient accumulation.
        gradient_accumulation_steps: micro-batches a step.
        learning_rate: ``base``, and any module prefix (``vlm``, ``vlm.model.visual``, ``head``) -> its own.
        schedule: after the warm-up ``cosine`` and ``linear`` fall to ``min_lr_ratio`` of the learning rate at
            the last step, ``constant`` stays, ``wsd`` stays and falls linearly over the last ``decay_ratio``
            of the steps. ``cosine_with_min_lr`` is another name of ``cosine``.
        min_lr_ratio: see ``schedule``.
        decay_ratio: of ``wsd``.
        warmup_steps: linear warm-up.
        warmup_ratio: the same as a share of ``max_steps``, instead of ``warmup_steps``; null: not used.
        betas, eps, weight_decay: AdamW; weight decay is for matrices only.
        clip_norm: largest gradient norm (0: no clipping).
        ema_decay: exponential moving average of the weights, which validation, checkpoints and so
            the served policy use (0: off).
        freeze_modules: what does not train: module prefixes, or regular expressions for whole names of
            parameters.
        lora: adapters instead of the weights themselves, see :class:`~vla_train.lora.LoRAConfig`; null:
            all that is not frozen trains.
        loss_weights: loss term -> weight; terms not named weigh 1.
        loss_scale: weights of the two losses of ``job: cotrain``, see :class:`LossScale`.
        precision: ``fp32``, or ``bf16`` (autocast; under DeepSpeed bf16 weights with fp32 masters).
        device: ``auto`` takes CUDA where there is one; ``cuda`` without one is an error.
        threads: CPU threads of the training process (0: torch's own choice).
        log_every, val_every, save_every: in steps; 0: no validation or saving before the last step
            (which always has both).
        val_samples: number of held-out samples a validation reads.
        keep_checkpoints: older ones are removed (0: keep all).
        save_format: ``safetensors`` or ``pt``.
        keep_best: a metric, the lowest of which has its checkpoint kept as ``checkpoints/best``, for
            example ``val/action_mae``; null: none is kept.
        patience: stop after so many validations without a new best of ``keep_best`` (0: never).
        resume: go on from the newest checkpoint of the run ``run_id``; ``auto``: if it has one, else start.
        pretrained_checkpoint: checkpoint whose weights to start from.
        keep_statistics: normalise with its statistics instead of those of the data.
        reload_modules: only these module prefixes of it (empty: all).
        evaluation: closed-loop evaluation at the end.
    """

    job: Job | None = None
    max_steps: int = 10_000
    batch_size: int = 16
    gradient_accumulation_steps: int = 1
    learning_rate: dict[str, Any] = field(default_factory=lambda: {"base": 1e-4})
    schedule: Literal["cosine", "cosine_with_min_lr", "linear", "wsd", "constant"] = "cosine"
    min_lr_ratio: float = 0.01
    decay_ratio: float = 0.1
    warmup_steps: int = 500
    warmup_ratio: float | None = None
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    ema_decay: float = 0.0
    freeze_modules: tuple[str, ...] = ()
    lora: LoRAConfig | None = None
    loss_weights: dict[str, float] = field(default_factory=dict)
    loss_scale: LossScale = field(default_factory=LossScale)
    precision: Literal["fp32", "bf16"] = "fp32"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    log_every: int = 10
    val_every: int = 500
    val_samples: int = 256
    save_every: int = 0
    keep_checkpoints: int = 2
    save_format: Literal["safetensors", "pt"] = "safetensors"
    keep_best: str | None = None
    patience: int = 0
    resume: bool | Literal["auto"] = False
    pretrained_checkpoint: str | None = None
    keep_statistics: bool = False
    reload_modules: tuple[str, ...] = ()
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "gradient_accumulation_steps", "log_every", "val_samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"trainer.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warmup_steps", "val_every", "save_every", "keep_checkpoints", "threads"):
            if getattr(self, name) < 0:
                raise ConfigError(f"trainer.{name} must be >= 0, got {getattr(self, name)}")
        for name in ("ema_decay", "betas"):
            value = getattr(self, name)
            if not all(0 <= number < 1 for number in (value if isinstance(value, tuple) else (value,))):
                raise ConfigError(f"trainer.{name} must be in [0, 1), got {value}")
        for name in ("eps", "weight_decay", "clip_norm", "patience"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ConfigError(f"trainer.{name} must be >= 0 and finite, got {getattr(self, name)}")
        for name in ("min_lr_ratio", "decay_ratio", "warmup_ratio"):
            share = getattr(self, name)
            if share is not None and not 0 <= share <= 1:
                raise ConfigError(f"trainer.{name} must be in [0, 1], got {share}")
        if self.reload_modules and self.pretrained_checkpoint is None:
            raise ConfigError("trainer.reload_modules is set, but trainer.pretrained_checkpoint is not")
        if self.keep_statistics and self.pretrained_checkpoint is None:
            raise ConfigError("trainer.keep_statistics is set, but trainer.pretrained_checkpoint is not")
        if self.patience and self.keep_best is None:
            raise ConfigError("trainer.patience needs trainer.keep_best, e.g. val/action_mae")
        self.learning_rates()

    def warmup(self) -> int:
        """Steps of warm-up."""
        if self.warmup_ratio is None:
            return self.warmup_steps
        return round(self.warmup_ratio * self.max_steps)

    def learning_rates(self) -> dict[str, float]:
        """Flat prefix -> learning rate, with ``base``."""
        flat: dict[str, float] = {}

        def walk(node: dict[str, Any], prefix: str) -> None:
            for key, value in node.items():
                name = f"{prefix}.{key}" if prefix else str(key)
                if isinstance(value, dict):
                    walk(value, name)
                elif isinstance(value, int | float | str):
                    try:
                        flat[name] = float(value)
                    except ValueError:
                        raise ConfigError(
                            f"trainer.learning_rate.{name} must be a number, got '{value}'"
                        ) from None
                    if not 0 <= flat[name] < math.inf:
                        raise ConfigError(
                            f"trainer.learning_rate.{name} must be >= 0 and finite, got {value}"
                        )
                else:
                    raise ConfigError(f"trainer.learning_rate.{name} must be a number, got {value!r}")

        walk(self.learning_rate, "")
        if "base" not in flat:
            raise ConfigError("trainer.learning_rate needs 'base', e.g. {base: 1e-4, vlm: 1e-5}")
        return flat


TRACKERS = ("jsonl", "tensorboard")


@dataclass(frozen=True)
class RunConfig:
    """The whole config; ``framework`` is validated by :class:`vla_core.FrameworkConfig`.

    Args:
        framework: preset name and changes to it.
        datasets: see :class:`DatasetsConfig`.
        trainer: see :class:`TrainerConfig`.
        run_root_dir: where runs live.
        run_id: name of the run's folder; null: framework name, date and time.
        seed: of weights, order, augmentation, noise and time.
        trackers: of ``jsonl`` and ``tensorboard``.
    """

    framework: dict[str, Any] = field(default_factory=lambda: MISSING)
    datasets: DatasetsConfig = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    run_root_dir: str = "runs"
    run_id: str | None = None
    seed: int = 0
    trackers: tuple[str, ...] = TRACKERS

    def __post_init__(self) -> None:
        if self.run_id is not None and not re.fullmatch(r"(?!\.)[^/\\\0]+", self.run_id):
            raise ConfigError(
                f"run_id must be the name of one folder (in run_root_dir), without '/', got '{self.run_id}'"
            )
        if self.seed < 0:
            raise ConfigError(f"seed must be at least 0, got {self.seed}")
        if self.job == "vlm":
            self._check_robotless()
        for name in self.trackers:
            if name not in TRACKERS:
                raise ConfigError(f"trackers: no tracker '{name}'{suggest(name, TRACKERS)}")

    @property
    def job(self) -> Job:
        """What the run trains."""
        datasets = self.datasets
        return choose_job(self.trainer.job, bool(datasets.train), datasets.vlm is not None)

    def _check_robotless(self) -> None:
        trainer = self.trainer
        asked = {
            "trainer.evaluation.tasks": trainer.evaluation.tasks,
            "trainer.keep_best": trainer.keep_best,
            "trainer.keep_statistics": trainer.keep_statistics,
        }
        for key, value in asked.items():
            if value:
                raise ConfigError(
                    f"{key}: a run without robots (trainer.job: vlm) has no policy to try; leave it out"
                )
