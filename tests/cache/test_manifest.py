"""A signed manifest: what was shipped is what is read, and by whom it was signed."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from paiton.cache.errors import StoreError
from paiton.cache.export import write_shipped
from paiton.cache.formats import jsonl
from paiton.cache.manifest import (
    SignatureRefused,
    describe,
    faults,
    read_manifest,
    sign,
    verify_signature,
)
from paiton.cache.untrusted import Refused

needs_ssh_keygen = pytest.mark.skipif(shutil.which("ssh-keygen") is None, reason="ssh-keygen is not installed")


@pytest.fixture
def release(tmp_path: Path, build: Any) -> Path:
    """A folder with a database, a file of lines and their manifest."""
    folder = tmp_path / "release"
    folder.mkdir()
    rows = [build.estimated(build.cell(batch=b), ts_ms=1) for b in (1, 2)]
    write_shipped(rows, folder / "one.db")
    (folder / "two.jsonl").write_text(jsonl.dumps(rows))
    (folder / "manifest.json").write_text(describe([folder / "two.jsonl", folder / "one.db"]).text())
    return folder


@pytest.fixture
def key(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "maker", "-f", str(path)], check=True)
    public = path.with_suffix(".pub").read_text().strip()
    (tmp_path / "signers").write_text(f'maker@example.org namespaces="paiton-manifest" {public}\n')
    return path


def test_a_manifest_describes_its_files(release: Path) -> None:
    manifest = read_manifest(release / "manifest.json")
    one, two = manifest.entries
    assert (one.name, two.name, one.rows, two.rows) == ("one.db", "two.jsonl", 2, 2)
    assert one.logical_digest == two.logical_digest and one.sha256 != two.sha256
    assert faults(manifest, release) == []


def test_other_bytes_other_answers_and_missing_files_are_faults(release: Path, build: Any) -> None:
    manifest = read_manifest(release / "manifest.json")
    write_shipped([build.estimated(ts_ms=1)], release / "one.db")
    (release / "two.jsonl").unlink()
    first, second = faults(manifest, release)
    assert first.startswith("one.db: sha256") and second == "two.jsonl: No such file or directory"


def test_a_digest_of_other_answers_is_a_fault(release: Path) -> None:
    path = release / "manifest.json"
    plain = json.loads(path.read_text())
    for entry in plain["files"]:
        entry["logical_digest"] = "0" * 64
    path.write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n")
    assert faults(read_manifest(path), release) == [
        f"{name}: 2 answers of schema 1, not those of the manifest" for name in ("one.db", "two.jsonl")
    ]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", '{"files": 3}', '{"files": [], "format": "x"}', "[" * 100_000, "\xff", '{"files": [{"name": 1}]}'],
)
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.json").write_text(text, encoding="latin-1")
    with pytest.raises(Refused):
        read_manifest(tmp_path / "m.json")


@pytest.mark.parametrize("name", ["../one.db", "/etc/passwd", "a/b", "..", "."])
def test_a_name_with_a_folder_is_refused(release: Path, name: str) -> None:
    path = release / "manifest.json"
    plain = json.loads(path.read_text())
    plain["files"][0]["name"] = name
    path.write_text(json.dumps(plain, indent=2, sort_keys=True) + "\n")
    with pytest.raises(Refused, match="no manifest as Paiton writes it"):
        read_manifest(path)


def _flip(data: bytearray, source: random.Random) -> None:
    data[source.randrange(len(data))] ^= 1 << source.randrange(8)


def _swap(data: bytearray, source: random.Random) -> None:
    """A digit for a digit, a letter for a letter: what stays a well-formed manifest."""
    at = source.choice([at for at, byte in enumerate(data) if chr(byte).isalnum()])
    alike = "0123456789" if chr(data[at]).isdigit() else "abcdef"
    data[at] = ord(source.choice([each for each in alike if ord(each) != data[at]]))


@pytest.mark.parametrize("damage", [_flip, _swap])
def test_a_damaged_manifest_is_refused_or_finds_a_fault(release: Path, damage: Any) -> None:
    path = release / "manifest.json"
    original = path.read_bytes()
    source = random.Random(1)
    for _ in range(1000):
        damaged = bytearray(original)
        damage(damaged, source)
        path.write_bytes(damaged)
        try:
            found = faults(read_manifest(path), release)
        except StoreError as error:
            found = [str(error)]
        assert found != []


@needs_ssh_keygen
def test_a_signature_names_its_signer(release: Path, key: Path) -> None:
    manifest = release / "manifest.json"
    assert sign(manifest, key) == sign(manifest, key) == release / "manifest.json.sig"
    assert verify_signature(manifest, key.parent / "signers") == "maker@example.org"


@needs_ssh_keygen
def test_changed_unsigned_and_unknown_are_refused(release: Path, key: Path) -> None:
    manifest, signers = release / "manifest.json", key.parent / "signers"
    with pytest.raises(SignatureRefused, match="no signature at"):
        verify_signature(manifest, signers)
    sign(manifest, key)
    with pytest.raises(SignatureRefused, match="no list of allowed signers"):
        verify_signature(manifest, key.parent / "none")
    (key.parent / "nobody").write_text("")
    with pytest.raises(SignatureRefused, match="signed by nobody whom"):
        verify_signature(manifest, key.parent / "nobody")
    manifest.write_text(manifest.read_text() + "\n")
    with pytest.raises(SignatureRefused, match="does not hold"):
        verify_signature(manifest, signers)
    (release / "manifest.json.sig").write_text("garbage")
    with pytest.raises(SignatureRefused):
        verify_signature(manifest, signers)
    with pytest.raises(SignatureRefused, match="cannot sign"):
        sign(manifest, key.parent / "no key")


@needs_ssh_keygen
def test_a_signature_for_another_purpose_is_refused(release: Path, key: Path) -> None:
    manifest = release / "manifest.json"
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-n", "git", "-f", str(key), str(manifest)], check=True,
                   capture_output=True)  # fmt: skip
    with pytest.raises(SignatureRefused):
        verify_signature(manifest, key.parent / "signers")


def test_without_ssh_keygen_one_line_says_so(release: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SignatureRefused, match="ssh-keygen is not installed"):
        sign(release / "manifest.json", tmp_path / "key")
