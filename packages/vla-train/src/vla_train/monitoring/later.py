"""Numbers of the device that the host reads when they are there, not by waiting for all that is under way."""

from __future__ import annotations

import torch
from torch import Tensor


class Later:
    """A number of the device, on its way to the host, which waits for nothing that came after."""

    def __init__(self, value: Tensor) -> None:
        self._event = None
        if value.device.type == "cuda":
            self._host = torch.empty_like(value, device="cpu", pin_memory=True)
            self._host.copy_(value, non_blocking=True)
            self._event = torch.cuda.Event()
            self._event.record()
        else:
            self._host = value

    def read(self) -> bool:
        """Whether it is other than zero."""
        if self._event is not None:
            self._event.synchronize()
        return bool(self._host)
