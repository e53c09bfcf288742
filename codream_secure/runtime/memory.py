"""How much memory is left, and a refusal before more than that is taken."""

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from codream_secure.errors import UserError

_CGROUPS = Path("/sys/fs/cgroup")
_UNITS = ((1 << 30, "GB"), (1 << 20, "MB"), (1 << 10, "kB"))


def require(needed: int, what: str, ways: str) -> None:
    """Refuse what takes more memory than there is; where that is unknown, refuse nothing.

    Args:
        needed: bytes that are going to be taken.
        what: takes them.
        ways: what the user can do about it.

    Raises:
        UserError: how much is needed, how much there is, and the ways.
    """
    found = available()
    if found is not None and needed > found:
        raise UserError(
            f"{what} would take about {size(needed)} of memory, and {size(found)} are free; {ways}"
        )


def available() -> int | None:
    """Return the bytes that this process can still take, or None where no system tells.

    A container's limit counts as the machine's memory does.
    """
    found = list(_left_in_groups())
    with suppress(OSError, AttributeError):  # not Linux
        if kilobytes := re.search(r"MemAvailable: +(\d+)", Path("/proc/meminfo").read_text()):
            found.append(int(kilobytes[1]) << 10)
    with suppress(OSError, ValueError, AttributeError):  # Windows
        # All of it, used or not: nobody needs more than that.
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return min(found, default=None)


def size(count: int) -> str:
    """Return a number of bytes for people."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def _left_in_groups() -> Iterator[int]:
    """Yield what the control groups of this process, from its own upwards, leave to it."""
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds not in ("", "memory"):
                continue
            root = _CGROUPS / kinds
            own = root / path.strip("/")
            for folder in (own, *own.parents):
                with suppress(OSError, ValueError):
                    yield _left(folder)
                if folder == root:
                    break


def _left(group: Path) -> int:
    """Return limit minus use; ValueError where there is no limit ("max")."""
    second = (group / "memory.max").is_file()
    limit, used = (
        int((group / name).read_text())
        for name in (
            ("memory.max", "memory.current")
            if second
            else ("memory.limit_in_bytes", "memory.usage_in_bytes")
        )
    )
    # Files that were read count as used, and make room when it is needed.
    cached = re.search(
        r"^(?:total_)?inactive_file (\d+)", (group / "memory.stat").read_text(), re.M
    )
    return max(0, limit - used + int(cached[1] if cached else 0))
