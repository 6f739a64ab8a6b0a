"""Models as ONNX files that carry their preprocessing and say what they are."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from e2e_utils.errors import InputError
from e2e_utils.files import atomic_path
from e2e_utils.machine import available_cores

OPSET = 17
Batch = torch.Tensor | np.ndarray


def export_onnx(
    model: nn.Module,
    example: torch.Tensor | tuple[torch.Tensor, ...],
    path: str | Path,
    input_names: Sequence[str],
    output_names: Sequence[str],
    metadata: Mapping[str, object],
    opset: int = OPSET,
    ir_version: int | None = None,
) -> None:
    """Write ``model`` in evaluation mode, with a free batch axis and ``metadata``; atomic.

    The tracing exporter is used because old runtimes, such as the one of CMSSW, need opsets
    (``opset=10``, ``ir_version=5``) that the newer exporter cannot write.
    """
    training = model.training
    model.eval()
    axes = {name: {0: "batch"} for name in (*input_names, *output_names)}
    try:
        with atomic_path(path) as temporary, warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of the tracing exporter itself
            # Opset 10: squeezing an axis of unknown length (ours are known), slices not folded.
            warnings.filterwarnings("ignore", "This model contains a squeeze operation")
            warnings.filterwarnings("ignore", "Constant folding")
            torch.onnx.export(
                model,
                example if isinstance(example, tuple) else (example,),
                temporary,
                input_names=list(input_names),
                output_names=list(output_names),
                dynamic_axes=axes,
                opset_version=opset,
                dynamo=False,
            )
            graph = onnx.load(temporary)
            graph.ir_version = graph.ir_version if ir_version is None else ir_version
            onnx.helper.set_model_props(graph, {key: str(v) for key, v in metadata.items()})
            onnx.checker.check_model(graph, full_check=True)
            temporary.write_bytes(graph.SerializeToString())
    finally:
        model.train(training)


def open_session(path: str | Path, threads: int | None = None) -> onnxruntime.InferenceSession:
    """ONNX Runtime session on the CPU, with as many threads as there are cores for this process.

    Left to itself it starts one for every core of the machine, allowed or not. Raises InputError
    for a file that is no model.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or available_cores()
    options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's exceptions have no common base class
        raise InputError(
            f"{path}: expected an ONNX model, found {' '.join(str(error).split())[:120]}; "
            "export it again"
        ) from error


@torch.no_grad()
def check_parity(
    model: nn.Module,
    path: str | Path,
    inputs: Sequence[Batch | tuple[Batch, ...]],
    tolerance: float = 1e-4,
) -> float:
    """Largest absolute difference between torch and ONNX Runtime over ``inputs``.

    Give physical inputs of several batch sizes. Raises ValueError above ``tolerance`` or where a
    shape differs.
    """
    session = open_session(path, threads=1)
    names = [entry.name for entry in session.get_inputs()]
    training, worst = model.training, 0.0
    model.eval()
    for arguments in inputs:
        arguments = arguments if isinstance(arguments, tuple) else (arguments,)
        arguments = [torch.as_tensor(argument) for argument in arguments]
        expected = model(*arguments)
        expected = expected if isinstance(expected, tuple) else (expected,)
        feed = {n: a.cpu().numpy() for n, a in zip(names, arguments, strict=True)}
        for torch_output, found in zip(expected, session.run(None, feed), strict=True):
            wanted = torch_output.cpu().numpy()
            if wanted.shape != found.shape:
                raise ValueError(f"{Path(path).name}: shape {found.shape}, torch {wanted.shape}")
            # np.maximum keeps a NaN, max would drop it
            worst = np.maximum(worst, np.abs(wanted - found).max(initial=0.0))
    model.train(training)
    if not worst <= tolerance:
        raise ValueError(f"{Path(path).name}: differs from torch by {worst:g} > {tolerance:g}")
    return float(worst)
