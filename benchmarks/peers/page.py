"""Figures into the tables of docs/benchmarks.md: what was measured, what was aimed at, and how far off it is. Nothing is measured here."""

from __future__ import annotations

import statistics
from typing import NamedTuple

Figures = dict[str, dict[str, list[float]]]
"""System -> what -> a figure of every round."""
OURS, HYPERQUEUE, DASK, SBATCH, SRUN = "GPU Bazaar", "HyperQueue", "Dask", "Slurm, sbatch", "Slurm, srun"

ROWS = (
    ("submit to the job's first instruction, p50", "start p50", "{:,.1f} ms"),
    ("the same, p99", "start p99", "{:,.1f} ms"),
    ("full queue drained on 8 slots", "drain 8", "{:,.0f} jobs/s"),
    ("full queue drained on 64 slots", "drain 64", "{:,.0f} jobs/s"),
    ("submissions of one client", "per_s 10k", "{:,.0f}/s"),
    ("memory a queued job, 10,000 queued", "bytes 10k", "{:,.0f} bytes"),
    ("memory a queued job, 100,000 queued", "bytes 100k", "{:,.0f} bytes"),
    ("restart with 10,000 queued", "restart_s 10k", "{:,.2f} s"),
    ("restart with 100,000 queued", "restart_s 100k", "{:,.2f} s"),
)


class Aim(NamedTuple):
    """What one figure should be."""

    title: str
    measured: float | None
    limit: float
    form: str
    at_least: bool = False

    def row(self) -> str:
        """Target, figure, and the distance where there is one."""
        sign, target = (">=" if self.at_least else "<="), self.form.format(self.limit)
        if self.measured is None:
            return f"| {self.title} | {sign} {target} | not measured | - |"
        met = self.measured >= self.limit if self.at_least else self.measured <= self.limit
        factor = self.limit / self.measured if self.at_least else self.measured / self.limit
        return f"| {self.title} | {sign} {target} | {self.form.format(self.measured)} | {'met' if met else f'missed by {factor:.2f}x'} |"


def aims_table(aims: list[Aim]) -> str:
    """A row an aim."""
    return "\n".join(["| | target | measured | |", "|---|---|---|---|", *(aim.row() for aim in aims)])


def median(figures: Figures, name: str, what: str) -> float | None:
    """The median of the rounds, if there were any."""
    values = figures.get(name, {}).get(what)
    return statistics.median(values) if values else None


def peers_table(figures: Figures) -> str:
    """Medians, a column a system; the least and the most of the rounds where there were several."""
    names = list(figures)
    lines = [f"| | {' | '.join(names)} |", "|---|" + "---|" * len(names)]
    for title, what, form in ROWS:
        lines.append(f"| {title} | {' | '.join(_cell(figures[name].get(what, []), form) for name in names)} |")
    return "\n".join(lines)


def _cell(values: list[float], form: str) -> str:
    if not values:
        return "-"
    told = form.format(statistics.median(values))
    if len(values) == 1:
        return told
    number = form.partition("}")[0] + "}"
    return f"{told} ({number.format(min(values))} to {number.format(max(values))})"


def against(figures: Figures) -> list[Aim]:
    """This market's targets that are measured against others, and those of the same figures."""

    def ratio(what: str, name: str) -> float | None:
        mine, theirs = median(figures, OURS, what), median(figures, name, what)
        return None if mine is None or not theirs else mine / theirs

    def mine(what: str) -> float | None:
        return median(figures, OURS, what)

    return [
        Aim("start, p50", mine("start p50"), 5.0, "{:,.1f} ms"),
        Aim("start, p50, against HyperQueue's", ratio("start p50", HYPERQUEUE), 0.5, "{:.2f}x"),
        Aim("start, p50, against tuned sbatch's", ratio("start p50", SBATCH), 0.01, "{:.4f}x"),
        Aim("drain on 8 slots against HyperQueue's", ratio("drain 8", HYPERQUEUE), 1.0, "{:.2f}x", at_least=True),
        Aim("drain on 64 slots against HyperQueue's", ratio("drain 64", HYPERQUEUE), 1.5, "{:.2f}x", at_least=True),
        Aim("drain on 8 slots against Slurm's", ratio("drain 8", SBATCH), 10.0, "{:.1f}x", at_least=True),
        Aim("drain on 64 slots against Slurm's", ratio("drain 64", SBATCH), 10.0, "{:.1f}x", at_least=True),
        Aim("memory a queued job, 10,000 queued", mine("bytes 10k"), 2048, "{:,.0f} bytes"),
        Aim("memory a queued job, 100,000 queued", mine("bytes 100k"), 2048, "{:,.0f} bytes"),
        Aim("restart with 100,000 queued, matcher killed", mine("restart_s 100k"), 2.0, "{:.2f} s"),
        Aim("restart with 100,000 queued, matcher ended in order", mine("restart_in_order_s 100k"), 2.0, "{:.2f} s"),
    ]


CPU = {
    "sellers": ("seller",),
    "what starts and guards processes": ("guard",),
    "the jobs' own processes": ("jobs",),
    "matcher": ("matcher",),
    "broker": ("broker",),
    "API": ("api",),
    "gateway and callout": ("files", "callout"),
}


def cpu_words(figures: Figures, cores: int) -> str:
    """Where a drain's processor time goes, and what the cores could drain at most at that price."""
    told = []
    for slots in (8, 64):
        parts = {words: sum(median(figures, OURS, f"cpu {name} drain {slots}") or 0.0 for name in names) for words, names in CPU.items()}
        whole = sum(parts.values())
        listed = ", ".join(f"{words} {spent_us:,.0f}" for words, spent_us in parts.items())
        most = f", of which {cores} cores could do {cores * 1e6 / whole:,.0f} a second" if whole else ""
        told.append(f"on {slots} slots {whole:,.0f} µs of CPU a job ({listed}){most}")
    return f"What a drain costs this market: {'; '.join(told)}."


def alone(figures: dict[str, float]) -> list[Aim]:
    """This market's targets that need nobody else."""
    kinds = (("supply", "while free nodes last"), ("free one", "after an attempt has ended"), ("arrival", "for a job that comes"))
    rows = [
        ("p50", "p50", 25.0, "{:.1f} µs"),
        ("p99", "p99", 100.0, "{:.1f} µs"),
        ("growth", "p50, 100,000 queued against 1,000", 2.0, "{:.2f}x"),
    ]
    aims = []
    for kind, words in kinds:
        aims += [Aim(f"decision {words}, {name}", figures.get(f"{kind} {what}"), limit, form) for what, name, limit, form in rows]
    return [
        *aims,
        Aim("`why` with 10,000 nodes and 10,000 queued jobs, slowest of 20 jobs", figures.get("why_ms"), 50.0, "{:.1f} ms"),
        Aim("1,000,000 events replayed: decoded, hashed, signatures checked, folded", figures.get("replay_s"), 10.0, "{:.1f} s"),
    ]
