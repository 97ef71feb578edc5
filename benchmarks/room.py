"""How much memory is left, so that what does not fit is left out, with a reason, and not killed half-way."""

from __future__ import annotations

from pathlib import Path

UNKNOWN = 1 << 62
MEMINFO = Path("/proc/meminfo")
CONTAINER = Path("/sys/fs/cgroup")


def available_bytes(meminfo: Path = MEMINFO, container: Path = CONTAINER) -> int:
    """Bytes of main memory that programs can still take, as Linux estimates them; a huge number where it does not.

    Args:
        meminfo: of the whole machine, in the format of proc(5).
        container: folder with the limit of a control group, version 2, if there is one.
    """
    known = [UNKNOWN]
    try:
        lines = meminfo.read_text(encoding="ascii").splitlines()
        known += [1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    except OSError:
        pass
    try:
        limit = (container / "memory.max").read_text(encoding="ascii").strip()
        if limit != "max":
            known.append(int(limit) - int((container / "memory.current").read_text(encoding="ascii")))
    except OSError:
        pass
    return max(0, min(known))


def lack(needs: int, room: int) -> str:
    """Why something is left out, "" if it fits."""
    return f"left out: needs {needs / 1e9:.1f} GB, {max(room, 0) / 1e9:.1f} GB are free" if needs > room else ""
