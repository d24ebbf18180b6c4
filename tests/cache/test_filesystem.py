"""Network file systems are refused for writing, by name, and read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from paiton.cache import filesystem
from paiton.cache.errors import Unwritable
from paiton.cache.filesystem import network_filesystem
from paiton.cache.lookup import Lookup
from paiton.cache.store import ConfigStore

MOUNTS = r"""
22 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw
23 22 0:21 / /home rw,relatime shared:1 - nfs4 server:/home rw
24 23 0:22 / /home/u/local\040disk rw - xfs /dev/sdb1 rw
25 22 0:23 / /share/s rw - fuse.sshfs a@b: rw
26 22 0:24 / /covered rw - nfs server:/old rw
27 22 0:25 / /covered rw - ext4 /dev/sdc1 rw
broken line
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/a/paiton.db", None), ("/home/u/paiton.db", "nfs4"), ("/home", "nfs4"), ("/homes/u.db", None),
        ("/home/u/local disk/p.db", None), ("/share/s/deep/er/p.db", "fuse.sshfs"), ("/covered/p.db", None),
    ],
)  # fmt: skip
def test_the_mount_that_holds_a_path(path: str, kind: str | None) -> None:
    assert network_filesystem(Path(path), MOUNTS) == kind


def test_nobody_can_tell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(filesystem, "MOUNTS", tmp_path / "none")
    assert network_filesystem(tmp_path) is None


def test_writing_there_is_refused_and_reading_is_not(
    path: Path, tmp_path: Path, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ConfigStore.open(path) as store:
        store.put_tuned(build.estimated())
    mounts = tmp_path / "mounts"
    mounts.write_text(f"1 1 0:1 / {tmp_path.resolve()} rw - nfs4 server:/x rw\n")
    monkeypatch.setattr(filesystem, "MOUNTS", mounts)
    before = path.read_bytes()
    for name in (path, tmp_path / "new" / "paiton.db"):
        with pytest.raises(Unwritable, match=r"network file system \(nfs4\), where SQLite's locks do not hold"):
            ConfigStore.open(name)
    assert path.read_bytes() == before and not (tmp_path / "new").exists()
    with ConfigStore.open(path, read_only=True) as store, Lookup.open(path) as lookup:
        assert len(store.tuned()) == 1 and lookup.find(build.cell()).row is not None
