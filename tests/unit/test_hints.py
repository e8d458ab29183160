"""Messages as programs really write them, and what their buyer is told to try."""

from __future__ import annotations

import pytest

from seller_agent.runs.hints import hint_for

REAL = [
    ("ImportError: libcudart.so.12: cannot open shared object file: No such file or directory", "a CUDA library is missing"),
    ("OSError: libcublas.so.11: cannot open shared object file: No such file or directory", "a CUDA library is missing"),
    (
        "Could not load library libcudnn_ops_infer.so.8. Error: libcudnn_ops_infer.so.8: cannot open shared object file: No such file",
        "a CUDA library is missing",
    ),
    ("ImportError: libcuda.so.1: cannot open shared object file: No such file or directory", "sees no card"),
    (
        "RuntimeError: Found no NVIDIA driver on your system. Please check that you have an NVIDIA GPU and installed a driver from "
        "http://www.nvidia.com/Download/index.aspx",
        "sees no card",
    ),
    ("cupy_backends.cuda.api.runtime.CUDARuntimeError: cudaErrorNoDevice: no CUDA-capable device is detected", "sees no card"),
    ("RuntimeError: No CUDA GPUs are available", "sees no card"),
    ("AssertionError: Torch not compiled with CUDA enabled", "sees no card"),
    (
        "RuntimeError: CUDA error: CUDA driver version is insufficient for CUDA runtime version\nCUDA kernel errors might be "
        "asynchronously reported at some other API call",
        "--min-cuda",
    ),
    (
        "RuntimeError: The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver",
        "--min-cuda",
    ),
    ("Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 550.54", "restart"),
    ("RuntimeError: CUDA error: no kernel image is available for execution on the device", "--gpu-model"),
    (
        "torch.cuda.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 23.64 GiB",
        "--vram",
    ),
    ("E0101 failed call to cuInit: CUDA_ERROR_OUT_OF_MEMORY: out of memory", "--vram"),
    (
        "ERROR: Unexpected bus error encountered in worker. This might be caused by insufficient shared memory (shm).\n"
        "RuntimeError: DataLoader worker (pid 4711) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
        "--shm",
    ),
    ("Traceback (most recent call last):\nModuleNotFoundError: No module named 'torch.utils'", "no module torch "),
    ("[FATAL tini (7)] exec ./a.out failed: Exec format error", "another processor"),
    ("OSError: [Errno 28] No space left on device", "$BAZAAR_OUT"),
    ("requests.exceptions.ConnectionError: [Errno -3] Temporary failure in name resolution", "--network egress"),
]


@pytest.mark.parametrize(("message", "advice"), REAL, ids=[message[:40] for message, _ in REAL])
def test_a_known_message_gets_its_advice(message: str, advice: str) -> None:
    assert advice in hint_for(f"some line\n{message}\n")


@pytest.mark.parametrize("message", ["", "Segmentation fault", "ValueError: 3", "libcudart.so.12 => /usr/lib/libcudart.so.12"])
def test_what_is_not_known_gets_none(message: str) -> None:
    assert "" == hint_for(message)


def test_of_several_messages_the_last_one_counts() -> None:
    text = "ImportError: libcuda.so.1: cannot open shared object file\n... falling back\nModuleNotFoundError: No module named 'apex'\n"
    assert "no module apex" in hint_for(text)


def test_advice_fits_into_an_event_and_any_terminal() -> None:
    for message, _ in REAL:
        assert len(hint_for(message)) <= 200
        assert hint_for(message).isascii() and hint_for(message).isprintable()
