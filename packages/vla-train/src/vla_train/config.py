"""The config of a run: what can be set in YAML and on the command line outside ``framework``."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, Literal

from omegaconf import MISSING
from vla_core.errors import ConfigError, suggest
from vla_core.ranges import BelowOne, Count, Natural, NonNegative, Positive, Range, Seed, Share, check_ranges

from vla_train.dataloading.conversation_config import Job, LossScale, choose_job
from vla_train.dataloading.datasets_config import DatasetsConfig as DatasetsConfig
from vla_train.elsewhere import ENGINES, PRECISIONS
from vla_train.evaluation.evaluation_config import EvaluationConfig as EvaluationConfig
from vla_train.lora import LoRAConfig
from vla_train.monitoring.trackers import TRACKERS, TrackingConfig


def _listed(names: tuple[str, ...] | str) -> tuple[str, ...]:
    """``a, b`` as a list of names."""
    if not isinstance(names, str):
        return names
    return tuple(name.strip() for name in names.split(",") if name.strip())


RATE = Range(low=0)
"""Of every number in ``trainer.learning_rate``, however deep."""


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
        skip_bad_steps: steps that may be left out, by all processes, because the loss or its gradient is not
            finite on one of them; their samples are named (``bad_steps.jsonl``). One more ends the run. 0:
            the first one does.
        ema_decay: exponential moving average of the weights, which validation, checkpoints and so
            the served policy use (0: off).
        freeze_modules: what does not train: module prefixes, or regular expressions for whole names of
            parameters; a list, or ``a, b`` (an expression with a comma needs the list). One that names
            nothing is an error.
        unfreeze: step -> what is frozen before it and trains from it on, written as ``freeze_modules``, for
            example ``{1000: [vlm.model.language_model], 2000: [vlm]}``. The schedule is that of the run.
        lora: adapters instead of the weights themselves, see :class:`~vla_train.lora.LoRAConfig`; null:
            all that is not frozen trains.
        loss_weights: loss term -> weight; terms not named weigh 1.
        loss_scale: weights of the two losses of ``job: cotrain``, see :class:`LossScale`.
        precision: ``fp32``; ``bf16``: weights and computation in bf16, and fp32 masters that the optimizer
            steps (on every engine); ``autocast``: fp32 weights, matrix products in bf16 (slower).
        sharding: ``fsdp2`` spreads parameters, gradients and optimizer state over the processes of
            ``torchrun``; so does ``accelerate launch`` with ``configs/accelerate/fsdp2.yaml``.
        reshard: of FSDP2 alone: a layer's weights are freed after its forward pass and gathered again for its
            backward pass. ``false`` gathers them once a step, which takes the room of all weights.
        prefetch: of FSDP2 alone: groups of layers gathered ahead of the one that computes (0: as the engine
            does by itself, which is late where the CPU is).
        gather_mb: of FSDP2 alone: megabytes of weights that are gathered at once: neighbouring layers of one
            kind, at least one (0: each layer by itself, which takes less memory and more of the CPU's time).
        bucket_mb: megabytes of gradients that are exchanged at once, of DDP and ZeRO; of ZeRO-1 and 2 also of
            weights. A file of DeepSpeed's own settings goes before. FSDP2 refuses it, one process has no use
            for it.
        moments: type of AdamW's two moments. ``bf16`` saves 4 bytes a weight, and wants the second of
            ``betas`` to be at most 0.99; ``8bit`` saves 6 (torchao).
        compile: ``blocks`` compiles the blocks that a model repeats, in the first steps. ZeRO-3 refuses it.
        fp8: ``linears``: large linear layers of backbone and head multiply in 8-bit floats (torchao; GPUs
            from compute capability 8.9 on). It needs ``precision: bf16``, gains with ``compile: blocks``, and
            works in one process, under DDP and FSDP2. ``emulated``: layers of any size, with the numbers
            of fp8 and without its speed, on any device.
        activation_budget: of compiled blocks: share of the memory for activations that is kept for the
            backward pass; the rest is computed again, what is cheapest first.
        device: ``auto`` takes CUDA where there is one; ``cuda`` without one is an error.
        threads: CPU threads of the training process (0: torch's own choice).
        peak_tflops: TFLOP/s of one process's chip, for the MFU in progress and metrics; null: what the maker
            of a known GPU states for dense bf16, and no MFU on others.
        log_every, val_every, save_every: in steps; 0: no validation or saving before the last step
            (which always has both).
        val_samples: number of held-out samples a validation reads.
        keep_checkpoints: older ones are removed (0: keep all).
        save_format: ``safetensors`` or ``pt``.
        save_resume: keep the state that ``resume`` goes on from beside the checkpoints; it takes several
            times their space.
        async_save: write checkpoints and states beside the training, from a copy in host memory; each process
            copies and writes what it holds.
        keep_states: how many of the states that ``resume`` goes on from are kept (0: two with ``auto``, which
            steps back where the newest is damaged, else one).
        hang_timeout_s: of several processes, one that reads data or computes for so long at one step, or that
            is gone (noticed within 45 s), ends all with one line that names it (0: wait on).
        keep_best: a metric, the lowest of which has its checkpoint kept as ``checkpoints/best``, for
            example ``val/action_mae``; null: none is kept.
        patience: stop after so many validations without a new best of ``keep_best`` (0: never).
        resume: go on from the newest checkpoint of the run ``run_id``; ``auto``: from the newest whole one,
            if it has one, else start.
        pretrained_checkpoint: checkpoint whose weights to start from.
        keep_statistics: normalise with its statistics instead of those of the data.
        reload_modules: only these module prefixes of it, written as ``freeze_modules`` (empty: all).
        evaluation: closed-loop evaluation at the end.
    """

    job: Job | None = None
    max_steps: Count = 10_000
    batch_size: Count = 16
    gradient_accumulation_steps: Count = 1
    learning_rate: dict[str, Any] = field(default_factory=lambda: {"base": 1e-4})
    schedule: Literal["cosine", "cosine_with_min_lr", "linear", "wsd", "constant"] = "cosine"
    min_lr_ratio: Share = 0.01
    decay_ratio: Share = 0.1
    warmup_steps: Natural = 500
    warmup_ratio: Share | None = None
    betas: tuple[BelowOne, BelowOne] = (0.9, 0.95)
    eps: NonNegative = 1e-8
    weight_decay: NonNegative = 0.01
    clip_norm: NonNegative = 1.0
    skip_bad_steps: Natural = 0
    ema_decay: BelowOne = 0.0
    freeze_modules: tuple[str, ...] | str = ()
    unfreeze: dict[Any, Any] = field(default_factory=dict)
    lora: LoRAConfig | None = None
    loss_weights: dict[str, NonNegative] = field(default_factory=dict)
    loss_scale: LossScale = field(default_factory=LossScale)
    precision: Literal["fp32", "bf16", "autocast"] = field(default="fp32", metadata=PRECISIONS)
    sharding: Literal["off", "fsdp2"] = field(default="off", metadata=ENGINES)
    reshard: bool = True
    prefetch: Natural = 1
    gather_mb: Natural = 500
    bucket_mb: Count = 100
    moments: Literal["fp32", "bf16", "8bit"] = "fp32"
    compile: Literal["off", "blocks"] = "off"
    fp8: Literal["off", "linears", "emulated"] = "off"
    activation_budget: Share = 1.0
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: Natural = 0
    peak_tflops: Positive | None = None
    log_every: Count = 10
    val_every: Natural = 500
    val_samples: Count = 256
    save_every: Natural = 0
    keep_checkpoints: Natural = 2
    save_format: Literal["safetensors", "pt"] = "safetensors"
    save_resume: bool = True
    async_save: bool = False
    keep_states: Natural = 0
    hang_timeout_s: NonNegative = 600.0
    keep_best: str | None = None
    patience: Natural = 0
    resume: bool | Literal["auto"] = False
    pretrained_checkpoint: str | None = None
    keep_statistics: bool = False
    reload_modules: tuple[str, ...] | str = ()
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)

    def __post_init__(self) -> None:
        check_ranges(self, "trainer.")
        for key in ("freeze_modules", "reload_modules"):
            object.__setattr__(self, key, _listed(getattr(self, key)))
        if self.moments == "bf16" and self.betas[1] > 0.99:
            raise ConfigError(
                f"trainer.moments: bf16 would round away what a step adds with betas[1] {self.betas[1]}; set "
                "moments: fp32, or betas: [0.9, 0.95]"
            )
        if self.activation_budget != 1 and self.compile == "off":
            raise ConfigError("trainer.activation_budget is of compiled blocks; set trainer.compile: blocks")
        for key in ("reload_modules", "keep_statistics"):
            if getattr(self, key) and self.pretrained_checkpoint is None:
                raise ConfigError(f"trainer.{key} is set, but trainer.pretrained_checkpoint is not")
        if self.patience and self.keep_best is None:
            raise ConfigError("trainer.patience needs trainer.keep_best, e.g. val/action_mae")
        if (best := self.keep_best or "").startswith("rollout/"):
            if not (self.evaluation.every and self.evaluation.tasks):
                raise ConfigError(f"trainer.keep_best: '{best}' needs trainer.evaluation.every and .tasks")
            if best != "rollout/failure":
                raise ConfigError(
                    f"trainer.keep_best: the lowest is kept; name rollout/failure, not '{best}'"
                )
        elif self.patience and not self.val_every:
            raise ConfigError("trainer.patience counts validations; set trainer.val_every")
        self.learning_rates()
        self.stages()

    def stages(self) -> dict[int, tuple[str, ...]]:
        """``unfreeze`` as numbers and names."""
        found = {}
        for step, entries in self.unfreeze.items():
            if not str(step).isdecimal() or int(step) < 2:
                raise ConfigError(
                    f"trainer.unfreeze: '{step}' is no step after the first; write {{1000: [vlm]}}"
                )
            names = entries if isinstance(entries, str) else tuple(entries or ())
            if not names or not all(isinstance(name, str) for name in names):
                raise ConfigError(f"trainer.unfreeze.{step} must name modules, got {entries!r}")
            found[int(step)] = _listed(names)
        return found

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
                    if problem := RATE.problem(flat[name]):
                        raise ConfigError(f"trainer.learning_rate.{name}: {problem}")
                else:
                    raise ConfigError(f"trainer.learning_rate.{name} must be a number, got {value!r}")

        walk(self.learning_rate, "")
        if "base" not in flat:
            raise ConfigError("trainer.learning_rate needs 'base', e.g. {base: 1e-4, vlm: 1e-5}")
        return flat


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
        trackers: of ``jsonl`` (``metrics.jsonl``, which is written whether it is named or not),
            ``tensorboard``, ``wandb`` and ``trackio``.
        tracking: where the last two put the run, see :class:`~vla_train.monitoring.trackers.TrackingConfig`.
    """

    framework: dict[str, Any] = field(default_factory=lambda: MISSING)
    datasets: DatasetsConfig = MISSING
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    run_root_dir: str = "runs"
    run_id: str | None = None
    seed: Seed = 0
    trackers: tuple[str, ...] = ("jsonl", "tensorboard")
    tracking: TrackingConfig = field(default_factory=TrackingConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "trackers", tuple(dict.fromkeys(("jsonl", *self.trackers))))
        if self.run_id is not None and not re.fullmatch(r"(?!\.)[^/\\\0]+", self.run_id):
            raise ConfigError(
                f"run_id must be the name of one folder (in run_root_dir), without '/', got '{self.run_id}'"
            )
        check_ranges(self)
        self.trainer.loss_scale.check(self.job)
        if self.job == "vlm":
            self._check_robotless()
        for name in self.trackers:
            if name not in TRACKERS:
                raise ConfigError(f"trackers: no tracker '{name}'{suggest(name, TRACKERS)}")

    @property
    def job(self) -> Job:
        """What the run trains."""
        return choose_job(self.trainer.job, bool(self.datasets.entries()), self.datasets.vlm is not None)

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
