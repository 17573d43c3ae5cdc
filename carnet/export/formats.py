"""The formats of exported models: one .onnx file, or a folder for another runtime, converted from the ONNX graph.

A folder is opened in its own runtime, which the gate evaluates. OpenVINO comes with the extra `openvino`. ncnn and its
converter are in no extra of ours: `pip install pnnx ncnn`.
"""

from __future__ import annotations

import io
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import onnx
from onnx import TensorProto, helper

from carnet import files
from carnet.edge.classifier import Classifier
from carnet.edge.model_file import ModelFile
from carnet.edge.runtimes import OUTPUTS, PIXELS, Outputs, Run, Runtime, checked, open_openvino, openvino_core
from carnet.errors import ConfigError, MissingExtraError, ModelError, OutputError
from carnet.preprocess import Images
from carnet.spec import ModelSpec

FormatName = Literal["onnx", "openvino", "ncnn"]
Contents = dict[str, bytes]
"""Files of a folder: name -> content."""
DOCUMENT = "model.json"
"""What a folder says about itself: the document that an .onnx file holds inside."""
_SAME = 0.01
"""Largest difference of an output's value between two runtimes, as a share of the largest value."""
_CONVERTER_SECONDS = 600
"""A converter that has not ended by then never will."""


class FileFormat(ABC):
    """How a model is opened to be evaluated, and written.

    Attributes:
        runtime: what computes.
        packages: whose versions a model states.
    """

    runtime: str
    packages: tuple[str, ...]

    @abstractmethod
    def default_name(self, is_quantized: bool) -> str:
        """Return the name of the file or folder in a run's folder."""

    @abstractmethod
    def check(self, path: Path) -> None:
        """Check, before long work, that a model may be written there, and that what opens it is installed.

        Raises:
            OutputError: if it may not.
            MissingExtraError: without the converter, or the runtime.
        """

    @abstractmethod
    def open(self, content: bytes) -> Classifier:
        """Open the content of a model file, converted where this format is another."""

    @abstractmethod
    def size_bytes(self, classifier: Classifier, content: bytes) -> int:
        """Return the size of what `write` writes: of a file with this content, or of what `open` has opened."""

    @abstractmethod
    def write(self, classifier: Classifier, path: Path) -> None:
        """Write what `open` has opened, whole or not at all."""


def format_named(name: FormatName, runtime: Runtime) -> FileFormat:
    """Return a format; `runtime` computes .onnx files.

    Raises:
        ConfigError: for an unknown name, or another format with a runtime of its own.
    """
    if name not in get_args(FormatName):
        raise ConfigError(f"--format must be one of {', '.join(get_args(FormatName))}, got {name!r}")
    if name == "onnx":
        return Onnx(runtime)
    if runtime not in ("onnxruntime", name):
        raise ConfigError(f"--runtime is for .onnx files; a model in the format {name} is evaluated with {name}")
    return OpenVino() if name == "openvino" else Ncnn()


class Onnx(FileFormat):
    """One self-describing .onnx file, computed by a runtime that reads it."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime, self.packages = runtime, (runtime,)
        self._open = partial(Classifier, threads=1, runtime=runtime)

    def default_name(self, is_quantized: bool) -> str:
        """Return model.onnx or model-int8.onnx."""
        return "model-int8.onnx" if is_quantized else "model.onnx"

    def check(self, path: Path) -> None:
        """Check the name and its folder."""
        files.check_target(path, ".onnx")

    def open(self, content: bytes) -> Classifier:
        """Open it as users open a file, but from memory."""
        return self._open(content)

    def size_bytes(self, classifier: Classifier, content: bytes) -> int:
        """Return the size of the file."""
        return len(content)

    def write(self, classifier: Classifier, path: Path) -> None:
        """Write the file."""
        files.write_bytes(path, classifier.content)


class _Converted(Classifier):
    """A model file that another runtime computes from files of its own; `files` holds them."""

    def __init__(self, content: bytes, of: FolderFormat) -> None:
        super().__init__(content, threads=1)
        file, original = self._opened[0], self._run
        self.files = of.convert(file)
        self._run = checked(file, of.run_of(file, self.files), of.runtime)
        shape = (2, self.spec.image_size, self.spec.image_size, self.spec.in_channels)
        images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        found = self._run(images)
        # The gate compares logits; the other outputs are compared here.
        for name, expected in original(images).items():
            if np.abs(found[name] - expected).max() > _SAME * np.abs(expected).max():
                raise ModelError(f"{of.runtime} computes other {name} than ONNX Runtime for {self.spec.model}")

    def __getstate__(self) -> dict[str, Any]:
        raise TypeError("a converted model cannot be pickled; its runtime belongs to this process")


class FolderFormat(FileFormat):
    """A folder with the files that another runtime reads, and `model.json`.

    Attributes:
        names: the files that the runtime reads.
    """

    names: tuple[str, ...]

    @abstractmethod
    def check_installed(self) -> None:
        """Raise a MissingExtraError where the converter or the runtime is missing."""

    @abstractmethod
    def convert(self, file: ModelFile) -> Contents:
        """Return what the runtime reads.

        Raises:
            ModelError: if the network cannot be converted.
        """

    @abstractmethod
    def run_of(self, file: ModelFile, contents: Mapping[str, bytes]) -> Run:
        """Open what `convert` has returned, on one thread."""

    def default_name(self, is_quantized: bool) -> str:
        """Return model-NAME."""
        return f"model-{self.runtime}"

    def check(self, path: Path) -> None:
        """Check that the folder is new, empty, or an earlier one of this format."""
        if path.suffix == ".onnx":
            raise OutputError(
                f"--format {self.runtime} writes a folder, and {path} ends in .onnx; choose another --output"
            )
        mark = f'"evaluated_with": "{self.runtime}"'.encode()
        files.check_replaceable(path, (*self.names, DOCUMENT), (DOCUMENT, mark), "--output")
        self.check_installed()

    def open(self, content: bytes) -> Classifier:
        """Convert, and open the result."""
        return _Converted(content, self)

    def size_bytes(self, classifier: Classifier, content: bytes) -> int:
        """Return the size of the files that the runtime reads."""
        assert isinstance(classifier, _Converted)
        return sum(map(len, classifier.files.values()))

    def write(self, classifier: Classifier, path: Path) -> None:
        """Write the folder, with the document beside the files."""
        assert isinstance(classifier, _Converted)
        document = files.to_json(classifier.document) + "\n"
        files.replace_folder(path, classifier.files | {DOCUMENT: document.encode()})

    def _read(self, folder: Path) -> Contents:
        return {name: (folder / name).read_bytes() for name in self.names}


class OpenVino(FolderFormat):
    """OpenVINO's own files, for its processors, graphics and neural units; the input is that of the .onnx file."""

    runtime = "openvino"
    packages = ("openvino",)
    names = ("model.xml", "model.bin")

    def check_installed(self) -> None:
        """Import OpenVINO."""
        try:
            import openvino  # noqa: F401
        except ModuleNotFoundError:
            raise MissingExtraError("--format openvino", "OpenVINO", "openvino") from None

    def convert(self, file: ModelFile) -> Contents:
        """Convert by reading and saving, which, unlike OpenVINO's converter, sends no usage statistics."""
        import openvino

        with tempfile.TemporaryDirectory() as folder:
            try:
                model = openvino_core().read_model(io.BytesIO(_graph_of(file).SerializeToString()))
                # Weights in 16 bits would halve the file, and be another network than the one that was trained.
                openvino.save_model(model, Path(folder) / "model.xml", compress_to_fp16=False)
            # Whatever OpenVINO raises.
            except Exception as error:
                said = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise ModelError(f"OpenVINO cannot convert {file.spec.model}: {said}") from error
            return self._read(Path(folder))

    def run_of(self, file: ModelFile, contents: Mapping[str, bytes]) -> Run:
        """Open the files as `--runtime openvino` opens an .onnx file."""
        network, weights = (contents[name] for name in self.names)
        return open_openvino(file, 1, (network, weights))


class Ncnn(FolderFormat):
    """ncnn's files, for phones and small boards; input: float32 (C, S, S), as of `ncnn::Mat::from_pixels`."""

    runtime = "ncnn"
    packages = ("ncnn", "pnnx")
    names = ("model.ncnn.param", "model.ncnn.bin")

    def check_installed(self) -> None:
        """Import ncnn and pnnx."""
        try:
            import ncnn  # noqa: F401
            import pnnx  # noqa: F401
        except ModuleNotFoundError:
            raise MissingExtraError("--format ncnn", "ncnn and its converter", install="pnnx ncnn") from None

    def convert(self, file: ModelFile) -> Contents:
        """Convert with pnnx, which writes more files than are needed."""
        import pnnx

        spec = file.spec
        shape = f"inputshape=[{','.join(map(str, _shape(spec)))}]f32"
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "model.onnx").write_bytes(_from_floats(file).SerializeToString())
            # Weights in 16 bits: as for OpenVINO.
            command = [pnnx.EXEC_PATH, "model.onnx", shape, "fp16=0"]
            try:
                done = subprocess.run(
                    command, cwd=folder, capture_output=True, errors="replace", check=False, timeout=_CONVERTER_SECONDS
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                raise ModelError(f"pnnx cannot convert {spec.model}: {error}") from error
            try:
                contents = self._read(Path(folder))
            except OSError as error:
                said = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
                raise ModelError(f"pnnx cannot convert {spec.model}: {said}") from error
        return contents | {"model.ncnn.param": with_names(contents["model.ncnn.param"])}

    def run_of(self, file: ModelFile, contents: Mapping[str, bytes]) -> Run:
        """Open the files on one thread, in float32; by default ncnn computes in 16 bits on many processors."""
        import ncnn

        net = ncnn.Net()
        net.opt.num_threads = 1
        for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic"):
            setattr(net.opt, option, False)
        with tempfile.TemporaryDirectory() as folder:
            _write(Path(folder), contents)
            param, weights = (str(Path(folder) / name) for name in self.names)
            if net.load_param(param) or net.load_model(weights):
                raise ModelError(
                    f"ncnn cannot open {file.spec.model}: it lacks one of its layers; export it without --format"
                )
        there = [name for name in OUTPUTS if name in contents["model.ncnn.param"].decode().split()]

        def run(images: Images) -> Outputs:
            answers: dict[str, list[Any]] = {name: [] for name in there}
            for image in images:
                # Has to outlive the matrix, which does not copy it.
                pixels = np.ascontiguousarray(image.transpose(2, 0, 1), np.float32)
                extractor = net.create_extractor()
                extractor.input(PIXELS, ncnn.Mat(pixels))
                for name in there:
                    failed, found = extractor.extract(name)
                    if failed:
                        raise ModelError(f"ncnn cannot compute {name} of {file.spec.model}")
                    answers[name].append(np.array(found))
            return {name: np.stack(values) for name, values in answers.items()}

        return run


def with_names(param: bytes) -> bytes:
    """Return the description of an ncnn network with the names that its input and outputs have in the .onnx file."""
    names = {"in0": PIXELS} | {f"out{number}": name for number, name in enumerate(OUTPUTS)}
    lines = (line.split() for line in param.decode().splitlines())
    # Any number of blanks separates columns.
    return "".join(" ".join(names.get(word, word) for word in words) + "\n" for words in lines).encode()


def _graph_of(file: ModelFile) -> onnx.ModelProto:
    """Return the graph of a model file, without its document."""
    model = onnx.load_model_from_string(file.content)
    del model.metadata_props[:]
    return model


def _from_floats(file: ModelFile) -> onnx.ModelProto:
    """Return the graph for one image of floats with channels first, which its first two nodes make of its input."""
    model = _graph_of(file)
    graph, spec = model.graph, file.spec
    readers = {node.input[0]: node for node in graph.node if node.input and node.op_type in ("Transpose", "Cast")}
    transpose = readers.get(PIXELS)
    cast = transpose and readers.get(transpose.output[0])
    if transpose is None or cast is None:
        raise ModelError(f"{spec.model} uses its input in a way that the format ncnn does not allow")
    for node in graph.node:
        for number, name in enumerate(node.input):
            if name == cast.output[0]:
                node.input[number] = PIXELS
    graph.node.remove(transpose)
    graph.node.remove(cast)
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(PIXELS, TensorProto.FLOAT, _shape(spec)))
    for output in graph.output:
        output.type.tensor_type.shape.dim[0].dim_value = 1
    return model


def _shape(spec: ModelSpec) -> tuple[int, int, int, int]:
    return (1, spec.in_channels, spec.image_size, spec.image_size)


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    for name, content in contents.items():
        (folder / name).write_bytes(content)
