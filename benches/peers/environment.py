"""What a figure depends on: the GPU, its driver, versions and the commit."""

import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch


def output_of(*command: str | Path) -> str:
    """What a command prints, or in brackets why there is nothing."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        return f"[{error}]"
    return done.stdout.strip()


def nvidia_smi(*fields: str) -> dict[str, str]:
    uuid = torch.cuda.get_device_properties(0).uuid
    line = output_of("nvidia-smi", f"--id=GPU-{uuid}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader")
    values = [value.strip() for value in line.split(",")]
    return dict(zip(fields, values)) if len(values) == len(fields) else dict.fromkeys(fields, line)


def clocks() -> dict[str, str]:
    return nvidia_smi("clocks.sm", "clocks.mem", "power.draw", "temperature.gpu")


def git_commit() -> str:
    """As FLASH_ALIBI_COMMIT says, away from the repository."""
    if "FLASH_ALIBI_COMMIT" in os.environ:
        return os.environ["FLASH_ALIBI_COMMIT"]
    folder = Path(__file__).parent
    commit = output_of("git", "-C", folder, "rev-parse", "HEAD")
    changes = output_of("git", "-C", folder, "status", "--porcelain")
    return f"{commit} with changes" if changes and not commit.startswith("[") else commit


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def l2_state(l2_bytes: int, tensor_bytes: int) -> str:
    return (
        f"not flushed between calls: q, k, v and out take {tensor_bytes / 2**20:.0f} MiB at least, "
        f"the GPU's L2 holds {l2_bytes / 2**20:.0f} MiB"
    )


def environment(packages: Iterable[str], tensor_bytes: int) -> dict[str, Any]:
    """Of a machine with a GPU; `tensor_bytes` are those of the smallest shape."""
    gpu = torch.cuda.get_device_properties(0)
    return {
        "gpu": gpu.name,
        "multiprocessors": gpu.multi_processor_count,
        "memory_bytes": gpu.total_memory,
        "driver": nvidia_smi("driver_version")["driver_version"],
        "limits": nvidia_smi("clocks.max.sm", "clocks.max.mem", "power.limit"),
        "l2": l2_state(gpu.L2_cache_size, tensor_bytes),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "pytorch": torch.__version__,
        "python": platform.python_version(),
        "packages": {package: version(package) for package in packages},
        "commit": git_commit(),
    }
