"""Open a checked model file in ONNX Runtime or OpenVINO; both take the whole file as bytes."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from functools import cache
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
from carnet.text import counted

Runtime = Literal["onnxruntime", "openvino"]
PIXELS = "pixels"
OUTPUTS = LOGITS, PROBABILITIES, CLASS_MAPS = "logits", "probabilities", "class_maps"
"""Names in the graph; networks without a mean-and-linear head have no class maps."""
Outputs = dict[str, NDArray[np.float32]]
Run = Callable[[Images], Outputs]
"""uint8 images (N, S, S, C) -> outputs by name. May be called from several threads at once."""
_TYPES = {"tensor(uint8)": "uint8", "tensor(float)": "float32", "u8": "uint8", "f32": "float32"}
"""ONNX Runtime's and OpenVINO's names of element types -> ours."""
_Port = tuple[str | int | None, ...]
"""An input or an output of a graph: its element type, then its shape, in which None stands for any length."""


def open_runtime(file: ModelFile, runtime: Runtime, threads: int) -> Run:
    """Make a checked model ready to run; 0 threads leave their number to the runtime.

    Raises:
        ConfigError: for an unknown runtime, or a negative number of threads.
        MissingExtraError: for OpenVINO where it is not installed.
        ModelFileError: if the installed runtime refuses the model, or the model's graph is not what its document says.
        OutOfMemoryError: if there is not enough memory to open it; the returned function raises the same.
    """
    if threads < 0:
        raise ConfigError(f"--threads must be 0 (the runtime chooses) or more, got {threads}")
    match runtime:
        case "onnxruntime":
            run = _open_onnxruntime(file, threads)
        case "openvino":
            run = open_openvino(file, threads)
        case _:
            raise ConfigError(f"--runtime must be one of {', '.join(get_args(Runtime))}, got {runtime!r}")
    return checked(file, run, runtime)


def checked(file: ModelFile, run: Run, runtime: str) -> Run:
    """Return a function that runs a model, turns what the runtime raises into our errors, and checks the shapes."""
    shapes = _output_shapes(file)

    def run_checked(images: Images) -> Outputs:
        try:
            with explaining_lack_of_memory(f"{counted(len(images), 'image')} in {file.name}", "take fewer at a time"):
                outputs = run(images)
        except CarnetError:
            raise
        # Whatever the runtime raises.
        except Exception as error:
            raise _refused(file, runtime, error) from error
        for name, shape in shapes.items():
            # The graph may have left a length open.
            if name not in outputs or outputs[name].shape != (len(images), *shape):
                found = outputs[name].shape if name in outputs else "nowhere"
                raise ModelFileError(f"{file.name} returns {name} {found}; export it again")
        return outputs

    return run_checked


def _output_shapes(file: ModelFile) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the outputs for one image, as the document says."""
    classes, centres = file.spec.num_classes, file.document.get("map_centres")
    shapes: dict[str, tuple[int, ...]] = {LOGITS: (classes,), PROBABILITIES: (classes,)}
    if centres is not None:
        shapes[CLASS_MAPS] = (classes, *map(len, centres))
    return shapes


def _check_graph(file: ModelFile, inputs: Mapping[str, _Port], outputs: Mapping[str, _Port]) -> None:
    """Raise a ModelFileError where a graph contradicts the document it stands beside."""
    spec = file.spec
    if list(inputs) != [PIXELS]:
        raise ModelFileError(f"{file.name} must have one input, {PIXELS}; export it again")
    wanted: dict[str, _Port] = {PIXELS: ("uint8", None, spec.image_size, spec.image_size, spec.in_channels)}
    wanted |= {name: ("float32", None, *shape) for name, shape in _output_shapes(file).items()}
    for name, port in wanted.items():
        found = inputs.get(name) or outputs.get(name)
        if (
            found is None
            or len(found) != len(port)
            or not all(None in pair or pair[0] == pair[1] for pair in zip(found, port, strict=True))
        ):
            raise ModelFileError(
                f"{file.name} contradicts itself: its document declares {name} as {_shown(port)}, its graph as "
                f"{'missing' if found is None else _shown(found)}; export it again"
            )


def _shown(port: _Port) -> str:
    return f"{port[0]} ({', '.join('any' if length is None else str(length) for length in port[1:])})"


def _open_onnxruntime(file: ModelFile, threads: int) -> Run:
    import onnxruntime

    try:
        session = start_session(file.content, threads)
        # A graph may name its lengths in bytes that are no text.
        inputs, outputs = (
            {
                tensor.name: (
                    _TYPES.get(tensor.type, tensor.type),
                    *(length if isinstance(length, int) else None for length in tensor.shape),
                )
                for tensor in tensors
            }
            for tensors in (session.get_inputs(), session.get_outputs())
        )
    except Exception as error:
        raise _refused(file, f"ONNX Runtime {onnxruntime.__version__}", error) from error
    _check_graph(file, inputs, outputs)
    return lambda images: dict(zip(outputs, session.run(None, {PIXELS: images}), strict=True))


def start_session(content: bytes, threads: int) -> Any:
    """Open a serialized model in ONNX Runtime; 0 threads leave their number to it."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
    # Errors are raised; logged as well, they would stand between the predictions.
    settings.log_severity_level = 4
    # Without the second try on the same processor, which is announced on standard output.
    return onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"], enable_fallback=0)


def open_openvino(file: ModelFile, threads: int, source: tuple[bytes, bytes] | None = None) -> Run:
    """Open a checked model in OpenVINO, or what was converted from it: network and weights in OpenVINO's own format.

    Raises:
        MissingExtraError, ModelFileError: as `open_runtime`.
    """
    try:
        import openvino
    except ModuleNotFoundError:
        raise MissingExtraError("--runtime openvino", "OpenVINO", "openvino") from None
    # A graph that is not valid can end the process in OpenVINO; ONNX Runtime refuses it.
    _open_onnxruntime(file, 1)
    # In float32, as it was evaluated: OpenVINO would take bfloat16 where the processor has it.
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY"}
    if threads:
        settings["INFERENCE_NUM_THREADS"] = threads
    core = openvino_core()
    try:
        model = core.read_model(io.BytesIO(file.content)) if source is None else core.read_model(*source)
        compiled = core.compile_model(model, "CPU", settings)
    except Exception as error:
        raise _refused(file, f"OpenVINO {openvino.__version__}", error) from error
    outputs = _openvino_ports(compiled.outputs, OUTPUTS)
    _check_graph(file, dict(_openvino_ports(compiled.inputs, (PIXELS,))), dict(outputs))

    def run(images: Images) -> Outputs:
        # A request holds its own buffers, so every call has one to itself.
        answer = compiled.create_infer_request().infer([images])
        return {name: np.array(answer[output]) for (name, _), output in zip(outputs, compiled.outputs, strict=True)}

    return run


@cache
def openvino_core() -> Any:
    """Return OpenVINO's core, one for the whole process.

    The last core that goes takes with it the stack on which the main thread handles signals. If another thread collects
    it, the main thread keeps a pointer to that stack, and the next Ctrl-C ends the process (OpenVINO 2026.4).

    Raises:
        ModuleNotFoundError: where OpenVINO is not installed.
    """
    import openvino

    return openvino.Core()


def _openvino_ports(tensors: Sequence[Any], known: Sequence[str]) -> list[tuple[str, _Port]]:
    ports: list[tuple[str, _Port]] = []
    for tensor in tensors:
        # An output may also have the names of what OpenVINO has removed before it.
        name = next((name for name in known if name in tensor.get_names()), "")
        kind = tensor.get_element_type().get_type_name()
        lengths = (length.get_length() if length.is_static else None for length in tensor.get_partial_shape())
        ports.append((name, (_TYPES.get(kind, kind), *lengths)))
    return ports


def _refused(file: ModelFile, runtime: str, error: Exception) -> CarnetError:
    lines = str(error).strip().splitlines()
    reason = lines[0] if lines else type(error).__name__
    if is_out_of_memory(error):
        return OutOfMemoryError(f"{runtime} lacks memory to open {file.name} ({reason}); close other programs")
    return ModelFileError(f"{runtime} cannot run {file.name}: {reason}")
