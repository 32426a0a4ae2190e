"""``python -m vla_train.smoke NAME``: build one framework, look at it, take one loss and one chunk."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

from vla_core.errors import UserError
from vla_core.options import Options

EPILOG = """overrides:
  the keys of vla-train below framework, e.g. head.n_blocks=4 or framework.head.n_blocks=4

examples:
  python -m vla_train.smoke QwenPI
  python -m vla_train.smoke QwenPI --size full
  python -m vla_train.smoke QwenOFT horizon=4 geometry='{name: tiny}' fusion='{name: aligned_concat}'
"""
ROWS = 2
SHOWN_STEPS = 3


def _parser() -> argparse.ArgumentParser:
    parser = Options(
        prog="python -m vla_train.smoke",
        description="Build one framework for a made-up robot and print its parts, parameters, the shapes "
        "through its stages, one loss and one predicted chunk.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", metavar="NAME", help="a preset; vla-train --list shows them")
    parser.add_argument(
        "--size",
        choices=("tiny", "full"),
        default="tiny",
        help="tiny: small random parts that run in seconds on a CPU; full: the published shapes on the "
        "meta device, so counts and shapes but no numbers",
    )
    parser.add_argument("overrides", nargs="*", default=[], metavar="key=value")
    return parser


def run(argv: Sequence[str], write: Callable[[str], Any]) -> None:
    """Parse, build, print line by line through ``write``.

    Raises:
        UserError: one line that says what is wrong and how to fix it.
    """
    args = _parser().parse_intermixed_args(argv)

    # Only now what takes seconds to import: a typo in the command answers at once.
    from vla_train.testing import framework_tree

    tree = framework_tree(args.name, args.size, args.overrides)

    import torch

    from vla_train.testing import trace as smoke

    def line(text: str = "") -> None:
        write(text + "\n")

    began = time.perf_counter()
    torch.manual_seed(0)
    policy = smoke.build(tree, args.size)
    built = time.perf_counter() - began
    line(f"{policy.framework}, size {args.size}: {policy.model.device}, built in {built:.2f} s")
    line("\nparts (options that differ from their defaults)")
    parts = smoke.parts_of(policy)
    for name, part in parts.items():
        node = policy.config[name]
        line(f"  {name:9} {node['name']} ({type(part).__module__}.{type(part).__name__})")
        for key, value in smoke.differences(part, node).items():
            line(f"  {'':9}   {key}: {value!r}")
    line(f"\n{'parameters':11} {'total':>15} {'trainable':>15}")
    for name, part in {**parts, "all": policy.model}.items():
        total, trainable = smoke.count_parameters(part)
        line(f"  {name:9} {total:15,} {trainable:15,}")

    line("\nshapes, one training step")
    batch = smoke.training_batch(policy, ROWS)
    began = time.perf_counter()
    shapes_only = smoke.without_storage(policy) if args.size == "full" else nullcontext()
    try:
        with shapes_only, smoke.recorded(policy) as seen, torch.set_grad_enabled(args.size == "tiny"):
            terms = policy.model(batch)
    except smoke.NEEDS_VALUES as error:
        raise UserError(
            f"{args.name}: a part reads the value of a tensor, and --size full has shapes alone; "
            "use --size tiny"
        ) from error
    stages = {"batch": batch, **{s: seen[s] for s in smoke.STAGES if s in seen}, "terms": terms}
    for stage, value in stages.items():
        for i, text in enumerate(smoke.shapes(value)):
            line(f"  {stage if i == 0 else '':14} {text}")
    if args.size == "full":
        _full(policy, line)
    else:
        _tiny(policy, terms, began, line)


def _full(policy: Any, line: Callable[[str], None]) -> None:
    from vla_train.testing.trace import count_flop, without_storage

    with without_storage(policy):
        counts = count_flop(policy)
    line("\nforward FLOP of one sample")
    for what, flop in zip(("loss", "chunk"), counts, strict=True):
        line(f"  {what:9} " + ("depends on values" if flop is None else f"{flop / 1e12:.3f} T"))
    line("no numbers at size full: there are no weights on the meta device")


def _tiny(policy: Any, terms: Any, began: float, line: Callable[[str], None]) -> None:
    import torch
    from vla_core.testing import make_observation

    loss = torch.stack(list(terms.values())).sum()
    loss.backward()
    step = time.perf_counter() - began
    shown = ", ".join(f"{name} {value.item():.6f}" for name, value in terms.items())
    line(f"\nloss {loss.item():.6f} ({shown}), forward and backward {1e3 * step:.1f} ms")
    policy.eval()
    ((_, spec),) = policy.specs.items()
    began = time.perf_counter()
    (chunk,) = policy.act([make_observation(spec, 0)], [0])
    spent = time.perf_counter() - began
    steps, dims = chunk.actions.shape
    line(f"\npredicted chunk: {steps} steps of {dims} dims at {spec.action.control_hz:g} Hz, un-normalised")
    line(f"(act() took {1e3 * spent:.1f} ms; the first {min(SHOWN_STEPS, steps)} steps are shown)")
    for group, where in zip(spec.action.groups, spec.action.slices().values(), strict=True):
        line(f"  {group.name} [{group.unit}, {group.representation}]")
        for t in range(min(SHOWN_STEPS, steps)):
            line(f"    {t:3}  " + " ".join(f"{value:9.4f}" for value in chunk.actions[t, where]))


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; 2 for a mistake in the input, with one line on stderr."""
    try:
        run(sys.argv[1:] if argv is None else argv, sys.stdout.write)
    except UserError as error:
        sys.stderr.write(f"vla_train.smoke: {error}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
