"""What a process holds, as Linux says."""

import re
from pathlib import Path

from bert_multitask import InputError


def resident(field: str) -> float:
    """What this process holds (VmRSS) or has held at most (VmHWM), in MB."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{field}:\s+(\d+) kB", status)[1]) * 1024 / 1e6


def forget_peak() -> float:
    """Have VmHWM begin anew; returns what the process holds now, in MB."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return resident("VmRSS")
    except OSError as error:
        raise InputError(f"memory cannot be measured here: expected a /proc to write to ({error})") from error
