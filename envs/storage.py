"""Every file that headstart keeps is written and read here.

An artefact is a file plus its entry in the `manifest.json` of its directory: kind, schema version, size,
SHA-256 and whatever small facts (`meta`) belong to it. Readers check all of them before they parse a byte.
Nothing is pickled, and the same content always gives the same bytes. One directory has one writer at a time,
who holds its `lock`; readers need none. POSIX only (flock).

Two files cannot be renamed as one, so how does the pair stay whole when the writer is killed? An entry is a
*list* of versions, newest first, and a file is good when it matches one of them. A write is

    1. stage     the new bytes go to a temporary file, which is synced
    2. announce  the manifest is replaced by one whose entry is [new version, old version]
    3. replace   the temporary file is renamed over the artefact: the one instant at which old becomes new
    4. settle    the manifest is replaced by one whose entry is [new version]

Killed before 3, the old file is there and still listed; killed after 3, the new file is there and listed
first. Every rename is of a synced file and is followed by a sync of the directory, so that the order survives
a power cut too. A file that was announced but never came counts as absent. Whoever takes the lock next
removes temporary files and settles, so that an interrupted directory ends as an uninterrupted one would. A
reader that overtakes a writer finds a file that does not match, finds the manifest changed as well, and reads
both again.

A damaged or foreign manifest is never overwritten: it holds its own SHA-256, and every use of it is refused.
"""

import contextlib
import dataclasses
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import socket
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from headstart.envs.errors import Busy, DataError, UsageError

if TYPE_CHECKING:
    import torch

__all__ = [
    "digest",
    "digest_of",
    "exists",
    "load_arrays",
    "load_bytes",
    "load_json",
    "load_text",
    "load_weights",
    "lock",
    "meta",
    "remove",
    "save_arrays",
    "save_bytes",
    "save_json",
    "save_text",
    "save_weights",
    "verify",
]

MANIFEST = "manifest.json"
MANIFEST_FORMAT = "headstart manifest 1"
MANIFEST_LIMIT = 64 * 2**20  # bytes; the only file that is read before its hash is known
STAGED, STAGED_MANIFEST, LOCK = ".headstart-artefact.tmp", ".headstart-manifest.tmp", ".headstart-lock"
VERSION_FIELDS = {"kind": str, "schema": int, "size": int, "sha256": str, "meta": dict}
ARRAY_KINDS = "biufcSU"  # numpy's dtype kinds that hold plain values: no objects, no structures

FilePath = str | Path
Meta = Mapping[str, Any]  # JSON values or dataclasses of them; comes back as plain JSON values
Version = dict[str, Any]  # the VERSION_FIELDS of one state of an artefact
Versions = dict[str, list[Version]]  # file name -> its versions, newest first

_held: dict[Path, int] = {}  # directory -> process that holds its lock (a forked child inherits the dict only)


# ---- arrays, weights, JSON, text, bytes --------------------------------------------------------------


def save_arrays(
    path: FilePath, arrays: Mapping[str, np.ndarray], *, kind: str, schema: int, meta: Meta | None = None
) -> None:
    """Write named arrays of plain values as an uncompressed .npz that numpy reads too; `meta` must be JSON.

    Uncompressed, so that no file can claim to hold more than its own size.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(arrays):
            array = np.asarray(arrays[name], order="C")
            if not name.isidentifier() or array.dtype.kind not in ARRAY_KINDS:
                raise TypeError(f"{path}: cannot store array {name!r} of dtype {array.dtype}")
            member = io.BytesIO()
            np.lib.format.write_array(member, array, version=(1, 0), allow_pickle=False)
            archive.writestr(zipfile.ZipInfo(f"{name}.npy"), member.getbuffer())  # ZipInfo's date is 1980: same bytes
    _commit(path, buffer.getvalue(), kind, schema, meta)


def load_arrays(path: FilePath, *, kind: str, schema: int) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return (arrays, meta) as saved. Raises DataError on anything else."""
    return _load(path, kind, schema, _parse_arrays)


def save_weights(
    path: FilePath, weights: Mapping[str, "torch.Tensor"], *, kind: str, schema: int, meta: Meta | None = None
) -> None:
    """Write a state_dict as .safetensors; `meta` (architecture, configuration) goes to the manifest."""
    from safetensors.torch import save  # torch is slow to import, and most commands do not need it

    content = save({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()})
    _commit(path, content, kind, schema, meta)


def load_weights(path: FilePath, *, kind: str, schema: int) -> tuple[dict[str, "torch.Tensor"], dict[str, Any]]:
    """Return (state_dict on the CPU, meta) as saved. Raises DataError on anything else."""
    from safetensors.torch import load

    return _load(path, kind, schema, load)


def save_json(path: FilePath, value: Any, *, kind: str, schema: int) -> None:
    """Write JSON with sorted keys. NaN and infinity are not JSON and raise ValueError."""
    text = json.dumps(value, indent=2, sort_keys=True, allow_nan=False, default=_as_json) + "\n"
    save_text(path, text, kind=kind, schema=schema)


def load_json(path: FilePath, *, kind: str, schema: int) -> Any:
    """Return the value as saved. Raises DataError on anything else."""
    return _load(path, kind, schema, json.loads)[0]


def save_text(path: FilePath, text: str, *, kind: str, schema: int) -> None:
    """Write text (CSV, Markdown) as UTF-8."""
    _commit(path, text.encode(), kind, schema, None)


def load_text(path: FilePath, *, kind: str, schema: int) -> str:
    """Return the text as saved. Raises DataError on anything else."""
    return _load(path, kind, schema, bytes.decode)[0]


def save_bytes(path: FilePath, content: bytes, *, kind: str, schema: int) -> None:
    """Write any other format (PNG, GIF) as it is."""
    _commit(path, content, kind, schema, None)


def load_bytes(path: FilePath, *, kind: str, schema: int) -> bytes:
    """Return the bytes as saved. Raises DataError on anything else."""
    return _load(path, kind, schema, bytes)[0]


def exists(path: FilePath) -> bool:
    """Whether the artefact was written to its end; whether it is undamaged shows when it is loaded."""
    path = Path(path)
    return path.is_file() and path.name in _read_manifest(path.parent)


def meta(path: FilePath) -> dict[str, Any]:
    """The small facts of an artefact, without reading it. Raises DataError if there is none."""
    path = Path(path)
    if not exists(path):
        raise DataError(f"{path}: there is no such file. Run the command that makes it.")
    return _read_manifest(path.parent)[path.name][0]["meta"]


def remove(path: FilePath) -> None:
    """Delete an artefact and its entry, if it is there. Killed in between, it counts as absent."""
    path = Path(path)
    if not path.parent.is_dir():
        return
    ours = _held.get(path.parent.resolve()) == os.getpid()
    with contextlib.nullcontext() if ours else lock(path.parent), _explained(path):
        path.unlink(missing_ok=True)
        manifest = _read_manifest(path.parent)
        if manifest.pop(path.name, None):
            _write_manifest(path.parent, manifest)


def copy(path: FilePath, directory: FilePath) -> None:
    """The same artefact, with its kind and its facts, in another directory. Raises DataError if it is damaged."""
    version, content = _read_checked(Path(path))
    _commit(Path(directory) / Path(path).name, content, version["kind"], version["schema"], version["meta"])


def digest(path: FilePath) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify(directory: FilePath) -> None:
    """Compare all artefacts of a directory with its manifest. Raises DataError naming the first that is damaged."""
    for name in _read_manifest(Path(directory)):
        if (path := Path(directory) / name).is_file():
            _read_checked(path)


def digest_of(value: Any) -> str:
    """SHA-256 of a JSON value or dataclass, in hexadecimal; the order of keys does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_as_json)
    return hashlib.sha256(text.encode()).hexdigest()


# ---- the writer's lock -------------------------------------------------------------------------------


@contextlib.contextmanager
def lock(directory: FilePath) -> Iterator[None]:
    """Be the only writer of this directory, not of its sub-directories; make it if needed.

    Taking it clears up after a killed writer. Raises Busy, naming the other writer, without waiting. The
    kernel drops the lock of a process that dies, so it is never stale. A save without the lock takes it for
    that one write. While holding it, delete what is in the directory if you must, not the directory.
    """
    directory = Path(directory)
    with _explained(directory):
        directory.mkdir(parents=True, exist_ok=True)
        file = _open_locked(directory / LOCK)
    key = directory.resolve()
    try:
        with _explained(directory):
            owner = {"pid": os.getpid(), "host": socket.gethostname(), "command": " ".join(sys.argv)}
            os.pwrite(file, json.dumps(owner).encode(), 0)
            _clear_up(directory)
        _held[key] = os.getpid()
        yield
    finally:
        if _held.get(key, os.getpid()) == os.getpid():  # a forked child that leaves this block owns nothing
            _held.pop(key, None)
            with contextlib.suppress(OSError):  # failing here must not hide the error that ended the block
                (directory / LOCK).unlink(missing_ok=True)
        os.close(file)


def _open_locked(path: Path) -> int:
    """Open and lock the file, or raise Busy. Its holder deletes it at the end: a lock on no file is void."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.exists() and os.path.samestat(os.fstat(file), path.stat()):
                os.ftruncate(file, 0)
                return file
        except BlockingIOError:
            owner = os.pread(file, 4096, 0).decode(errors="replace")
            with contextlib.suppress(ValueError, KeyError, TypeError):  # not yet written: name what there is
                owner = "process {pid} on {host} ({command})".format(**json.loads(owner))
            os.close(file)
            raise Busy(
                f"{path.parent}: {owner or 'another process'} is writing here. "
                "Wait until it has finished, or choose another directory."
            ) from None
        except OSError:
            os.close(file)
            raise
        os.close(file)


def _clear_up(directory: Path) -> None:
    """Undo what a killed writer left: temporary files, entries with two versions, entries without a file."""
    _remove_staged(directory)
    try:
        manifest = _read_manifest(directory)
    except DataError:
        return  # whoever reads from this directory is told; clearing up must not destroy the evidence
    settled = {name: versions for name, versions in manifest.items() if (directory / name).is_file()}
    for name, versions in settled.items():
        if len(versions) > 1:  # a damaged file matches neither, and keeps both
            sha256 = digest(directory / name)
            settled[name] = [version for version in versions if version["sha256"] == sha256][:1] or versions
    if settled != manifest:
        _write_manifest(directory, settled)


# ---- writing -----------------------------------------------------------------------------------------


def _commit(path: FilePath, content: bytes, kind: str, schema: int, meta: Meta | None) -> None:
    """Stage, announce, replace, settle: see the module's docstring."""
    path = Path(path)
    directory = path.parent
    if not _is_plain(path.name) or path.name in (MANIFEST, STAGED, STAGED_MANIFEST, LOCK):
        raise ValueError(f"{path}: an artefact cannot have this name")
    version: Version = {"kind": kind, "schema": schema, "size": len(content), "sha256": _sha256(content)}
    version["meta"] = json.loads(json.dumps(meta or {}, allow_nan=False, default=_as_json))
    ours = _held.get(directory.resolve()) == os.getpid()
    with contextlib.nullcontext() if ours else lock(directory), _explained(path):
        manifest = _read_manifest(directory)
        earlier = [v for v in manifest.get(path.name, []) if v != version] if path.exists() else []
        try:
            _write_synced(directory / STAGED, content)
            _write_manifest(directory, {**manifest, path.name: [version, *earlier]})
            _rename_synced(directory / STAGED, path)
            if earlier:
                _write_manifest(directory, {**manifest, path.name: [version]})
        except BaseException:  # a full disk gets its space back at once
            _remove_staged(directory)
            raise


def _remove_staged(directory: Path) -> None:
    for leftover in (STAGED, STAGED_MANIFEST):
        (directory / leftover).unlink(missing_ok=True)


def _write_manifest(directory: Path, manifest: Versions) -> None:
    value = {"format": MANIFEST_FORMAT, "sha256": digest_of(manifest), "artefacts": manifest}
    _write_synced(directory / STAGED_MANIFEST, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())
    _rename_synced(directory / STAGED_MANIFEST, directory / MANIFEST)


def _write_synced(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _rename_synced(source: Path, target: Path) -> None:
    os.replace(source, target)
    directory = os.open(target.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # otherwise a power cut may undo the rename, or reorder two of them
    finally:
        os.close(directory)


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write into a message that says what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            why = "the disk is full. Free some space and run the same command again"
        else:
            why = f"{os.strerror(error.errno or 0).lower()}. Choose a directory that you can write to"
        raise UsageError(f"{path}: cannot be written: {why}; what was there before is unchanged.") from error


# ---- reading -----------------------------------------------------------------------------------------


def _load(path: FilePath, kind: str, schema: int, parse: Callable[[bytes], Any]) -> tuple[Any, dict[str, Any]]:
    """Check everything, then parse; the bytes that were checked are the bytes that are parsed."""
    path = Path(path)
    version, content = _read_checked(path)
    if version["kind"] != kind:
        raise DataError(f"{path}: holds {version['kind']!r}, not {kind!r}. Give the path of a {kind!r} file.")
    if version["schema"] != schema:
        raise DataError(
            f"{path}: has version {version['schema']} of {kind!r}; this headstart reads version {schema}. "
            "Delete it and run the same command again, or install the headstart that wrote it."
        )
    try:
        return parse(content), version["meta"]
    except Exception as error:  # the hash was right, so it was made like this; parsers then raise anything
        raise _damaged(path, f"it cannot be read as {kind!r} ({type(error).__name__}: {error})") from error


def _read_checked(path: Path) -> tuple[Version, bytes]:
    """Return the version that the file matches, and its bytes; read none if the size alone is wrong."""
    seen: list[Version] | None = None
    while True:
        versions = _read_manifest(path.parent).get(path.name)
        if not path.is_file():
            raise DataError(f"{path}: there is no such file. Run the command that makes it.")
        if versions is None:
            raise DataError(f"{path}: has no entry in the {MANIFEST} beside it. Copy both, or make it anew.")
        try:
            with open(path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                content = file.read(size) if size in [version["size"] for version in versions] else b""
        except OSError as error:
            raise DataError(f"{path}: cannot be read: {error.strerror}. Check its permissions.") from error
        sha256 = _sha256(content)
        for version in versions:
            if (version["size"], version["sha256"]) == (size, sha256):
                return version, content
        if versions == seen:
            sizes = " or ".join(str(version["size"]) for version in versions)
            raise _damaged(path, f"its {size} bytes are not the {sizes} bytes with the SHA-256 of {MANIFEST}")
        seen = versions  # a writer may have been quicker than we: look once more


def _read_manifest(directory: Path) -> Versions:
    """Return the checked manifest; empty where there is none."""
    path = directory / MANIFEST
    try:
        with open(path, "rb") as file:
            content = file.read(min(os.fstat(file.fileno()).st_size, MANIFEST_LIMIT))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}. Check its permissions.") from error
    try:
        value = json.loads(content)
        if value["format"] != MANIFEST_FORMAT:
            raise ValueError(f"its format is {value['format']!r}, not {MANIFEST_FORMAT!r}")
        manifest = value["artefacts"]
        if value["sha256"] != digest_of(manifest):
            raise ValueError("its own SHA-256 does not match")
        for name, versions in manifest.items():
            if not _is_plain(name):
                raise ValueError(f"it names {name!r}, which is not a plain file name")
            fields = [{key: type(value) for key, value in version.items()} for version in versions]
            if not fields or any(field != VERSION_FIELDS for field in fields):
                raise ValueError(f"its entry for {name!r} is incomplete")
        return manifest
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _damaged(path, f"not a whole {MANIFEST} of headstart ({error})") from error


def _is_plain(name: str) -> bool:
    """Whether a name stays inside its directory, on any system."""
    return name not in ("", ".", "..") and not set(name) & set("/\\\0:")


def _parse_arrays(content: bytes) -> dict[str, np.ndarray]:
    """Parse what `save_arrays` wrote and nothing else; sizes are compared before anything is allocated."""
    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        if sum(member.file_size for member in members) > len(content):
            raise ValueError("its members claim to be larger than the file")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if not name.isidentifier() or name in arrays or member.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"member {member.filename!r} is not a plain array")
            with archive.open(member) as file:
                if np.lib.format.read_magic(file) != (1, 0):
                    raise ValueError(f"array {name!r} has another .npy version")
                shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
                if dtype.kind not in ARRAY_KINDS:
                    raise ValueError(f"array {name!r} has dtype {dtype}, which could hold objects")
                values = file.read()
            if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != len(values):
                raise ValueError(f"array {name!r} claims shape {shape}, but holds {len(values)} bytes")
            arrays[name] = np.ndarray(shape, dtype, bytearray(values), order="F" if fortran_order else "C")
    return arrays


def _damaged(path: Path, why: str) -> DataError:
    return DataError(f"{path}: {why}. Delete it and run the same command again, or restore a copy.")


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _as_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{value!r} is not a JSON value")
