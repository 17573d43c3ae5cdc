"""Where to compute."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from carnet.config import Device
from carnet.errors import ConfigError
from carnet.machine import processor_name


def choose_device(wish: str | None) -> Device:
    """cpu, cuda or mps -> the device, if it is there; None and auto take a GPU before the processor.

    Raises:
        ConfigError: if the device is not to be had here.
    """
    available: dict[Device, bool] = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    usable = [name for name, there in available.items() if there]
    for name in usable:
        if wish in (None, "auto", name):
            return name
    raise ConfigError(f"--device {wish} is not available here; PyTorch sees: {', '.join(usable)}")


def device_name(device: str) -> str:
    """What the maker calls a device: cpu, cuda or mps."""
    return torch.cuda.get_device_name() if device == "cuda" else processor_name()


def compute_exactly() -> None:
    """Keep float32 arithmetic float32 on NVIDIA GPUs, whose convolutions otherwise round to 10 bits (TF32)."""
    with warnings.catch_warnings():
        # Some versions recommend another way, after which torch.export and torch.compile fail to read the setting.
        warnings.simplefilter("ignore")
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cuda.matmul.allow_tf32 = False


@contextmanager
def on_threads(number: int) -> Iterator[None]:
    """PyTorch computes on so many threads inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
