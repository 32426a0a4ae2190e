"""The training loop, on one device or many (through accelerate)."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader
from vla_core.batch import Batch
from vla_core.config import to_plain
from vla_core.errors import ConfigError, UserError, suggest
from vla_core.policy import VLAPolicy

from vla_train import resume
from vla_train.auxiliary import wants_future, weights_at
from vla_train.composition import Composed
from vla_train.data import Collate, InfiniteBatches, TransformedDataset
from vla_train.ema import EMA
from vla_train.lora import apply_lora, merged_state
from vla_train.meter import Meter
from vla_train.optim import freeze, lr_factor, parameter_groups
from vla_train.progress import ProgressBar
from vla_train.run_info import describe_run
from vla_train.trackers import make_trackers
from vla_train.validate import Validation


@dataclass(frozen=True)
class Outcome:
    """What :meth:`Trainer.train` leaves: the last checkpoint and the last validation."""

    checkpoint: Path
    metrics: dict[str, float]


class Trainer:
    """Trains a composed policy.

    Args:
        composed: config, data and policy.
        run_dir: where everything is written.
        console: for progress.
        command: how the run was started, for the report.
    """

    def __init__(
        self, composed: Composed, run_dir: Path, console: Console | None = None, command: str = ""
    ) -> None:
        self.config = composed.config
        self.settings = composed.config.trainer
        self.composed, self.run_dir, self.command = composed, run_dir, command
        self.console = console or Console()
        if self.settings.threads:
            torch.set_num_threads(self.settings.threads)
        if self.settings.device == "cpu" and os.environ.get("ACCELERATE_USE_DEEPSPEED") == "true":
            raise ConfigError(
                "trainer.device: cpu would leave DeepSpeed out in silence; use trainer.device=auto "
                "(with the environment variable DS_ACCELERATOR=cpu, DeepSpeed itself runs on the CPU)"
            )
        if self.settings.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("trainer.device is 'cuda', and torch sees no CUDA device; use 'auto' or 'cpu'")
        self.accelerator = Accelerator(
            cpu=self.settings.device == "cpu",
            mixed_precision="bf16" if self.settings.precision == "bf16" else "no",
            gradient_accumulation_steps=self.settings.gradient_accumulation_steps,
            # The default would move batches by looking inside them; ours move themselves.
            dataloader_config=DataLoaderConfiguration(dispatch_batches=False),
        )
        self.device = self.accelerator.device
        policy = composed.policy
        if self.settings.lora is not None:
            apply_lora(policy.model, self.settings.lora)
        freeze(policy.model, self.settings.freeze_modules)
        self.pipeline = next(iter(policy.pipelines.values()))
        assert policy.collator is not None
        data, datasets = composed.data, self.config.datasets
        future = wants_future(policy, data.train, self.settings.batch_size)
        self.collate = Collate(policy.collator, future)
        self.dataset = TransformedDataset(
            data.train, self.pipeline, self.config.seed, datasets.ram_cache, future
        )
        self.validation: Validation | None = None
        if data.val:
            held = TransformedDataset(data.val, self.pipeline, None, datasets.ram_cache)
            self.validation = Validation(
                held,
                Collate(policy.collator),
                self.pipeline,
                self.settings.val_samples,
                self.settings.batch_size,
            )
        optimizer = torch.optim.AdamW(
            parameter_groups(policy.model, self.settings),
            betas=self.settings.betas,
            eps=self.settings.eps,
            fused=self.device.type == "cuda",
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_factor(self.settings))
        plugin = self.accelerator.state.deepspeed_plugin
        if plugin is not None:
            # DeepSpeed accumulates, clips and steps inside backward(), by its own config: it gets ours.
            plugin.deepspeed_config.update(
                train_micro_batch_size_per_gpu=self.settings.batch_size,
                gradient_accumulation_steps=self.settings.gradient_accumulation_steps,
                gradient_clipping=self.settings.clip_norm,
            )
        self.model, self.optimizer = self.accelerator.prepare(policy.model, optimizer)
        # Not prepared: accelerate would step it once for every process.
        self.scheduler = scheduler
        # Engines wrap this very object; accelerate's unwrap_model would import DeepSpeed to say so.
        self.policy: VLAPolicy = policy
        self.ema = EMA(self.policy.model, self.settings.ema_decay) if self.settings.ema_decay else None
        self.accelerator.register_for_checkpointing(*[x for x in (self.scheduler, self.ema) if x])

    def _loader(self, start: int) -> Iterator[Batch]:
        batches = InfiniteBatches(
            len(self.dataset),
            self.settings.batch_size,
            self.config.seed,
            self.accelerator.process_index,
            self.accelerator.num_processes,
            start * self.settings.gradient_accumulation_steps,
        )
        workers = self.config.datasets.num_workers
        return iter(
            DataLoader(
                self.dataset,
                batch_sampler=batches,
                collate_fn=self.collate,
                num_workers=workers,
                pin_memory=self.device.type == "cuda",
                prefetch_factor=4 if workers else None,
                # Worker seeds must not draw from the generator that gives the noise: resuming
                # would shift it.
                generator=torch.Generator().manual_seed(self.config.seed),
            )
        )

    def _averaged(self) -> AbstractContextManager[None]:
        return self.ema.applied() if self.ema else nullcontext()

    def train(self) -> Outcome:
        """Run to ``max_steps``; returns the last checkpoint."""
        settings, accelerator = self.settings, self.accelerator
        main = accelerator.is_main_process
        start = resume.load(accelerator, self.run_dir) if settings.resume else 0
        trackers = make_trackers(self.config.trackers, self.run_dir, start) if main else []
        loader = self._loader(start)
        meter = Meter(settings.batch_size * accelerator.num_processes)
        latest: dict[str, float] = {}
        outcome = self.run_dir / "checkpoints" / f"steps_{start}"
        with ProgressBar(settings.max_steps, start, self.console, main) as progress:
            for step in range(start + 1, settings.max_steps + 1):
                self.model.train()
                weights = weights_at(self.policy, step)
                for _ in range(settings.gradient_accumulation_steps):
                    with meter.waiting():
                        batch = next(loader).to(self.device, non_blocking=True)
                    with accelerator.accumulate(self.model):
                        terms = self._terms(batch, weights)
                        loss = self._weighted(terms, weights)
                        accelerator.backward(loss)
                        if accelerator.sync_gradients and settings.clip_norm:
                            meter.grad_norm = accelerator.clip_grad_norm_(
                                self.model.parameters(), settings.clip_norm
                            )
                        self.optimizer.step()
                        self.optimizer.zero_grad()
                    meter.add(loss, terms)
                self.scheduler.step()
                if self.ema:
                    self.ema.update()
                if step % settings.log_every == 0 or step == settings.max_steps:
                    # The one place where the loop waits for the device.
                    metrics = meter.read() | self._rates()
                    metrics |= {f"loss_weight/{name}": weight for name, weight in weights.items()}
                    if not _finite(metrics["loss"]):
                        raise UserError(
                            f"the loss is {metrics['loss']} at step {step}; lower trainer.learning_rate or "
                            f"raise trainer.warmup_steps, and check {self.run_dir / 'metrics.jsonl'}"
                        )
                    progress.update(step, metrics)
                    for tracker in trackers:
                        tracker.log(step, metrics)
                last = step == settings.max_steps
                validate = last or (settings.val_every and step % settings.val_every == 0)
                if self.validation and main and validate:
                    with self._averaged(), meter.paused():
                        latest = self.validation(self.policy, self.device)
                    progress.note(
                        f"step {step}  validation: loss {latest['val/loss']:.4f}, action error "
                        f"{latest['val/action_mae']:.4f} (mean action: {latest['val/mean_action_mae']:.4f})"
                    )
                    for tracker in trackers:
                        tracker.log(step, latest)
                if last or (settings.save_every and step % settings.save_every == 0):
                    with meter.paused():
                        outcome = self._save(step)
        for tracker in trackers:
            tracker.close()
        if self.validation and main:
            with self._averaged():
                self.validation.save_predictions(self.policy, self.device, self.run_dir / "predictions.npz")
        accelerator.wait_for_everyone()
        return Outcome(outcome, latest)

    def _terms(self, batch: Batch, scheduled: Mapping[str, float]) -> dict[str, Tensor]:
        if self.policy.model.auxiliary is None:
            return dict(self.model(batch))
        return dict(self.model(batch, auxiliary=any(scheduled.values())))

    def _weighted(self, terms: dict[str, Tensor], scheduled: Mapping[str, float]) -> Tensor:
        weights = self.settings.loss_weights
        for name in weights:
            if name in scheduled:
                raise ConfigError(f"trainer.loss_weights: '{name}' has its weight in framework.auxiliary")
            if name not in terms:
                raise ConfigError(f"trainer.loss_weights: no loss term '{name}'{suggest(name, terms)}")
        weights = {**weights, **scheduled}
        return torch.stack([weights.get(name, 1.0) * term for name, term in terms.items()]).sum()

    def _rates(self) -> dict[str, float]:
        groups = self.optimizer.param_groups
        rates = {f"lr/{group['prefix']}": float(group["lr"]) for group in groups if "prefix" in group}
        return {"lr": max(rates.values(), default=float(groups[0]["lr"])), **rates}

    def describe(self) -> dict[str, Any]:
        """Write ``run.json`` and return it."""
        self.run_dir.mkdir(parents=True, exist_ok=True)
        info = describe_run(self.composed, self.run_dir.name, str(self.device), self.command)
        path = self.run_dir / "run.json"
        if self.settings.resume and path.exists():
            info["started"] = json.loads(path.read_text())["started"]
        path.write_text(json.dumps(info, indent=1))
        return info

    def _save(self, step: int) -> Path:
        final = self.run_dir / "checkpoints" / f"steps_{step}"
        if self.accelerator.is_main_process:
            sections: dict[str, Any] = to_plain(self.config)
            with self._averaged():
                self.policy.save(
                    final,
                    step=step,
                    config=sections,
                    weights=self.settings.save_format,
                    state=merged_state(self.policy.model) if self.settings.lora is not None else None,
                )
            self._forget_old(keep=final)
        resume.save(self.accelerator, self.run_dir, step)
        return final

    def _forget_old(self, keep: Path) -> None:
        if not self.settings.keep_checkpoints:
            return
        found = sorted(keep.parent.glob("steps_*"), key=lambda p: int(p.name.rpartition("_")[2]))
        for old in found[: -self.settings.keep_checkpoints]:
            if old != keep:
                shutil.rmtree(old)


def _finite(value: float) -> bool:
    return value == value and abs(value) != float("inf")
