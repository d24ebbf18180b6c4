"""What a set of shipped files is, in one small file that can be signed: sizes, sha256, logical digests.

The sha256 guards the way from the maker to the user; the logical digest says which answers are inside, whatever
SQLite version wrote the file. Signatures are OpenSSH's (`ssh-keygen -Y`): most people have a key, and the list of
allowed signers is a text file.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from .connection import SCHEMA
from .digest import logical_digest
from .errors import StoreError, shown
from .formats import jsonl
from .rows import TunedRow
from .untrusted import LIMITS, Refused, read_untrusted

NAMESPACE = "paiton-manifest"
FORMAT = "paiton manifest 1"
_MAX_BYTES = 1 << 20
_SECONDS = 60


class SignatureRefused(StoreError):
    """A signature that does not hold, or cannot be checked here."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One file: `name` without folders, `bytes` its size, `rows` answers with this logical digest."""

    name: str
    bytes: int
    rows: int
    sha256: str
    logical_digest: str
    schema: int


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The files of one release, by name."""

    entries: tuple[Entry, ...]

    def text(self) -> str:
        """Indented JSON with sorted names: one text for one content."""
        plain = {"files": [asdict(entry) for entry in self.entries], "format": FORMAT}
        return json.dumps(plain, indent=2, sort_keys=True) + "\n"


def describe(paths: Iterable[Path]) -> Manifest:
    """The manifest of these files (databases, or `.jsonl`), each read as a stranger's. Raises Refused."""
    found = []
    for path in paths:
        rows = read_answers(path)
        found.append(
            Entry(
                name=path.name, bytes=path.stat().st_size, rows=len(rows), sha256=file_digest(path),
                logical_digest=logical_digest(rows), schema=SCHEMA,
            )
        )  # fmt: skip
    names = [entry.name for entry in found]
    if len(set(names)) != len(names):
        raise Refused(f"two files of one name in a manifest: {', '.join(sorted(names))}")
    return Manifest(entries=tuple(sorted(found, key=lambda entry: entry.name)))


def read_answers(path: Path) -> list[TunedRow]:
    """The answers of a database or of a `.jsonl` file, search spaces not asked. Raises Refused or RowRefused."""
    if path.suffix != ".jsonl":
        return read_untrusted(path, are_configs_checked=False)
    return jsonl.loads(read_text(path, LIMITS.file_bytes))


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path`. Raises Refused for anything that `Manifest.text` does not write."""
    text = read_text(path, _MAX_BYTES)
    try:
        plain = json.loads(text)
        manifest = Manifest(entries=tuple(Entry(**each) for each in plain["files"]))
        well_typed = all(
            type(getattr(entry, f.name)).__name__ == f.type for entry in manifest.entries for f in fields(Entry)
        )
    except (ValueError, TypeError, KeyError, RecursionError):
        raise Refused(f"{shown(path)} is no manifest") from None
    # Whatever else the text could hold (another format, a name twice) is ruled out by writing it again.
    if not well_typed or manifest.text() != text or not all(_is_plain(entry.name) for entry in manifest.entries):
        raise Refused(f"{shown(path)} is no manifest as Paiton writes it ({FORMAT})")
    return manifest


def _is_plain(name: str) -> bool:
    """Whether a name is one file in the manifest's own folder."""
    return Path(name).name == name and name not in ("", ".", "..") and "\x00" not in name


def faults(manifest: Manifest, folder: Path) -> list[str]:
    """What differs between the manifest and the files in `folder`, one line each; bytes first, then the answers."""
    found = []
    for entry in manifest.entries:
        path = folder / entry.name
        try:
            size, digest = path.stat().st_size, file_digest(path)
        except OSError as error:
            found.append(f"{shown(entry.name)}: {error.strerror}")
            continue
        if (size, digest) != (entry.bytes, entry.sha256):
            found.append(f"{shown(entry.name)}: sha256 {digest[:16]}.. of {size} bytes, the manifest says"
                         f" {entry.sha256[:16]}.. of {entry.bytes}")  # fmt: skip
            continue
        try:
            rows = read_answers(path)
        except StoreError as error:
            found.append(str(error))
            continue
        if (len(rows), logical_digest(rows), SCHEMA) != (entry.rows, entry.logical_digest, entry.schema):
            found.append(f"{shown(entry.name)}: {len(rows)} answers of schema {SCHEMA}, not those of the manifest")
    return found


def check_listed(manifest: Path, path: Path) -> None:
    """Raise Refused unless the manifest lists a file of the name of `path` with exactly its bytes."""
    entry = {each.name: each for each in read_manifest(manifest).entries}.get(path.name)
    if entry is None:
        raise Refused(f"{shown(manifest)} does not list {shown(path.name)}")
    try:
        size, digest = path.stat().st_size, file_digest(path)
    except OSError as error:
        raise Refused(f"{shown(path)} cannot be read: {error.strerror}") from None
    if (size, digest) != (entry.bytes, entry.sha256):
        raise Refused(f"{shown(path)} is not the file that {shown(manifest)} lists: sha256 {digest[:16]}..")


def sign(path: Path, key: Path) -> Path:
    """Sign the file at `path` with an OpenSSH key; returns the signature's path, `<path>.sig`."""
    signature = Path(f"{path}.sig")
    signature.unlink(missing_ok=True)  # ssh-keygen would ask
    done = _ssh_keygen(["-Y", "sign", "-n", NAMESPACE, "-f", str(key), str(path)])
    if done.returncode != 0 or not signature.exists():
        raise SignatureRefused(f"cannot sign {shown(path)}: {_last_line(done)}")
    return signature


def verify_signature(path: Path, signers: Path) -> str:
    """The signer of `<path>.sig` as `signers` (an OpenSSH allowed-signers file) names them. Raises SignatureRefused."""
    signature = Path(f"{path}.sig")
    for needed, what in ((path, "manifest"), (signature, "signature"), (signers, "list of allowed signers")):
        if not needed.is_file():
            raise SignatureRefused(f"no {what} at {shown(needed)}")
    common = ["-s", str(signature), "-f", str(signers)]
    found = _ssh_keygen(["-Y", "find-principals", *common])
    names = found.stdout.splitlines()
    if found.returncode != 0 or not names:
        raise SignatureRefused(f"{shown(path)} is signed by nobody whom {shown(signers)} names")
    signer = names[0].split(",")[0]
    done = _ssh_keygen(["-Y", "verify", "-n", NAMESPACE, "-I", signer, *common], stdin=path.read_bytes())
    if done.returncode != 0:
        raise SignatureRefused(f"the signature of {shown(path)} does not hold: {_last_line(done)}")
    return signer


def file_digest(path: Path) -> str:
    """sha256 of the file's bytes, in hex."""
    digest = hashlib.sha256()
    with open(path, "rb") as opened:
        while chunk := opened.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def read_text(path: Path, limit: int) -> str:
    """The file as UTF-8 text of at most `limit` bytes. Raises Refused."""
    try:
        with open(path, "rb") as opened:
            raw = opened.read(limit + 1)
        if len(raw) > limit:
            raise Refused(f"{shown(path)}: at most {limit} bytes are accepted")
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        raise Refused(f"{shown(path)} is not UTF-8 text") from None
    except (OSError, ValueError) as error:
        raise Refused(f"{shown(path)} cannot be read: {getattr(error, 'strerror', None) or error}") from None


@dataclass(frozen=True)
class _Done:
    returncode: int
    stdout: str
    stderr: str


def _ssh_keygen(arguments: Sequence[str], stdin: bytes = b"") -> _Done:
    try:
        done = subprocess.run(
            ["ssh-keygen", *arguments], input=stdin, capture_output=True, timeout=_SECONDS, check=False
        )
    except FileNotFoundError:
        raise SignatureRefused("ssh-keygen is not installed: signatures need OpenSSH 8.1 or newer") from None
    except subprocess.TimeoutExpired:
        raise SignatureRefused(f"ssh-keygen did not answer within {_SECONDS} s; is the key protected?") from None
    return _Done(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))


def _last_line(done: _Done) -> str:
    lines = [line.strip() for line in (done.stderr or done.stdout).splitlines() if line.strip()]
    return ascii(lines[-1])[1:-1] if lines else f"ssh-keygen ended with status {done.returncode}"
