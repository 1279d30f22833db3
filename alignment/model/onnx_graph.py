"""ONNX graphs of torch modules: how they are written, and the session that runs them on the CPU."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alignment.interrupts import uninterrupted

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from torch import Tensor, nn

# The oldest version of ONNX that has everything a feature map needs: old runtimes can read it.
OPSET = 18
WEIGHTS = ".weights"


def write_graph(
    module: "nn.Module", inputs: Mapping[str, "Tensor"], outputs: Sequence[str], axes: Mapping[int, str]
) -> bytes:
    """Return the graph of a module that takes `inputs` in their order, and any length along each of `axes`.

    Args:
        module: in its evaluation mode.
        inputs: examples, by the names of the graph's inputs. Give each of `axes` a length of its own, above 1: a length
            that is 1, or equal to another, can become a constant.
        outputs: names of the outputs.
        axes: by number, names of the dimensions that vary. All inputs have them.
    """
    import torch  # here, because what runs a graph needs none

    # One input names the dimensions; torch finds that the others are as long, and warns of a second name.
    named = {axis: torch.export.Dim(name, min=0 if axis == 0 else 1) for axis, name in axes.items()}
    alike: Any = dict.fromkeys(axes, torch.export.Dim.AUTO)
    with torch.no_grad(), uninterrupted():
        program = torch.onnx.export(
            module,
            tuple(inputs.values()),
            None,
            dynamo=True,
            verbose=False,
            external_data=False,
            opset_version=OPSET,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=(named, *[alike] * (len(inputs) - 1)),
        )
    assert program is not None  # which only the old exporter returns
    onnx: bytes = program.model_proto.SerializeToString()
    return onnx


def save_graph(onnx: bytes, path: Path) -> None:
    """Write a graph into two new files: its nodes at `path`, its weights beside it, which a session maps into memory.

    In one file a session would hold the weights twice while it opens.
    """
    from onnx import load_model_from_string, save_model  # here, because it is an extra package

    weights = path.with_suffix(WEIGHTS)
    save_model(load_model_from_string(onnx), path, save_as_external_data=True, location=weights.name)
    files = [file for file in (weights, path) if file.exists()]  # small weights stay with the nodes
    for written in files:
        written.chmod(path.stat().st_mode)  # onnx writes weights for their owner alone
        with written.open("rb+") as file:
            os.fsync(file.fileno())


def open_graph(onnx: bytes | Path) -> "InferenceSession":
    """Return a session that runs a graph, or the one in a file, on the CPU."""
    from onnxruntime import InferenceSession  # here, because it is an extra package

    return InferenceSession(onnx, providers=["CPUExecutionProvider"])
