"""What to try when a program ended with a message that is known: a table from messages on stderr to advice. Pure.

Only what is almost certainly meant stands here; a hint is advice beside the reason of an end and never changes it.
"""

from __future__ import annotations

import re

TAIL_BYTES = 16_384
"""So much of the end of stderr is looked at."""

HINTS: tuple[tuple[str, str], ...] = (
    (
        r"Driver/library version mismatch",
        "the node's NVIDIA driver was updated under its kernel module; try another node (--target), its owner must restart this one",
    ),
    (
        r"CUDA driver version is insufficient|driver on your system is too old|unsupported display driver / cuda driver|"
        r"forward compatibility was attempted on non supported HW|the provided PTX was compiled with an unsupported toolchain",
        "the program's CUDA is newer than the node's driver; ask for a newer driver with --min-cuda, or use an image with an older CUDA",
    ),
    (
        r"no kernel image is available for execution|is not compatible with the current PyTorch installation",
        "the program was not built for this card's generation; use a build that names it, or another card with --gpu-model",
    ),
    (
        r"lib(?:cudart|cublas|cublasLt|cudnn\w*|cufft|curand|cusparse|cusolver|nccl|nvrtc|nvJitLink)\.so[.\d]*: "
        r"cannot open shared object file|"
        r"Could not (?:load|find|locate) (?:dynamic )?library .?lib(?:cudart|cudnn|cublas)|Unable to load any of \{libcudnn",
        "a CUDA library is missing where the job ran; use an image that has it, such as one of pytorch/pytorch, with --image",
    ),
    (
        r"libcuda\.so(?:\.1)?[^\n]{0,40}(?:cannot open shared object file|not found)|Could not load dynamic library .?libcuda\.so|"
        r"Found no NVIDIA driver on your system|no CUDA-capable device is detected|No CUDA GPUs are available|"
        r"NVML Shared Library Not Found|Torch not compiled with CUDA enabled|NVIDIA-SMI has failed",
        "the program sees no card: ask for one with --gpus, use a build of it with CUDA, and no simulated card if it is to compute",
    ),
    (
        r"CUDA out of memory|CUDA_ERROR_OUT_OF_MEMORY|cudaErrorMemoryAllocation|CUBLAS_STATUS_ALLOC_FAILED|"
        r"RESOURCE_EXHAUSTED: Out of memory",
        "a card's memory was full; ask for larger cards with --vram, or use a smaller batch",
    ),
    (
        r"DataLoader worker[^\n]{0,80}(?:Bus error|exited unexpectedly)|insufficient shared memory|"
        r"unable to (?:open|write to) (?:shared memory|file </torch_)",
        "shared memory (/dev/shm) was full; ask for more with --shm 8GB, or use fewer DataLoader workers",
    ),
    (
        r"[Ee]xec format error",
        "the program was built for another processor, or a script lacks its #! line; use an image or a build for this node's processor",
    ),
    (r"No space left on device", "the job's disk was full; write less, and results to $BAZAAR_OUT only"),
    (
        r"Temporary failure in name resolution|Name or service not known|Could not resolve host",
        "a job has no network unless it asks for it; ship what it needs with --in, or ask with --network egress",
    ),
)
_TABLE = tuple((re.compile(pattern, re.IGNORECASE), hint) for pattern, hint in HINTS)
_MODULE = re.compile(r"(?:ModuleNotFoundError|ImportError): No module named '?([A-Za-z0-9_.-]{1,60})")


def hint_for(stderr_tail: str) -> str:
    """What to try, for the last message that is known; empty when none is."""
    found = [(match.start(), hint) for pattern, hint in _TABLE if (match := _last(pattern, stderr_tail)) is not None]
    module = _last(_MODULE, stderr_tail)
    if module is not None:
        name = module[1].partition(".")[0]
        found.append((module.start(), f"Python has no module {name} where the job ran; use an image that has it, or ship it with --in"))
    return max(found)[1] if found else ""


def _last(pattern: re.Pattern[str], text: str) -> re.Match[str] | None:
    match = None
    for match in pattern.finditer(text):  # noqa: B007 - the last one is wanted
        pass
    return match
