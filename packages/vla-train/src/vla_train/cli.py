"""``vla-train``: compose, train, evaluate in closed loop, report."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from vla_core.errors import UserError

EPILOG = """overrides:
  key=value, --key value or --key=value, e.g. trainer.max_steps=200 --framework.name QwenOFT

examples:
  vla-train --config configs/quickstart.yaml
  vla-train --config my.yaml trainer.learning_rate.vlm=1e-5 run_id=lower_vlm
  vla-train --config my.yaml run_id=lower_vlm trainer.resume=true
  accelerate launch --config_file configs/deepspeed_zero2.yaml -m vla_train --config my.yaml

compare variants of a run over several seeds:
  vla-train ablate --help

take over a run of StarVLA:
  vla-train import-starvla --help

take over a pi0 or pi0.5 of lerobot or openpi:
  vla-train import-lerobot --help

fit the tokenizer of QwenFast to a data set:
  vla-train fit-fast --help
"""


def _overrides(words: Sequence[str]) -> list[str]:
    """``key=value`` words out of all accepted spellings."""
    out, rest = [], list(words)
    while rest:
        word = rest.pop(0)
        if word.startswith("--"):
            key = word.removeprefix("--")
            if "=" in key:
                out.append(key)
            elif rest and not rest[0].startswith("--"):
                out.append(f"{key}={rest.pop(0)}")
            elif key == "trainer.freeze_modules":
                out.append(f"{key}=[]")  # StarVLA's launchers pass it without a value
            else:
                raise UserError(f"command line: --{key} needs a value, e.g. --{key}=true")
        else:
            out.append(word)
    return out


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vla-train",
        usage="vla-train --config FILE [FILE ...] [key=value ...]",
        description="Train a Vision-Language-Action policy and evaluate it in closed loop.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", "--config_yaml", nargs="+", type=Path, metavar="FILE", help="YAML files, later ones win"
    )
    parser.add_argument("--list", action="store_true", help="list framework presets and installed parts")
    return parser


def _list(console: Console) -> None:
    from vla_core import registry

    from vla_train.presets import list_presets

    console.print("frameworks:")
    for name, line in list_presets().items():
        console.print(f"  {name:24} {line}", highlight=False)
    for group in registry.GROUPS:
        console.print(f"{group}: {', '.join(registry.names(group)) or 'none'}", highlight=False)


def _split_configs(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """``--config a.yaml b.yaml key=value``: argparse would take the override for a file."""
    known: list[str] = []
    words: list[str] = []
    taking = False
    for word in argv:
        if word in ("--config", "--config_yaml"):
            taking = True
            known.append(word)
        elif word.startswith("--"):
            taking = False
            (
                known if word.split("=")[0] in ("--config", "--config_yaml", "--list", "--help") else words
            ).append(word)
        elif word == "-h" or (taking and "=" not in word):
            known.append(word)
        else:
            taking = False
            words.append(word)
    return known, words


def run(argv: Sequence[str], console: Console) -> None:
    """Parse, train, evaluate, report."""
    known, words = _split_configs(argv)
    args = _parser().parse_args(known)
    if args.list:
        _list(console)
        return
    if not args.config:
        raise UserError("--config is missing, e.g. vla-train --config configs/quickstart.yaml")
    overrides = _overrides(words)

    # Heavy imports only now: a typo in the command answers at once.
    from vla_train.composition import compose
    from vla_train.report import write_report
    from vla_train.resume import run_directory
    from vla_train.spellings import load_run
    from vla_train.trainer import Trainer

    def say(line: str) -> None:
        if os.environ.get("RANK", "0") == "0":  # one process of several speaks
            console.print(line, highlight=False, markup=False, soft_wrap=True)

    tree = load_run(args.config, overrides, say)
    composed = compose(tree)
    config, policy = composed.config, composed.policy
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    run_id = config.run_id or f"{policy.framework}-{stamp}"
    run_dir = run_directory(config.run_root_dir, run_id, config.trainer.resume)
    command = "vla-train " + shlex.join(argv)
    trainer = Trainer(composed, run_dir, console, command)
    main_process = trainer.accelerator.is_main_process
    if main_process:
        run_dir.mkdir(parents=True, exist_ok=True)
        from vla_core.config import to_plain

        resolved = {**to_plain(config), "framework": policy.config}
        (run_dir / "config.yaml").write_text(yaml.safe_dump(resolved, sort_keys=False))
        _say_hello(console, trainer.describe())
    outcome = trainer.train()
    if not main_process:
        return
    _finish(run_dir)
    console.print(f"checkpoint  {outcome.checkpoint}", highlight=False, soft_wrap=True)
    evaluation = config.trainer.evaluation
    try:
        if evaluation.tasks:
            from vla_train.evaluate import evaluate

            console.print(
                f"closed loop: {evaluation.episodes} episodes of {', '.join(evaluation.tasks)} "
                "through vla-serve and vla-rollout",
                highlight=False,
            )
            results = evaluate(outcome.checkpoint, evaluation, run_dir, trainer.device.type)
            _print_results(console, results)
    finally:
        # Whatever the evaluation did, the training is reported.
        if "jsonl" in config.trackers:
            report = write_report(run_dir)
            console.print(f"report      {report}", highlight=False, soft_wrap=True)
        else:
            console.print(
                "no report: it reads metrics.jsonl, and 'jsonl' is not in trackers", highlight=False
            )


def _say_hello(console: Console, info: Mapping[str, Any]) -> None:
    parameters = info["parameters"]
    parts = ", ".join(f"{name} {count / 1e6:.2f}M" for name, count in parameters["parts"].items())
    console.print(
        f"{info['framework']} on {info['device']}: {parameters['total'] / 1e6:.2f}M parameters "
        f"({parts}), {parameters['trainable'] / 1e6:.2f}M train",
        highlight=False,
    )
    if info["from_scratch"]:
        console.print("the backbone trains from scratch: no pretrained weights are used", highlight=False)
    data = info["data"]
    console.print(
        f"data: {data['episodes_train']} episodes, {data['samples_train']} samples; "
        f"held out: {data['episodes_val']} episodes",
        highlight=False,
    )


def _finish(run_dir: Path) -> None:
    path = run_dir / "run.json"
    info = json.loads(path.read_text())
    info["finished"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    path.write_text(json.dumps(info, indent=1))


def _print_results(console: Console, results: Mapping[str, Any]) -> None:
    for task in results["tasks"]:
        low, high = task["interval"]
        if task["success_rate"] is None:
            console.print(f"  {task['task']:20} no episode ran to its end", highlight=False)
            continue
        console.print(
            f"  {task['task']:20} success {100 * task['success_rate']:.0f} % "
            f"({task['successes']}/{task['episodes']}, 95 % interval {100 * low:.0f}-{100 * high:.0f} %)",
            highlight=False,
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 2 for a mistake in the input, with one line on stderr; 1 if an ablation's run failed."""
    # Lines stay whole where output is not a terminal: logs are searched by line.
    console = Console(soft_wrap=True)
    argv = sys.argv[1:] if argv is None else argv
    ablation = bool(argv) and argv[0] == "ablate"
    try:
        if ablation:
            from vla_train.ablate.cli import run as ablate

            return ablate(argv[1:], console, _overrides)
        if argv and argv[0] == "import-starvla":
            from vla_train.importers.starvla.cli import run as import_starvla

            return import_starvla(argv[1:], console)
        if argv and argv[0] == "import-lerobot":
            from vla_train.importers.lerobot.cli import run as import_lerobot

            return import_lerobot(argv[1:], console)
        if argv and argv[0] == "fit-fast":
            from vla_train.fit_fast import run as fit_fast

            return fit_fast(argv[1:], console, _split_configs, _overrides)
        run(argv, console)
    except UserError as error:
        print(f"vla-train: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        go_on = "the same command" if ablation else "trainer.resume=true"
        print(f"vla-train: interrupted; go on with {go_on}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
