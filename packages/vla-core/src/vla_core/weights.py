"""Weights in files: safetensors, or a torch pickle of tensors alone."""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from vla_core.errors import UserError

_WRITER = ("PytorchStreamWriter", "unexpected pos", "inline_container", "iostream error")


def disk_error(error: BaseException) -> OSError | None:
    """What a writer of tensors raised, if the disk is what it is about."""
    said = (str(error).splitlines() or [""])[0]
    if isinstance(error, OSError):
        return error
    if isinstance(error, SafetensorError):
        return OSError(said)
    # torch's writer has no error of its own.
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _WRITER):
        return OSError(f"no space, or no right to write: {said}")
    return None


@contextmanager
def writing() -> Iterator[None]:
    """A block that writes files of tensors: a disk that is full is an OSError, whichever library says so."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if (found := disk_error(error)) is None:
            raise
        raise found from error


def save_weights(state: Mapping[str, Tensor], file: Path, stamps: Mapping[str, str] | None = None) -> None:
    """Write ``state`` as the suffix of ``file`` says; of tensors that share memory only the first name.

    ``stamps`` go along in a safetensors file, for :func:`read_stamps`.

    Raises:
        OSError: no space, or no right to write.
    """
    # Contiguous copies on the CPU.
    kept = {name: state[name].detach().cpu().contiguous() for name in sorted(first_names(state))}
    with writing():
        if file.suffix == ".safetensors":
            file.touch()
            mode = file.stat().st_mode  # what the umask gives; safetensors itself keeps its file to its owner
            safetensors.torch.save_file(kept, file, None if stamps is None else dict(stamps))
            file.chmod(mode)
        else:
            torch.save(kept, file)


def read_stamps(file: Path) -> dict[str, str]:
    """What :func:`save_weights` was given to go along; nothing where the file has none, or cannot be read."""
    if file.suffix != ".safetensors":
        return {}
    try:
        with safetensors.safe_open(file, "pt") as opened:
            return dict(opened.metadata() or {})
    except (SafetensorError, OSError):
        return {}  # said by whoever loads it


def load_weights(file: Path, device: str = "cpu") -> dict[str, Tensor]:
    """The state dict in a ``.safetensors`` or ``.pt`` file, on ``device``; nothing in it is executed."""
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file, device=device)
        state = torch.load(file, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{file}: not a state dict of tensors (anything else in a pickle is refused), or truncated"
        ) from error
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, LookupError) as error:
        # What torch's reader raises on bytes cut or damaged at various places.
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UserError(f"{file}: cannot be read as weights, it may be truncated ({reason})") from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise UserError(f"{file}: not a state dict of tensors")
    return state


def assign_weights(model: nn.Module, state: Mapping[str, Tensor], file: Path) -> None:
    """Load ``state`` strictly (names of shared tensors are counted once)."""
    own = model.state_dict()
    missing = sorted(first_names(own) - set(state))
    unexpected = sorted(set(state) - set(own))
    shapes = [k for k in state if k in own and own[k].shape != state[k].shape]
    if missing or unexpected:
        raise UserError(
            f"{file}: weights do not fit the model: missing {_some(missing)}, unexpected {_some(unexpected)}"
        )
    if shapes:
        key = shapes[0]
        raise UserError(
            f"{file}: '{key}' has shape {tuple(state[key].shape)}, the model has {tuple(own[key].shape)}"
        )
    model.load_state_dict(dict(state), strict=False)


def first_names(state: Mapping[str, Tensor]) -> set[str]:
    """One name for each piece of memory."""
    seen: dict[tuple[int, tuple[int, ...]], str] = {}
    for name, tensor in state.items():
        key = (tensor.data_ptr(), tuple(tensor.shape)) if tensor.numel() else (id(tensor), ())
        seen.setdefault(key, name)
    return set(seen.values())


def _some(names: list[str], limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return f"[{', '.join(names[:limit])}]{more}"
