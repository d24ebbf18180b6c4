"""Whether a path lies on a network file system, where SQLite's write-ahead log must not be used: its shared memory is
not shared between machines and its locks may not hold (https://sqlite.org/wal.html, sqlite.org/faq.html#q5)."""

from __future__ import annotations

import re
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ceph", "lustre", "gpfs", "beegfs", "fuse.sshfs", "fuse.glusterfs",
     "fuse.ceph", "fuse.s3fs"}
)  # fmt: skip


def network_filesystem(path: Path, mounts: str | None = None) -> str | None:
    """The type of the network file system that `path` is or would be on, None on a local one or where nobody can tell.

    `mounts` is the text of /proc/self/mountinfo, read if not given; only Linux has it.
    """
    if mounts is None:
        try:
            mounts = MOUNTS.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return None
    where = path.absolute()
    try:
        where = where.resolve()
    except (OSError, RuntimeError, ValueError):  # a loop of links, a NUL; opening will say so
        return None
    kind, depth = None, -1
    for line in mounts.splitlines():
        left, separator, right = line.partition(" - ")
        fields = left.split()
        if not separator or len(fields) < 5 or not right:
            continue
        point = Path(re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), fields[4]))
        # Of two mounts on one point the later covers the earlier.
        if (where == point or point in where.parents) and len(point.parts) >= depth:
            kind, depth = right.split()[0], len(point.parts)
    return kind if kind in NETWORK else None
