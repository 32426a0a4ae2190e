"""One whole run: compose, check, train, evaluate in closed loop, report."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from vla_core.config import Tree, build_config
from vla_core.errors import ConfigError
from vla_core.policy import VLAPolicy

from vla_train.checkpointing.resume import run_directory, samples_a_step, the_newest, ways_on
from vla_train.checkpointing.small_files import into, write_json, write_text
from vla_train.checkpointing.states import Choice, choose, set_run_aside, step_of
from vla_train.compare import check_engine, check_resumable
from vla_train.composition import Composed, compose
from vla_train.config import RunConfig
from vla_train.dataloading.workers import WorkerDied, deaths_named
from vla_train.engine import Engine, make_engine
from vla_train.evaluation.evaluate import check_evaluation, evaluate
from vla_train.guards.exits import BrokenOff, Interrupted, Stopped
from vla_train.monitoring import announce
from vla_train.monitoring.overview import overview
from vla_train.monitoring.rerun import command, launcher, parents_words, script
from vla_train.monitoring.run_info import checkpoint_of, describe_run
from vla_train.monitoring.seen import FILE as SEEN
from vla_train.monitoring.seen import save_seen
from vla_train.monitoring.trackers import check_trackers
from vla_train.monitoring.under_way import under_way
from vla_train.report import write_report
from vla_train.trainer import Outcome, Trainer

LARGE = 300_000_000
"""Parameters from which on a dry run makes none."""


@dataclass
class Run:
    """A run whose config, data, policy and settings are checked; nothing is written yet.

    Args:
        composed: config, data and policy.
        engine: what carries the steps.
        trainer: ready to train.
        run_dir: where everything is written.
    """

    composed: Composed
    engine: Engine
    trainer: Trainer
    run_dir: Path
    console: Console

    def begin(self, files: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Write what the run is, on the first rank; ``files``: further ones, name -> text."""

        def write() -> tuple[dict[str, Any], str]:
            if not self.composed.config.trainer.resume and (self.run_dir / "checkpoints").exists():
                # Of `trainer.resume: auto` alone, which found no state there.
                set_run_aside(self.run_dir, "damaged" if self.trainer.choice.damaged else "without_state")
            self.run_dir.mkdir(parents=True, exist_ok=True)
            text = yaml.safe_dump(self.composed.resolved, sort_keys=False)
            write_text(self.run_dir / "config.yaml", text)
            for name, content in (files or {}).items():
                write_text(self.run_dir / name, content)
                if content.startswith("#!"):
                    (self.run_dir / name).chmod(0o755)
            info = self.trainer.describe()
            if (robots := self.trainer.robots) is not None:
                save_seen(robots.dataset, robots.labels, self.run_dir / SEEN)
            table = overview(self.composed.model, self.trainer, self.engine)
            write_text(self.run_dir / "overview.txt", table)
            return info, table

        def written() -> tuple[dict[str, Any], str]:
            with into(self.run_dir):
                return write()

        info, table = self.engine.agree(written)
        self._say(lambda: announce.hello(self.console, info, table, self.trainer))
        return info

    def facts(self) -> dict[str, Any]:
        """What ``run.json`` would say; nothing is written."""
        trainer = self.trainer
        return describe_run(self.composed, self.run_dir.name, self.engine, trainer.command, trainer.stages)

    def train(self) -> Outcome:
        """Train to the end, and note when and what came of it."""
        try:
            with deaths_named():
                outcome = self.trainer.train()
        except WorkerDied as error:
            raise WorkerDied(f"{error}; {ways_on(self.run_dir)}") from error
        except KeyboardInterrupt as error:
            raise Interrupted(ways_on(self.run_dir)) from error
        if self.engine.is_main:
            path = self.run_dir / "run.json"
            info = json.loads(path.read_text("utf-8"))
            info["finished"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
            info["checkpoint"] = checkpoint_of(outcome.checkpoint, self.run_dir)
            with into(self.run_dir):
                write_json(path, info)
        return outcome

    def evaluate(self, checkpoint: Path) -> Mapping[str, Any] | None:
        """Closed loop, where the config asks for it; on the first rank alone, which calls it.

        Raises:
            Stopped: a signal asked for the end, since the training began.
        """
        evaluation = self.composed.config.trainer.evaluation
        if not evaluation.tasks:
            return None
        announce.evaluation(self.console, evaluation)
        device = self.engine.device.type
        try:
            with self.trainer.stop as stop:
                results = evaluate(checkpoint, evaluation, self.run_dir, device, lambda: stop.signalled)
        except BrokenOff as error:
            when = f"in the closed loop after step {step_of(checkpoint)}"
            raise Stopped(when, checkpoint, ways_on(self.run_dir)) from error
        announce.results(self.console, results)
        return results

    def report(self) -> None:
        """Write ``report.html``."""
        with into(self.run_dir / "report.html"):
            path = write_report(self.run_dir)
        announce.line(self.console, f"report      {path}")

    def _say(self, speak: Callable[[], None]) -> None:
        if self.engine.is_main:
            speak()


def make_run(tree: Tree, console: Console, command: str = "", dry: bool = False) -> Run:
    """Everything that can be found wrong before the first step is found here.

    ``dry``: it will not train, so that a large model is looked at without its numbers.

    Raises:
        UserError: one line that says what, where, and how to fix it.
    """
    config = build_config(RunConfig, tree.data, "", tree)
    check_trackers(config.trackers)
    engine = make_engine(config.trainer)
    config, choice = _resuming(config, engine)
    # Before anything is opened: a run that exists, or programs that are not there.
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    name = config.run_id or f"{config.framework.get('name', 'run')}-{stamp}"
    resumes = bool(config.trainer.resume)
    anew = choice is not None and choice.state is None
    run_dir = engine.agree(lambda: run_directory(config.run_root_dir, name, resumes, anew))
    if resumes and choice is None:
        choice = the_newest(engine, run_dir)
    if (state := None if choice is None else choice.state) is not None:
        engine.agree(lambda: check_engine(state, engine))
    say = partial(announce.line, console) if engine.is_main else None
    if say:
        what = config.framework.get("name", "a policy")
        say(f"{what} on {engine.device}: the data are opened, and the model is made")
    with under_way(say, "opening the data and making the model"):
        above = LARGE if dry and engine.world == 1 else None
        composed = compose(tree, config, engine.device, sharing=engine.sharing, shapes_above=above)
    if state is not None:
        samples = samples_a_step(config.trainer, engine.world)
        engine.agree(lambda: check_resumable(run_dir, state, composed.resolved, samples, composed.trained))
    if composed.robots is not None:
        # Beside the run, of which nothing is written yet.
        trace = run_dir.with_name(f"{run_dir.name}.error.txt")
        policy = composed.trained
        assert isinstance(policy, VLAPolicy)
        evaluation, robots = config.trainer.evaluation, composed.data.specs
        with under_way(say, "trying the simulator"):
            engine.agree(lambda: check_evaluation(evaluation, robots, trace, policy.longest_delay))
    with under_way(say, "sending a sample through the model, and preparing it"):
        trainer = Trainer(composed, run_dir, console, command, engine, choice)
    if choice is not None and engine.is_main:
        for said in choice.lines(run_dir):
            announce.line(console, said)
    return Run(composed, engine, trainer, run_dir, console)


def _resuming(config: RunConfig, engine: Engine) -> tuple[RunConfig, Choice | None]:
    """``trainer.resume: auto`` decided: whether the run has a state to go on from, and which."""
    how = config.trainer.resume
    if how and config.run_id is None:
        raise ConfigError(f"trainer.resume is {str(how).lower()}, so run_id must name the run to look for")
    if how != "auto":
        return config, None
    assert config.run_id is not None
    if not config.trainer.save_resume:
        raise ConfigError(
            "trainer.resume is 'auto', and trainer.save_resume=false keeps nothing to go on from; drop one"
        )
    choice = choose(engine, Path(config.run_root_dir) / config.run_id)
    keep = config.trainer.keep_states or 2
    decided = replace(config.trainer, resume=choice.state is not None, keep_states=keep)
    return replace(config, trainer=decided), choice


def execute(tree: Tree, console: Console, argv: list[str], dry: bool = False) -> None:
    """A run from the command line; ``dry``: check everything, show it, train nothing.

    Raises:
        UserError: one line that says what, where, and how to fix it.
        Stopped: a signal asked for the end; the run can go on.
    """
    started = launcher(argv, os.environ, parents_words())
    run = make_run(tree, console, command(argv, started), dry)
    if dry:
        if run.engine.is_main:
            announce.dry_run(console, run.facts(), run.trainer)
        return
    # A run that looks for a state by itself does so under its other name too.
    anew = run.composed.config.trainer.resume is True and tree.data.get("trainer", {}).get("resume") != "auto"
    run.begin({"rerun.sh": script(argv, started, run.run_dir.name, anew)})
    with run.trainer.stop:
        outcome = run.train()
        if not run.engine.is_main:
            return
        announce.line(console, f"checkpoint  {outcome.checkpoint}")
        try:
            run.evaluate(outcome.checkpoint)
        finally:
            # Whatever the evaluation did, the training is reported.
            run.report()
