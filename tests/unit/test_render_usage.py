"""What a job used, beside what it asked for."""

from __future__ import annotations

from typing import Any

from buyer_cli import render
from buyer_cli.render_usage import remarks, usage_lines, warning_kind, waste

GPUS = [{"index": 2, "uuid": "GPU-b", "vram_mib": 24_564}, {"index": 0, "uuid": "GPU-a", "vram_mib": 24_564}]
USAGE = {
    "gpus": ["GPU-a", "GPU-b"],
    "samples": 100,
    "cpu_ms": 90_000,
    "peak_memory_mib": 2000,
    "mean_gpu_percent": [63, 0],
    "max_gpu_percent": [98, 0],
    "peak_gpu_memory_mib": [20_000, 1],
}


def job(**changes: Any) -> dict[str, Any]:
    usual = {"gpus": GPUS, "usage": USAGE, "ran_ms": 60_000, "timeout_s": 3600, "cores": 4}
    return usual | {"memory_mib": 16_000, "estimate_s": 50} | changes


def test_what_was_asked_stands_beside_what_was_used() -> None:
    assert [
        ("time", "1 min of 1 h; 120 % of the estimate of 50 s"),
        ("card 0", "used 63 % in the mean, 98 % at most; 21.0 GB of 25.8 GB of its memory"),
        ("card 2", "never used: 50 % of the bill"),
        ("main memory", "2.1 GB of 16.8 GB asked"),
        ("cores", "1.5 in the mean of 4 asked"),
    ] == usage_lines(job())


def test_what_nobody_asked_for_is_only_told() -> None:
    lines = dict(usage_lines(job(cores=0, memory_mib=0, estimate_s=None)))
    assert ("1 min of 1 h", "2.1 GB; nothing was asked", "1.5 in the mean; nothing was asked") == (
        lines["time"],
        lines["main memory"],
        lines["cores"],
    )


def test_a_card_that_was_never_used_is_said_at_the_end() -> None:
    assert ["card 2 was never used: 50 % of the bill"] == waste(job())
    alone = job(usage=USAGE | {"gpus": ["GPU-b"], "mean_gpu_percent": [0], "max_gpu_percent": [0]})
    assert ["card 2 was never used; --gpus 0 is a job without cards"] == waste(alone)


def test_a_card_that_was_hardly_looked_at_or_could_not_be_read_is_not_accused() -> None:
    assert [] == waste(job(usage=USAGE | {"samples": 2}))
    unread = job(usage=USAGE | {"mean_gpu_percent": [None, None], "max_gpu_percent": [None, None], "peak_gpu_memory_mib": [None, None]})
    assert [] == waste(unread)
    assert "card 0" not in dict(usage_lines(unread))


def test_after_a_failure_its_node_has_the_word() -> None:
    assert ["use less"] == remarks({"state": "failed", "detail": "use less"})
    assert [] == remarks({"state": "succeeded", "detail": "left something out"})


def test_a_job_that_was_never_looked_at_has_nothing_to_compare() -> None:
    assert [] == usage_lines(job(usage=None)) == usage_lines({}) == usage_lines(job(usage={"samples": 0}))
    assert [] == waste({})


def test_a_running_job_shows_what_it_does_and_what_will_end_it() -> None:
    using = {"ran_ms": 1, "gpu_percent": 34, "gpu_memory_mib": 3000, "memory_mib": 2000}
    running = {"state": "running", "using": using, "warning": "stops in 5 min: run timeout; bazaar extend JOB 1h\x1b[2J"}
    lines = dict(usage_lines(running))
    assert "GPU 34 %, 3.1 GB of GPU memory, 2.1 GB of main memory" == lines["using now"]
    assert "\x1b" not in lines["warning"]
    assert "running (stops in 5 min)" == render.state(running)


def test_a_limit_that_is_tighter_than_the_timeout_is_told() -> None:
    assert [("ends after", "20 s, by its estimate or its budget")] == usage_lines({"timeout_s": 60, "limit_s": 20})
    assert [] == usage_lines({"timeout_s": 60, "limit_s": 60})


def test_a_countdown_makes_no_new_warning() -> None:
    assert warning_kind("stops in 5 min: idle for 30 min") == warning_kind("stops in 4 min: idle for 31 min")
    assert warning_kind("stops in 5 min: idle") != warning_kind("stops in 5 min: run timeout")
