"""What the machine has and how a training uses it: cores, device, precision, processes.

Libraries are imported where they are needed: tools that only look at a run start without them.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from accelerate import Accelerator

WORLD_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")


def available_cores() -> int:
    """Cores that this process may use: by affinity, by the quota of its cgroup, or all."""
    from joblib import cpu_count

    return cpu_count()


def launched_processes() -> int:
    """Processes that a launcher (torchrun, accelerate launch) started together; 1 without one."""
    return max(int(os.environ.get(name, 1)) for name in WORLD_SIZES)


def pick_device() -> "torch.device":
    """CUDA where there is a GPU, else Apple's GPU, else the CPU.

    Under a launcher every process gets the GPU of its local rank. ACCELERATE_USE_CPU=true leaves
    GPUs alone. Apple's GPU has no float64: only float32 goes to the device.
    """
    import torch
    from accelerate.utils import parse_flag_from_env

    if parse_flag_from_env("ACCELERATE_USE_CPU"):
        return torch.device("cpu")
    if torch.cuda.is_available():
        rank = int(os.environ.get("LOCAL_RANK", 0))
        return torch.device("cuda", rank % torch.cuda.device_count())
    # Several processes cannot share Apple's GPU: no collective runs there.
    if torch.backends.mps.is_available() and launched_processes() == 1:
        return torch.device("mps")
    return torch.device("cpu")


def device_name() -> str:
    """The accelerator's product name, or "CPU"."""
    import torch

    device = pick_device()
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return "Apple GPU" if device.type == "mps" else "CPU"


def cpu_has_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware (Linux says so; else False)."""
    try:
        words = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return False
    return bool(words & {"avx512_bf16", "amx_bf16"})


def mixed_precision(
    device: "torch.device", formats: Sequence[str] = ("bf16", "fp16"), on_cpu: bool = False
) -> str:
    """The half precision to train with, of those that the training can bear; "no" for none.

    bfloat16 where the hardware has it (compute capability 8 and above): older GPUs emulate it,
    slower than float32. Else float16 with a scaled loss, for networks whose numbers stay below
    65504. ``on_cpu``: convolutions gain from bfloat16 on a CPU too, small matrices do not.
    """
    import torch

    if device.type == "cpu" and on_cpu and "bf16" in formats and cpu_has_bfloat16():
        return "bf16"
    if device.type != "cuda":
        return "no"
    has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    best = "bf16" if has_bfloat16 else "fp16"
    return best if best in formats else "no"


def make_accelerator(formats: Sequence[str] = (), on_cpu: bool = False) -> "Accelerator":
    """An Accelerator on ``pick_device()``; ``formats`` and ``on_cpu`` as in `mixed_precision`.

    A network may have weights that a step does not use: frozen parts, the other player of a GAN.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs

    device = pick_device()
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=mixed_precision(device, formats, on_cpu),
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
    )
