"""Keep what exporters and quantisers say about their own work away from the user."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_TALKATIVE = ("", "torch.onnx", "onnxscript", "onnx_ir")
"""Loggers; ONNX Runtime's quantiser uses the root."""


@contextmanager
def quiet() -> Iterator[None]:
    """Only errors are heard inside."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
