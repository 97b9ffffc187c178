"""Warmed-up medians, peak memory and run metadata for the benchmarks."""

import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import torch


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def median_seconds(run: Callable[[], object], device: torch.device, *, repeats: int = 9, warm_up: int = 2) -> float:
    """Median wall-clock seconds of `run`, after warm-up, the device synchronised around every repeat."""
    for _ in range(warm_up):
        run()
    times = []
    for _ in range(repeats):
        synchronise(device)
        start = time.perf_counter()
        run()
        synchronise(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def interleaved_medians(
    runs: dict[str, Callable[[], object]], device: torch.device, *, repeats: int = 9
) -> dict[str, float]:
    """Medians of several runs taken in turn, so that a passing load falls on all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        median_seconds(run, device, repeats=1, warm_up=1)
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(median_seconds(run, device, repeats=1, warm_up=0))
    return {name: statistics.median(values) for name, values in times.items()}


def peak_extra_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Largest growth of memory during `run` over what was held before: allocator on CUDA, tensor storage on the CPU."""
    if device.type == "cuda":
        synchronise(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        synchronise(device)
        return torch.cuda.max_memory_allocated(device) - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    held = peak = 0
    changes = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(changes, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def metadata(device: torch.device) -> dict[str, str | int]:
    """Device, versions, threads and commit of a run."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(__file__).parent,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        commit = "unknown"
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": commit,
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
