"""A traced program as an ONNX graph of standard operators."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from openrec.errors import ConfigError
from openrec.export.onnx_session import SIZES, onnxruntime
from openrec.export.subject import Sizes, Subject
from openrec.export.trace import quiet, standard_operators, trace
from openrec.export_format import INPUT_NAME, OUTPUT_NAME
from openrec.version import __version__

OPSETS = (18, 23)  # GridSample of maps needs 16, the exporter's functions 18
STANDARD = ("", "ai.onnx")
PREFIX = "model."  # of names inside a traced ``Subject``


class Graph(NamedTuple):
    """An ONNX model that is not yet written.

    Attributes:
        proto: ``onnx.ModelProto``.
        layers: by layer of the PyTorch model, the values that were computed inside it, in order.
    """

    proto: Any
    layers: dict[str, list[str]]

    def content(self) -> bytes:
        return self.proto.SerializeToString()


def onnx_package() -> Any:
    """``onnx``, where the exporter is complete.

    Raises:
        ConfigError: a package of the extra [export] is missing.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigError(f'writing ONNX needs {error.name}. Install it: pip install "openrec[export]"') from error
    onnxruntime()  # for the check
    return onnx


def make_graph(subject: Subject, sizes: Sizes, opset: int = 18) -> Graph:
    """The ONNX graph of ``subject``, with names, metadata and nothing of the machine that made it.

    Raises:
        ConfigError: a package is missing, the model cannot be traced, or needs an operator that is not standard.
    """
    onnx_package()
    if not OPSETS[0] <= opset <= OPSETS[1]:
        raise ConfigError(f"opset: expected {OPSETS[0]} to {OPSETS[1]}, got {opset}.")
    with standard_operators(sizes):
        program = trace(subject, sizes)
        with quiet(), torch.no_grad():
            made = _convert(program, opset)
    proto = made.model_proto
    foreign = sorted({f"{n.domain}::{n.op_type}" for n in proto.graph.node if n.domain not in STANDARD})
    if foreign or proto.functions:
        raise ConfigError(f"export: the graph needs operators that are not standard ONNX: {', '.join(foreign)}.")
    _name_axes(proto.graph)
    layers = _layers(proto.graph)
    _forget(proto)
    texts = {**subject.card.metadata(), SIZES: sizes.text()}
    describe(proto, texts)
    return Graph(proto, layers)


def _convert(program: Any, opset: int) -> Any:
    from onnx_ir.passes.common import CommonSubexpressionEliminationPass
    from onnxscript.optimizer import fold_constants, remove_unused_nodes

    names: dict[str, Any] = {"input_names": [INPUT_NAME], "output_names": [OUTPUT_NAME], "optimize": False}
    try:
        made: Any = torch.onnx.export(program, (), dynamo=True, opset_version=opset, verbose=False, **names)
    except Exception as error:  # the exporter may raise anything
        lines = [line.strip() for line in str(error).splitlines() if "rror when" in line]
        raise ConfigError(f"export: a layer has no ONNX form: {(lines or [str(error)])[-1][:300]}") from error
    # The exporter's own optimisation searches patterns for hours in the graph of a decoder that reads 25 steps; this is
    # its quick part, and onnxruntime does the rest when it opens the file.
    fold_constants(made.model, onnx_shape_inference=False)
    remove_unused_nodes(made.model)
    CommonSubexpressionEliminationPass()(made.model)
    remove_unused_nodes(made.model)
    return made


def describe(proto: Any, texts: Mapping[str, str]) -> None:
    """Write the metadata."""
    proto.producer_name, proto.producer_version = "openrec", __version__
    for key, value in texts.items():
        entry = proto.metadata_props.add()
        entry.key, entry.value = key, value


def _name_axes(graph: Any) -> None:
    """Free axes under names that say what they are."""
    for value, names in ((graph.input[0], ("batch", "", "height", "width")), (graph.output[0], ("batch", "steps", ""))):
        for axis, name in zip(value.type.tensor_type.shape.dim, names):
            if axis.HasField("dim_param") and name:
                axis.dim_param = name


def _layers(graph: Any) -> dict[str, list[str]]:
    """Values by the layer they were computed in, and in the layers around it."""
    layers: dict[str, list[str]] = {}
    for node in graph.node:
        scopes = next((p.value for p in node.metadata_props if p.key == "pkg.torch.onnx.name_scopes"), "[]")
        for scope in ast.literal_eval(scopes)[:-1]:
            layers.setdefault(scope.removeprefix(PREFIX), []).extend(name for name in node.output if name)
    return layers


def _forget(proto: Any) -> None:
    """Leave out stack traces and paths of this machine, and sizes that the runtime finds by itself."""
    graph = proto.graph
    for holder in (proto, graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del holder.metadata_props[:]
        holder.doc_string = ""
    del graph.value_info[:]
    renamed = {t.name: t.name.removeprefix(PREFIX) for t in graph.initializer if t.name.startswith(PREFIX)}
    for tensor in graph.initializer:
        tensor.name = renamed.get(tensor.name, tensor.name)
    for node in graph.node:
        for i, name in enumerate(node.input):
            if name in renamed:
                node.input[i] = renamed[name]


def layer_values(graph: Graph, images: np.ndarray) -> dict[str, list[np.ndarray]]:
    """What each layer computes for ``images``, by onnxruntime."""
    runtime = onnxruntime()
    inside = sorted({name for names in graph.layers.values() for name in names})
    proto = type(graph.proto)()
    proto.CopyFrom(graph.proto)
    known = {value.name for value in proto.graph.output}
    for name in inside:
        if name not in known:
            proto.graph.output.add().name = name
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = runtime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    values = dict(zip(inside, session.run(inside, {INPUT_NAME: images})))
    return {layer: [values[name] for name in names] for layer, names in graph.layers.items()}
