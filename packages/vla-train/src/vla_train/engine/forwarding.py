"""Methods beside ``forward`` that read parameters, for engines that gather these around ``forward`` alone."""

from __future__ import annotations

from typing import Any


def run_as_forward(module: Any, name: str) -> None:
    """Have a method run in the place of ``forward``, with its hooks around; FSDP2 has a function for that.

    Args:
        module: an ``nn.Module``, of the method.
        name: what it is called.
    """
    method = getattr(module, name)

    def hooked(*args: Any, **options: Any) -> Any:
        before = module.__dict__.get("forward")
        module.__dict__["forward"] = method
        try:
            return module(*args, **options)
        finally:
            del module.__dict__["forward"]
            if before is not None:
                module.__dict__["forward"] = before

    module.__dict__[name] = hooked
