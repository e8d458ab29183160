"""Looks at the cards that a job was given, and says whether they are what was asked for. Exit code 0: they are; 1: they are not.

    bazaar run --gpus 2 --vram 24GB examples/gpu_check.py -- --gpus 2 --vram 24GB

Needs nothing but Python: the driver's own library is asked. Where torch or cupy is there, every card also computes something small.
"""

import argparse
import ctypes
import os
import sys
import time

MIB = 1 << 20


class Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


class Driver:
    """NVIDIA's management library, as far as it is needed here."""

    def __init__(self) -> None:
        self.library = ctypes.CDLL("libnvidia-ml.so.1")  # raises OSError where there is none
        self.call("nvmlInit_v2")

    def call(self, name: str, *arguments: object) -> None:
        code = getattr(self.library, name)(*arguments)
        if code != 0:
            words = self.library.nvmlErrorString
            words.restype = ctypes.c_char_p
            raise OSError(f"{name}: {words(code).decode()}")

    def text(self, name: str, handle: ctypes.c_void_p) -> str:
        buffer = ctypes.create_string_buffer(96)
        self.call(name, handle, buffer, ctypes.c_uint(96))
        return buffer.value.decode()

    def card(self, uuid: str) -> tuple[str, int]:
        """Name and memory in MiB of the card with this UUID."""
        handle, memory = ctypes.c_void_p(), Memory()
        self.call("nvmlDeviceGetHandleByUUID", uuid.encode(), ctypes.byref(handle))
        self.call("nvmlDeviceGetMemoryInfo", handle, ctypes.byref(memory))
        return self.text("nvmlDeviceGetName", handle), memory.total // MIB


def size_mib(text: str) -> int:
    """`24GB`, `24GiB` or `24`, as the market reads it."""
    number = text.rstrip("GgIiBb ")
    factor = 1 << 30 if text[len(number) :].strip().lower().startswith("gi") else 10**9
    return int(float(number) * factor) // MIB


def look(uuids: list[str]) -> list[tuple[str, int]]:
    """What the driver says of these cards. Ends the program when it does not know one of them."""
    if not uuids:
        return []
    try:
        driver = Driver()
    except OSError as error:
        sys.exit(f"FAILED: this job has {len(uuids)} card(s), and the driver cannot be asked about them: {error}")
    found = []
    for index, uuid in enumerate(uuids):
        try:
            found.append(driver.card(uuid))
        except OSError as error:
            sys.exit(f"FAILED: card {index} ({uuid}) is this job's, and it is not there: {error}")
    return found


def compute(count: int) -> str:
    """A small computation on every card, checked; in words. Ends the program when it is wrong."""
    try:
        import torch
    except ImportError:
        return compute_with_cupy(count)
    if not torch.cuda.is_available() or torch.cuda.device_count() != count:
        sys.exit(f"FAILED: torch sees {torch.cuda.device_count()} card(s), this job has {count}")
    begun = time.monotonic()
    for index in range(count):
        ones = torch.ones((1024, 1024), device=f"cuda:{index}")
        if float((ones @ ones).sum()) != 1024.0**3:
            sys.exit(f"FAILED: card {index} computes wrong")
    return f"torch {torch.__version__} computed on every card in {time.monotonic() - begun:.2f} s"


def compute_with_cupy(count: int) -> str:
    try:
        import cupy
    except ImportError:
        return "neither torch nor cupy is here: nothing was computed"
    if cupy.cuda.runtime.getDeviceCount() != count:
        sys.exit(f"FAILED: cupy sees {cupy.cuda.runtime.getDeviceCount()} card(s), this job has {count}")
    for index in range(count):
        with cupy.cuda.Device(index):
            ones = cupy.ones((1024, 1024))
            if float((ones @ ones).sum()) != 1024.0**3:
                sys.exit(f"FAILED: card {index} computes wrong")
    return f"cupy {cupy.__version__} computed on every card"


def main() -> None:
    parser = argparse.ArgumentParser(description="Are the cards of this job what was asked for?")
    parser.add_argument("--gpus", type=int, help="so many cards were asked for")
    parser.add_argument("--vram", type=size_mib, help="each with so much memory, such as 24GB")
    parser.add_argument("--model", help="each with this in its name, such as 'RTX 4090'")
    asked = parser.parse_args()
    uuids = [uuid for uuid in os.environ.get("BAZAAR_GPU_UUIDS", "").split(",") if uuid]
    print(f"this job has {len(uuids)} card(s); CUDA_VISIBLE_DEVICES={os.environ.get('CUDA_VISIBLE_DEVICES', '')}")
    if asked.gpus is not None and asked.gpus != len(uuids):
        sys.exit(f"FAILED: {asked.gpus} card(s) were asked for, and there are {len(uuids)}")
    if uuids and all(uuid.startswith("SIM-") for uuid in uuids):
        print("OK: they are simulated, so there is nothing to look at")
        return
    for index, (name, memory_mib) in enumerate(look(uuids)):
        print(f"  card {index}: {name}, {memory_mib} MiB, {uuids[index]}")
        if asked.vram is not None and memory_mib < asked.vram:
            sys.exit(f"FAILED: card {index} has {memory_mib} MiB, and {asked.vram} MiB were asked for")
        if asked.model is not None and asked.model.lower() not in name.lower():
            sys.exit(f"FAILED: card {index} is {name}, and {asked.model} was asked for")
    if uuids:
        print(compute(len(uuids)))
    print("OK: the cards are what was asked for")


if __name__ == "__main__":
    main()
