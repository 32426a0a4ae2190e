"""``vla-train fit-fast``: fit the tokenizer of the ``fast`` head to a run's data, and say how well it does.

Shape legend: T action steps, A action dims.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from vla_core.config import Tree, build_config
from vla_core.errors import ConfigError, UserError
from vla_core.framework import FrameworkConfig
from vla_core.resolve import resolve_part
from vla_core.sources import Source
from vla_core.transforms import Pipeline
from vla_heads.fast import ActionTokenizer, FASTConfig, Report, measure
from vla_heads.fast.head import FITTED_ON
from vla_heads.fast.sampling import some
from vla_heads.fast.transform import hold

from vla_train.command_line import TrainOptions, overrides_of, split_configs
from vla_train.config import RunConfig
from vla_train.dataloading.data_sets import open_data
from vla_train.spellings import load_run

EPILOG = """DIR gets tokenizer.json and processor_config.json, the format of physical-intelligence/fast; a
run takes it with framework.head.tokenizer=DIR. Without it, a run fits the same tokenizer to the same rows
by itself.
framework.head.scale and framework.head.vocab_size set the rounding and the number of ids.

example:
  vla-train fit-fast --config my.yaml --out tokenizers/mine framework.name=QwenFast framework.head.scale=20
"""
HELD = tuple[NDArray[np.float64], NDArray[np.bool_]]


def _parser() -> argparse.ArgumentParser:
    parser = TrainOptions(
        prog="vla-train fit-fast",
        usage="vla-train fit-fast --config FILE [FILE ...] --out DIR [key=value ...]",
        description="Fit the action tokenizer of the fast head to the training rows of a run.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--config", nargs="+", action="extend", type=Path, metavar="FILE", help="YAML files, later ones win"
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the tokenizer goes")
    return parser


def _chunks(sources: Sequence[Source], pipelines: Mapping[str, Pipeline]) -> Iterator[HELD]:
    """Whole normalised chunks ``[T, A]`` with their masks, of all robots as wide as the widest."""
    wide = max(pipeline.output_spec.action.dim for pipeline in pipelines.values())
    for source in sources:
        pipeline = pipelines[source.spec.embodiment]
        for i in range(len(source)):
            actions, mask = pipeline.targets(*source.numeric(i))
            if mask.any():
                yield hold(actions, mask, len(actions), wide), mask


def _head(tree: Tree, framework: FrameworkConfig) -> FASTConfig:
    part = resolve_part("vla.heads", framework.head, "framework.head", tree)
    if not isinstance(part.config, FASTConfig):
        raise ConfigError(
            f"{tree.where('framework.head.name')}framework.head is '{part.node['name']}', which speaks no "
            "tokens; add framework.name=QwenFast or framework.head.name=fast"
        )
    if part.config.tokenizer is not None:
        raise ConfigError(
            f"{tree.where('framework.head.tokenizer')}framework.head.tokenizer is "
            f"'{part.config.tokenizer}'; leave it out to fit another"
        )
    return part.config


def fit(tree: Tree) -> tuple[ActionTokenizer, dict[str, Report]]:
    """The tokenizer that a run of this config would use, and reports on its training and held-out rows.

    Raises:
        ConfigError: one line that names file, key and fix.
    """
    config = build_config(RunConfig, tree.data, "", tree)
    framework = build_config(FrameworkConfig, config.framework, "framework", tree)
    head = _head(tree, framework)
    data = open_data(config.datasets, framework.horizon, tree)
    pipelines = {}
    for name, spec in data.specs.items():
        nodes, where = framework.transforms_of(name)
        pipelines[name] = Pipeline(nodes, spec, rows=data.rows(name), where=where, tree=tree)
    wide = max(pipeline.output_spec.action.dim for pipeline in pipelines.values())
    # The very rows that a run draws, robot by robot in the same order: byte pairs depend on them.
    robots = list(data.specs)
    train, val = (
        sorted(sources, key=lambda s: robots.index(s.spec.embodiment)) for sources in (data.train, data.val)
    )
    rows = [chunk for chunk, _ in some(_chunks(train, pipelines), FITTED_ON)]
    tokenizer = ActionTokenizer.fit(rows, framework.horizon, wide, head.vocab_size, head.scale)
    parts = {"training": rows, "held out": [c for c, _ in some(_chunks(val, pipelines), FITTED_ON)]}
    return tokenizer, {name: measure(tokenizer, part) for name, part in parts.items() if part}


def _out(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """``--out DIR`` or ``--out=DIR``, and the other words."""
    for i, word in enumerate(argv):
        if word.partition("=")[0] == "--out":
            end = i + (1 if "=" in word else 2)
            return list(argv[i:end]), [*argv[:i], *argv[end:]]
    return [], list(argv)


def run(argv: Sequence[str], console: Console) -> int:
    """Parse, fit, write, report.

    Raises:
        UserError: one line that says what is wrong and how to fix it.
    """
    out, rest = _out(argv)
    known, words = split_configs(rest)
    args = _parser().parse_args([*known, *out])
    overrides = overrides_of(words, ("--config", "--out", "--help"))
    if not args.config or args.out is None:
        raise UserError("fit-fast: --config and --out are needed, e.g. --config my.yaml --out DIR")
    if args.out.exists():
        raise UserError(f"fit-fast: {args.out} exists already; choose another --out")
    tokenizer, reports = fit(load_run(args.config, overrides))
    tokenizer.save(args.out)

    def line(text: str) -> None:
        console.print(text, highlight=False)

    line(
        f"{tokenizer.bpe.get_vocab_size()} of {tokenizer.vocab_size} ids, scale {tokenizer.scale:g}, "
        f"chunks of {tokenizer.horizon} x {tokenizer.action_dim}"
    )
    line(f"{'':10} {'chunks':>7} {'tokens':>7} {'longest':>8} {'numbers/id':>11} {'error':>9} "
         f"{'largest':>9} {'clipped':>8} {'ids used':>9}")  # fmt: skip
    for name, r in reports.items():
        line(
            f"{name:10} {r.chunks:7} {r.tokens_mean:7.1f} {r.tokens_max:8} {r.compression:11.2f} "
            f"{r.error_mean:9.5f} {r.error_max:9.5f} {100 * r.clipped:7.2f}% {r.ids_used:9}"
        )
    line("tokens of an answer (mean), error of a normalised action after encoding and decoding (mean)")
    line(f"tokenizer   {args.out}  (framework.head.tokenizer={args.out})")
    return 0
