"""The training loop, on one device or many."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from rich.console import Console
from torch import Tensor
from vla_core.batch import Batch
from vla_core.features import ROWS
from vla_core.heap import settle_heap, settled_heap

from vla_train.augment import Augmentation, moments
from vla_train.auxiliary import weights_at
from vla_train.balance import balance_of
from vla_train.checkpointing import resume
from vla_train.checkpointing.resume import ways_on
from vla_train.checkpointing.saving import Best, Saver, best_of
from vla_train.checkpointing.states import Choice
from vla_train.compiling import compile_model
from vla_train.composition import Composed
from vla_train.dataloading.conversations import AnyBatch, together
from vla_train.dataloading.robot_data import RobotData, probe
from vla_train.engine import Engine, make_engine
from vla_train.engine.unused import unused
from vla_train.evaluation.against_mean import in_words
from vla_train.evaluation.closed_loop import ClosedLoop, due
from vla_train.guards.bad_steps import BadSteps
from vla_train.guards.exits import BrokenOff, Stopped
from vla_train.guards.guard import Guard
from vla_train.guards.peers import Peers
from vla_train.guards.stopping import Stop
from vla_train.lora import apply_lora
from vla_train.memory.activations import activations
from vla_train.memory.estimate import check_fits
from vla_train.memory.out_of_memory import explained
from vla_train.monitoring.data_meter import DataMeter
from vla_train.monitoring.flops import utilisation
from vla_train.monitoring.meter import Meter
from vla_train.monitoring.progress import ProgressBar
from vla_train.monitoring.run_info import write_run
from vla_train.monitoring.trackers import Tracked, opened
from vla_train.noise import seed_streams
from vla_train.optimizer.ema import EMA
from vla_train.optimizer.fp8 import use_fp8
from vla_train.optimizer.optim import Rates, freeze, parameter_groups
from vla_train.optimizer.precision import make_optimizer, set_precision
from vla_train.optimizer.stages import Stages
from vla_train.reach import freeze_unreached, unreached


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
        engine: what carries the steps; None: what the launcher's environment says.
        choice: the state to go on from; None: with ``trainer.resume`` the newest.

    Raises:
        UserError: settings that this process or this policy cannot train with; nothing is written.
    """

    def __init__(
        self,
        composed: Composed,
        run_dir: Path,
        console: Console | None = None,
        command: str = "",
        engine: Engine | None = None,
        choice: Choice | None = None,
    ) -> None:
        self.config, self.settings = composed.config, composed.config.trainer
        self.composed, self.run_dir, self.command = composed, run_dir, command
        self.console = console or Console()
        self.engine = engine or make_engine(self.settings)
        self.choice = choice or Choice(resume.newest(run_dir), ())
        self.device = self.engine.device
        self.model, self.conversations = composed.model, composed.conversations
        self.robots = robots = None if composed.robots is None else RobotData(composed, self.model)
        self.validation = self.robots and self.robots.validation
        augmentation = self.config.datasets.augmentation
        frames = moments(composed.policy.specs, augmentation) if self.robots else 1
        self.augment = Augmentation(augmentation, self.config.seed, self.engine.rank, frames)
        if self.robots:
            self.augment.check(composed.policy.collator.state_dim > 0)
        if self.settings.lora is not None:
            apply_lora(self.model, self.settings.lora, self.engine.sharing())
        freeze(self.model, self.settings.freeze_modules)
        set_precision(self.model, self.settings, self.engine)
        one, whole = (probe(self.robots, self.conversations, sized) for sized in (False, True))
        shapes = any(p.is_meta for p in self.model.parameters()) and not self.engine.shards
        # What keeps its parameters by shares can't compute with them yet; a large model's dry run has none.
        by_shape = self.engine.shards or shapes
        found = activations(self.model, one, self.settings, self.engine) if by_shape else None
        self.unreached = found.unreached if found else unreached(self.model, one, self.engine)
        freeze_unreached(self.model, self.unreached)
        self.stages = Stages(self.model, self.settings)
        self.activations = activations(self.model, whole, self.settings, self.engine)
        made = [do(self.model, self.settings, self.engine) for do in (use_fp8, compile_model)]
        check_fits(self.model, self.settings, self.engine)
        self.engine.split(self.model)
        self.utilisation = utilisation(self.model, one, self.engine, self.settings.peak_tflops)
        has_mfu = shapes or self.utilisation is not None
        self.notes = [*unused(self.settings, self.engine, has_mfu), *filter(None, made)]
        groups = parameter_groups(self.model, self.settings, self.stages.starts)
        self.optimizer = optimizer = make_optimizer(groups, self.settings, self.engine)
        moving = [p for p in self.model.parameters() if p.requires_grad]
        self.stages.enter(1)
        self.rates = Rates(optimizer, self.settings)
        if not shapes:
            self.engine.prepare(self.model.eval(), optimizer)
        self.by_data = DataMeter(
            robots.labels if robots else (), robots.mixture if robots else None, self.engine
        )
        self.balance = balance_of(self.model, self.engine, self.config, self.activations.terms)
        self.ema = EMA(moving, self.settings.ema_decay) if self.settings.ema_decay else None
        if self.ema:
            self.engine.remember(self.ema)
        limit = self.settings.skip_bad_steps
        bad = BadSteps(self.engine, limit, robots, self.ema, run_dir, self.console)
        self.bad_steps = bad if limit else None
        self.guard = Guard(self.engine, run_dir / "metrics.jsonl", self.bad_steps)
        self.saver = Saver(composed, self.engine, run_dir)
        self.closed_loop = ClosedLoop(self.settings.evaluation, self.engine, run_dir)
        self.stop = Stop(self.engine)
        self.trained: list[Tensor] = [p for group in optimizer.param_groups for p in group["params"]]

    def train(self) -> Outcome:
        """Run to ``max_steps``; returns the last checkpoint.

        Raises:
            UserError: data that cannot be read, or numbers that are not finite.
            Stopped: a signal asked for the end; the state is saved.
        """
        settings, engine = self.settings, self.engine
        start = resume.load(engine, self.run_dir, self.choice) if settings.resume else 0
        quarantine = self.robots.quarantine(self.run_dir, engine, self.console) if self.robots else None
        cursor: dict[str, Any] = {
            "seed": self.config.seed,
            "workers": self.config.datasets.num_workers,
            "engine": engine,
            "start": start,
        }
        robots = self.robots.feed(quarantine, **cursor) if self.robots else None
        feed = together(robots, self.conversations, **cursor)
        meter = Meter(settings.batch_size * engine.world, self.utilisation)
        memory = resume.recall(self.choice.state) if settings.resume else {}
        self.best = best = Best.of(settings.keep_best, settings.patience, best_of(self.run_dir, memory))
        if self.bad_steps:
            self.bad_steps.count = memory.get("skipped_steps", 0)
        latest: dict[str, float] = {}
        outcome = self.run_dir / "checkpoints" / f"steps_{start}"
        bar = ProgressBar(settings.max_steps, start, self.console, engine.is_main)
        writer = self.saver.writer  # it may wait for other ranks, and so ends while its peers watch
        peers = Peers(engine, meter, settings.hang_timeout_s, lambda: ways_on(self.run_dir), writer.busy)
        run = Tracked(self.run_dir, start, self.composed.resolved, self.config.tracking)
        trackers = opened(self.config.trackers, run, engine.agree)
        with trackers, bar as progress, self.stop as stop, peers, writer, closing(feed), settled_heap():
            for step in range(start + 1, settings.max_steps + 1):
                writer.check(step)
                with meter.waiting(step):
                    batches = feed.step()
                with explained(self.model, self.config, engine, step, self.activations):
                    weights = self._step(step, batches, meter)
                last = step == settings.max_steps
                if step == start + 1:
                    # What it waited for, compilation above all, is over: from here on the rate is steady.
                    self.guard.check()
                    progress.first(step)
                    settle_heap()
                if last or step % settings.log_every == 0:
                    # One of the few places where the loop waits for the device.
                    self.guard.check()
                    metrics = meter.read(engine.mean) | self.rates.read() | weights | engine.memory()
                    metrics |= self.by_data.read(step * resume.samples_a_step(settings, engine.world))
                    metrics |= quarantine.check() if quarantine else {}
                    metrics["eta_s"] = progress.left(step)
                    if self.bad_steps:
                        metrics["skipped_steps"] = self.bad_steps.count
                    progress.update(step, metrics)
                    trackers.log(step, metrics)
                stop.ask()
                if self.validation and (last or due(step, settings.val_every)):
                    self.guard.check()
                    with suppress(BrokenOff):
                        with self._averaged(), meter.paused():
                            latest = self.validation(engine, stop.breaking(progress.under_way))
                        progress.note(in_words(step, latest))
                        trackers.log(step, latest)
                        self._keep_best(step, latest)
                if self.closed_loop.due(step) and not (last or stop.agreed):
                    with meter.paused():
                        folder = self._write(step, self.run_dir / "checkpoints" / "rolled_out")
                        writer.wait()
                        rolled = self.closed_loop(step, folder, progress.note, stop)
                    trackers.log(step, rolled)
                    self._keep_best(step, rolled)
                last = last or progress.over(best.over())
                if last or stop.agreed or due(step, settings.save_every):
                    with meter.paused():
                        outcome = self._save(step)
                if last or stop.agreed:
                    writer.wait()
                if stop.agreed:
                    raise Stopped(f"after step {step}", outcome, ways_on(self.run_dir))
                if last:
                    break
        if self.validation:
            with self._averaged():
                self.validation.save_predictions(engine, self.run_dir / "predictions.npz", bar.under_way)
        engine.wait()
        return Outcome(outcome, latest)

    def _step(self, step: int, batches: Sequence[AnyBatch], meter: Meter) -> dict[str, float]:
        """One optimisation step; returns the scheduled weights of auxiliary terms, for the log."""
        shares = self.balance.shares(batches)
        engine, scheduled = self.engine, weights_at(self.model, step)
        if not self.model.training:  # to look at each of a thousand modules takes milliseconds
            engine.module.train()
        if self.stages.enter(step):
            engine.regroup()
        self.rates.apply(step)
        options = {} if self.model.auxiliary is None else {"auxiliary": any(scheduled.values())}
        bad, norm = self.bad_steps, cast(Any, None)
        if self.by_data.on or (bad and self.robots):
            options["rows"] = True
        for i, batch in enumerate(batches):
            seed_streams(self.config.seed, engine.rank, step, i)
            with engine.micro_batch():
                on_device = batch.to(self.device, non_blocking=True)
                if isinstance(on_device, Batch):
                    on_device = self.augment(on_device, step, i)
                terms = engine.forward(on_device, **options)
                rows = terms.pop(ROWS, None)
                if isinstance(on_device, Batch):
                    self.by_data.see(on_device.source, rows)
                loss, shared = self.balance(terms, shares[i], scheduled)
                engine.backward(bad.see(batch, loss, rows) if bad else loss)
                if bad and i == len(batches) - 1:
                    # The device has this step's work, so that nothing stands still for the news of the last.
                    bad.settle()
                norm = engine.update(self.settings.clip_norm, bad is not None)
            self.guard.see(step, loss.detach(), norm)
            meter.add(loss, shared)
        fine = bad.end(step, norm) if bad else None
        meter.end(norm, fine)
        if self.ema:
            self.ema.update(fine)
        return {f"loss_weight/{name}": weight for name, weight in scheduled.items()}

    def _averaged(self) -> AbstractContextManager[None]:
        return self.ema.applied() if self.ema else nullcontext()

    def _save(self, step: int) -> Path:
        """Checkpoint and resume state of a step, once everything in them is known to be finite."""
        final = self._write(step, self.run_dir / "checkpoints" / f"steps_{step}")
        self.saver.forget_old(final)
        if self.settings.save_resume:
            memory: dict[str, Any] = {"best": self.best.state()}
            if self.bad_steps:
                memory["skipped_steps"] = self.bad_steps.count
            self.saver.resume_state(step, memory)
        return final

    def _keep_best(self, step: int, metrics: dict[str, float]) -> None:
        if self.best.sees(step, metrics):
            self._write(step, self.run_dir / "checkpoints" / "best")
            self.best.write(self.run_dir, self.engine.is_main)

    def _write(self, step: int, folder: Path) -> Path:
        self.guard.check()
        self.guard.check_tensors(self.trained, "the weights")
        self.guard.check_tensors(self._moments(), "the optimizer's moments")
        with self._averaged():
            return self.saver.write(step, folder)

    def _moments(self) -> Iterable[Tensor]:
        for state in self.optimizer.state.values():
            yield from (value for value in state.values() if isinstance(value, Tensor))

    def describe(self) -> dict[str, Any]:
        """Write ``run.json`` and return it."""
        return write_run(self.composed, self.run_dir, self.engine, self.command, self.stages, self.choice)
