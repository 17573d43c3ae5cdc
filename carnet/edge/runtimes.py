"""What computes a model file: ONNX Runtime, or OpenVINO. Both take the whole file as bytes, once it is checked."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from carnet.edge.model_file import ModelFile
from carnet.errors import (
    CarnetError,
    ConfigError,
    MissingExtraError,
    ModelFileError,
    OutOfMemoryError,
    explaining_lack_of_memory,
    is_out_of_memory,
)
from carnet.preprocess import Images
from carnet.progress import counted

Runtime = Literal["onnxruntime", "openvino"]
PIXELS = "pixels"
OUTPUTS = LOGITS, PROBABILITIES, CLASS_MAPS = "logits", "probabilities", "class_maps"
"""Names in the graph; networks without a mean-and-linear head have no class maps."""
Outputs = dict[str, NDArray[np.float32]]
Run = Callable[[Images], Outputs]
"""uint8 images (N, S, S, C) -> outputs by name. May be called from several threads at once."""


def open_runtime(file: ModelFile, runtime: Runtime, threads: int) -> Run:
    """Make a checked model ready to run.

    Args:
        file: the model.
        runtime: which one computes.
        threads: of the arithmetic; 0 leaves it to the runtime.

    Raises:
        ConfigError: unknown runtime, or fewer threads than none.
        MissingExtraError: OpenVINO is asked for and not installed.
        ModelFileError: if the installed runtime refuses the model.
        OutOfMemoryError: if there is not enough memory to open it; what it gives raises the same.
    """
    if threads < 0:
        raise ConfigError(f"--threads must be 0 (chosen) or more, got {threads}")
    match runtime:
        case "onnxruntime":
            run = _open_onnxruntime(file, threads)
        case "openvino":
            run = _open_openvino(file, threads)
        case _:
            raise ConfigError(f"--runtime must be one of {', '.join(get_args(Runtime))}, got {runtime!r}")

    def run_or_explain(images: Images) -> Outputs:
        with explaining_lack_of_memory(f"{counted(len(images), 'image')} in {file.name}", "take fewer at a time"):
            return run(images)

    return run_or_explain


def _open_onnxruntime(file: ModelFile, threads: int) -> Run:
    import onnxruntime

    try:
        session = start_session(file.content, threads)
    except Exception as error:
        raise _refused(file, f"ONNX Runtime {onnxruntime.__version__}", error) from error
    names = [tensor.name for tensor in session.get_outputs()]

    def run(images: Images) -> Outputs:
        return dict(zip(names, session.run(None, {PIXELS: images}), strict=True))

    return run


def start_session(content: bytes, threads: int) -> Any:
    """ONNX Runtime's session for a serialized model; 0 threads leave their number to it."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    # What goes wrong comes as an error; warnings would only stand between the answers.
    settings.log_severity_level = 3
    return onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])


def _open_openvino(file: ModelFile, threads: int) -> Run:
    try:
        import openvino
    except ModuleNotFoundError:
        raise MissingExtraError("--runtime openvino", "OpenVINO", "openvino") from None
    # In float32, as it was judged: OpenVINO would take bfloat16 where the processor has it.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    core = openvino.Core()
    try:
        compiled = core.compile_model(core.read_model(io.BytesIO(file.content)), "CPU", settings)
    except Exception as error:
        raise _refused(file, f"OpenVINO {openvino.__version__}", error) from error
    # An output may have taken over the names of what OpenVINO has left out before it.
    names = [next(name for name in OUTPUTS if name in output.get_names()) for output in compiled.outputs]

    def run(images: Images) -> Outputs:
        # A request holds its own buffers, so every call has one to itself.
        answer = compiled.create_infer_request().infer([images])
        return {name: np.array(answer[output]) for name, output in zip(names, compiled.outputs, strict=True)}

    return run


def _refused(file: ModelFile, runtime: str, error: Exception) -> CarnetError:
    lines = str(error).strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    if is_out_of_memory(error):
        return OutOfMemoryError(f"{runtime} has not enough memory to open {file.name} ({reason}); close other programs")
    return ModelFileError(f"{runtime} cannot run {file.name}: {reason}")
