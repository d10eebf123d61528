"""The storage contract: old or new but never neither, nothing damaged is parsed, one writer at a time."""

import errno
import fcntl
import io
import json
import os
import signal
import subprocess
import sys
import time
import tracemalloc
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from headstart.envs import storage
from headstart.envs.errors import Busy, DataError, UsageError
from headstart.envs.storage import (
    digest,
    digest_of,
    exists,
    load_arrays,
    load_bytes,
    load_json,
    load_text,
    load_weights,
    lock,
    save_arrays,
    save_bytes,
    save_json,
    save_text,
    save_weights,
)

ARRAYS = {
    "frame": np.arange(60, dtype=np.uint8).reshape(3, 20),
    "empty": np.zeros((0, 5), np.int64),
    "scalar": np.float64(1.5),
    "mission": np.array(["open the door", "go"]),
    "done": np.array([True, False]),
}


def save(path: Path, value: float = 0) -> None:
    save_arrays(path, {"x": np.full(100, value)}, kind="numbers", schema=1, meta={"value": value})


def value_of(path: Path) -> float:
    """The stored value, after a check that array and meta belong together."""
    arrays, meta = load_arrays(path, kind="numbers", schema=1)
    assert set(arrays["x"]) == {meta["value"]}
    return meta["value"]


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def forge(path: Path, content: bytes) -> None:
    """Put bytes of our own into a file and give them a flawless entry, as an attacker would."""
    save_bytes(path, content, kind="numbers", schema=1)


def npz(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


# ---- what is saved comes back ------------------------------------------------------------------------


def test_arrays_come_back(tmp_path):
    save_arrays(tmp_path / "a.npz", ARRAYS, kind="demos", schema=2, meta={"env": "x", "shape": (1, 2)})
    arrays, meta = load_arrays(tmp_path / "a.npz", kind="demos", schema=2)
    assert meta == {"env": "x", "shape": [1, 2]}
    assert set(arrays) == set(ARRAYS)
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, ARRAYS[name], strict=True)
        assert array.flags.writeable
    with np.load(tmp_path / "a.npz") as plain:  # anybody's numpy reads it
        np.testing.assert_array_equal(plain["frame"], ARRAYS["frame"])


def test_fortran_order_comes_back(tmp_path):
    matrix = np.arange(6).reshape(2, 3)
    save_arrays(tmp_path / "a.npz", {"x": np.asfortranarray(matrix)}, kind="demos", schema=1)
    forge(tmp_path / "b.npz", npz({"x.npy": npy(np.asfortranarray(matrix))}))
    np.testing.assert_array_equal(load_arrays(tmp_path / "a.npz", kind="demos", schema=1)[0]["x"], matrix)
    np.testing.assert_array_equal(load_arrays(tmp_path / "b.npz", kind="numbers", schema=1)[0]["x"], matrix)


def test_weights_come_back(tmp_path):
    module = torch.nn.BatchNorm1d(3)
    save_weights(tmp_path / "w.safetensors", module.state_dict(), kind="policy", schema=1, meta={"width": 3})
    weights, meta = load_weights(tmp_path / "w.safetensors", kind="policy", schema=1)
    assert meta == {"width": 3}
    assert set(weights) == set(module.state_dict())
    torch.testing.assert_close(weights, dict(module.state_dict()), rtol=0, atol=0)


def test_json_text_and_bytes_come_back(tmp_path):
    save_json(tmp_path / "a.json", {"b": [1, 2.5, None], "a": "é"}, kind="summary", schema=1)
    save_text(tmp_path / "a.csv", "seed,success\n0,0.5\n", kind="table", schema=1)
    save_bytes(tmp_path / "a.png", b"\x89PNG", kind="figure", schema=1)
    assert load_json(tmp_path / "a.json", kind="summary", schema=1) == {"b": [1, 2.5, None], "a": "é"}
    assert load_text(tmp_path / "a.csv", kind="table", schema=1) == "seed,success\n0,0.5\n"
    assert load_bytes(tmp_path / "a.png", kind="figure", schema=1) == b"\x89PNG"


def test_a_copy_is_the_same_artefact(tmp_path):
    (tmp_path / "b").mkdir()
    storage.save_weights(tmp_path / "w.safetensors", {"w": torch.ones(2)}, kind="policy", schema=3, meta={"of": "bc"})
    storage.copy(tmp_path / "w.safetensors", tmp_path / "b")
    weights, meta = storage.load_weights(tmp_path / "b" / "w.safetensors", kind="policy", schema=3)
    assert weights["w"].tolist() == [1.0, 1.0]
    assert meta == {"of": "bc"}
    (tmp_path / "w.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"w\.safetensors"):
        storage.copy(tmp_path / "w.safetensors", tmp_path / "b")
    assert storage.exists(tmp_path / "b" / "w.safetensors")


@pytest.mark.parametrize("interrupted", [False, True])
def test_same_content_gives_same_bytes_whatever_the_history(tmp_path, monkeypatch, interrupted):
    for name, order in (("one", 1), ("two", -1)):
        directory = tmp_path / name
        if name == "two":
            save(directory / "a.npz", 7)
            if interrupted:
                killed_at(3, "replace", lambda directory=directory: save(directory / "a.npz", 8))
            monkeypatch.setattr(time, "localtime", lambda seconds=None: time.gmtime(10**9))
        save_arrays(directory / "a.npz", dict(list(ARRAYS.items())[::order]), kind="demos", schema=1)
        weights = dict(list(torch.nn.Linear(2, 2).state_dict().items())[::order])
        weights = {key: torch.ones_like(value) for key, value in weights.items()}
        save_weights(directory / "w.safetensors", weights, kind="policy", schema=1)
        save_json(directory / "s.json", dict([("a", 1), ("b", 2)][::order]), kind="summary", schema=1)
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_nothing_but_artefacts_and_manifest_is_left(tmp_path):
    save(tmp_path / "a.npz")
    save(tmp_path / "a.npz", 1)
    assert set(contents(tmp_path)) == {"a.npz", "manifest.json"}


def test_what_is_not_plain_is_refused_when_saved(tmp_path):
    with pytest.raises(TypeError, match="'x' of dtype object"):
        save_arrays(tmp_path / "a.npz", {"x": np.array([{}])}, kind="demos", schema=1)
    with pytest.raises(TypeError, match=r"'\.\./x'"):
        save_arrays(tmp_path / "a.npz", {"../x": np.zeros(1)}, kind="demos", schema=1)
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_json(tmp_path / "a.json", {"loss": float("nan")}, kind="summary", schema=1)
    with pytest.raises(ValueError, match="cannot have this name"):
        save_json(tmp_path / "manifest.json", {}, kind="summary", schema=1)
    assert contents(tmp_path) == {}


def test_digests():
    @dataclass
    class Config:
        width: int = 3

    assert digest_of({"a": 1, "b": Config()}) == digest_of({"b": {"width": 3}, "a": 1})
    assert digest_of([1]) != digest_of([2])
    with pytest.raises(TypeError, match="not a JSON value"):
        digest_of({"a": object()})


def test_digest_of_a_file(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    assert digest(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


# ---- damage is found, and the file named -------------------------------------------------------------


@pytest.mark.parametrize("name", ["a.npz", "manifest.json"])
def test_truncation_anywhere_is_found(tmp_path, name):
    save(tmp_path / "a.npz")
    whole = (tmp_path / name).read_bytes()
    for length in {*range(0, len(whole) - 1, 7), len(whole) - 2}:
        (tmp_path / name).write_bytes(whole[:length])
        with pytest.raises(DataError, match=name):
            value_of(tmp_path / "a.npz")


@pytest.fixture(scope="module")
def artefact(tmp_path_factory):
    path = tmp_path_factory.mktemp("flips") / "a.npz"
    save(path, 3.5)
    return path


@given(st.data(), st.sampled_from(["a.npz", "manifest.json"]))
@settings(max_examples=300, deadline=None)
def test_bit_flips_are_never_silent(artefact, data, name):
    file = artefact.parent / name
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    file.write_bytes(damaged)
    try:
        assert value_of(artefact) == 3.5  # only the white space of the manifest may differ
        assert name == "manifest.json"
        assert json.loads(damaged) == json.loads(whole)
    except DataError as error:
        assert str(artefact.parent) in str(error)  # noqa: PT017 - both outcomes are allowed
    finally:
        file.write_bytes(whole)


@given(st.binary(max_size=200), st.sampled_from(["a.npz", "manifest.json"]))
@settings(max_examples=100, deadline=None)
def test_rubbish_is_refused(artefact, rubbish, name):
    file = artefact.parent / name
    whole = file.read_bytes()
    file.write_bytes(rubbish)
    try:
        with pytest.raises(DataError, match=name):
            value_of(artefact)
    finally:
        file.write_bytes(whole)


def test_missing_pieces_are_named(tmp_path):
    with pytest.raises(DataError, match=r"a\.npz: there is no such file"):
        value_of(tmp_path / "a.npz")
    save(tmp_path / "a.npz")
    (tmp_path / "manifest.json").rename(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"a\.npz: has no entry in the manifest\.json beside it"):
        value_of(tmp_path / "a.npz")
    assert not exists(tmp_path / "a.npz")


def test_other_kind_and_other_schema_are_refused(tmp_path):
    save(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"a\.npz: holds 'numbers', not 'demos'"):
        load_arrays(tmp_path / "a.npz", kind="demos", schema=1)
    with pytest.raises(DataError, match=r"a\.npz: has version 1 of 'numbers'; this headstart reads version 2"):
        load_arrays(tmp_path / "a.npz", kind="numbers", schema=2)


def test_size_and_hash_are_checked_before_parsing(tmp_path, monkeypatch):
    save(tmp_path / "a.npz")
    with open(tmp_path / "a.npz", "r+b") as file:
        file.truncate(2**40)  # a sparse terabyte
    monkeypatch.setattr(storage, "_parse_arrays", lambda content: pytest.fail("parsed"))
    with pytest.raises(DataError, match="its 1099511627776 bytes are not the"):
        value_of(tmp_path / "a.npz")


def test_a_foreign_manifest_is_neither_used_nor_overwritten(tmp_path):
    (tmp_path / "manifest.json").write_text('{"name": "web app"}')
    with pytest.raises(DataError, match=r"manifest\.json: not a whole manifest\.json of headstart"):
        save(tmp_path / "a.npz")
    assert contents(tmp_path) == {"manifest.json": b'{"name": "web app"}'}


# ---- crafted files, their hashes all in order --------------------------------------------------------


@pytest.mark.parametrize("name", ["../x", "/etc/x", "..", "a/b", "..\\x", "", "C:x"])
def test_manifest_paths_that_leave_the_directory_are_refused(tmp_path, name):
    save(tmp_path / "a.npz")
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    manifest["artefacts"][name] = manifest["artefacts"]["a.npz"]
    manifest["sha256"] = digest_of(manifest["artefacts"])
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"manifest\.json: .*not a plain file name"):
        value_of(tmp_path / "a.npz")


def test_incomplete_entries_are_refused(tmp_path):
    save(tmp_path / "a.npz")
    good = json.loads((tmp_path / "manifest.json").read_text())["artefacts"]["a.npz"][0]
    for versions in (
        [],
        [{**good, "size": "1"}],
        [{**good, "size": True}],
        [{**good, "extra": 1}],
        [1],
        None,
        {},
    ):
        artefacts = {"a.npz": versions}
        value = {"format": storage.MANIFEST_FORMAT, "artefacts": artefacts, "sha256": digest_of(artefacts)}
        (tmp_path / "manifest.json").write_text(json.dumps(value))
        with pytest.raises(DataError, match=r"manifest\.json"):
            value_of(tmp_path / "a.npz")


class Bomb:
    """Unpickling it would fail the test."""

    def __reduce__(self):
        return pytest.fail, ("unpickled",)


def test_pickle_bearing_archives_are_refused(tmp_path):
    buffer = io.BytesIO()
    np.savez(buffer, x=np.array([Bomb()], dtype=object))
    forge(tmp_path / "a.npz", buffer.getvalue())
    with pytest.raises(DataError, match=r"a\.npz: .*dtype object"):
        load_arrays(tmp_path / "a.npz", kind="numbers", schema=1)


@pytest.mark.parametrize("name", ["../x.npy", "/x.npy", "a/b.npy", "x y.npy"])
def test_member_names_that_are_not_plain_are_refused(tmp_path, name):
    forge(tmp_path / "a.npz", npz({name: npy(np.zeros(1))}))
    with pytest.raises(DataError, match="is not a plain array"):
        load_arrays(tmp_path / "a.npz", kind="numbers", schema=1)


def huge_claim() -> bytes:
    """An .npz of a few hundred bytes whose array claims 64 GiB."""
    header = str({"descr": "|u1", "fortran_order": False, "shape": (2**36,)}).encode() + b"\n"
    return npz({"x.npy": b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header})


def negative_claim() -> bytes:
    header = str({"descr": "|u1", "fortran_order": False, "shape": (-1, -1)}).encode() + b"\n"
    return npz({"x.npy": b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"0"})


def zip_bomb() -> bytes:
    """A compressed array of 64 MiB in 64 kB."""
    return npz({"x.npy": npy(np.zeros(2**26, np.uint8))}, zipfile.ZIP_DEFLATED)


def twice_the_same_bytes() -> bytes:
    """A central directory that lists one member many times, so that it claims more than there is."""
    whole = npz({"x.npy": npy(np.zeros(2**16, np.uint8))})
    start = whole.rindex(b"PK\x01\x02")
    end = whole.rindex(b"PK\x05\x06")
    entries = b"".join(whole[start:end].replace(b"x.npy", b"%c.npy" % letter) for letter in range(97, 117))
    tail = bytearray(whole[end:])
    tail[8:12] = (20).to_bytes(2, "little") * 2
    tail[12:16] = len(entries).to_bytes(4, "little")
    return whole[:start] + entries + bytes(tail)


@pytest.mark.parametrize(
    ("make", "refusal"),
    [
        (huge_claim, r"claims shape \(68719476736,\), but holds 0 bytes"),
        (negative_claim, r"claims shape \(-1, -1\), but holds 1 bytes"),
        (zip_bomb, "members claim to be larger than the file"),
        (twice_the_same_bytes, "members claim to be larger than the file"),
    ],
)
def test_claims_beyond_the_file_are_refused_before_allocation(tmp_path, make, refusal):
    forge(tmp_path / "a.npz", make())
    tracemalloc.start()
    try:
        with pytest.raises(DataError, match=refusal):
            load_arrays(tmp_path / "a.npz", kind="numbers", schema=1)
        assert tracemalloc.get_traced_memory()[1] < 2 * 2**20
    finally:
        tracemalloc.stop()


def test_crafted_weights_and_json_are_refused(tmp_path):
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**34], "data_offsets": [0, 2**36]}}).encode()
    forge(tmp_path / "w.safetensors", len(header).to_bytes(8, "little") + header)
    forge(tmp_path / "a.json", b"[" * 100_000)
    forge(tmp_path / "a.txt", b"\xff")
    with pytest.raises(DataError, match=r"w\.safetensors"):
        load_weights(tmp_path / "w.safetensors", kind="numbers", schema=1)
    with pytest.raises(DataError, match=r"a\.json"):
        load_json(tmp_path / "a.json", kind="numbers", schema=1)
    with pytest.raises(DataError, match=r"a\.txt"):
        load_text(tmp_path / "a.txt", kind="numbers", schema=1)


# ---- killed and failing writers ----------------------------------------------------------------------


def killed_at(step: int, call: str, write) -> bool:
    """Run `write` in a child that dies, without any clean-up, instead of calling os.<call> the step-th time.

    Returns whether it died: False once it makes fewer calls than that.
    """
    child = os.fork()
    if child == 0:
        real, count = getattr(os, call), 0

        def deadly(*arguments):
            nonlocal count
            count += 1
            if count == step:
                os._exit(9)
            return real(*arguments)

        setattr(os, call, deadly)
        try:
            write()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("first", [True, False])
def test_killed_between_any_two_steps(tmp_path, call, first):
    outcomes = []
    for step in range(1, 20):
        path = tmp_path / str(step) / "a.npz"
        save(tmp_path / str(step) / "other.npz", 5)
        if not first:
            save(path, 1)
        died = killed_at(step, call, lambda path=path: save(path, 2))
        if exists(path):
            outcomes.append(value_of(path))  # before anybody has cleared up
        else:
            assert first
            outcomes.append(0)
        with lock(path.parent):
            assert set(contents(path.parent)) <= {"a.npz", "other.npz", "manifest.json", storage.LOCK}
            assert exists(path) == (outcomes[-1] != 0)
            if exists(path):
                assert value_of(path) == outcomes[-1]
        manifest = json.loads((path.parent / "manifest.json").read_text())["artefacts"]
        assert set(manifest) == set(contents(path.parent)) - {"manifest.json"}
        assert [len(versions) for versions in manifest.values()] == [1] * len(manifest)
        save(path, 2)  # the same command again
        assert value_of(path) == 2
        assert value_of(path.parent / "other.npz") == 5
        if not died:
            break
    before = 0 if first else 1
    assert outcomes == sorted(outcomes), "never back to the old version after the new one was there"
    assert {before, 2} == set(outcomes)
    assert len(outcomes) >= 3


def test_killed_again_while_clearing_up(tmp_path):
    path = tmp_path / "a.npz"
    save(path, 1)
    assert killed_at(3, "replace", lambda: save(path, 2))  # announced and replaced, not settled
    for call in ("replace", "fsync"):
        assert killed_at(1, call, lambda: save(path, 3))  # dies while settling
        assert value_of(path) == 2
    save(path, 3)
    assert value_of(path) == 3
    assert set(contents(tmp_path)) == {"a.npz", "manifest.json"}


def test_a_reader_that_overtakes_a_writer_reads_again(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    save(path, 1)
    real = storage._read_manifest

    def slow(directory):
        manifest = real(directory)
        monkeypatch.setattr(storage, "_read_manifest", real)
        save(path, 2)  # after the manifest was read, before the file is
        return manifest

    monkeypatch.setattr(storage, "_read_manifest", slow)
    assert value_of(path) == 2


def test_kill_minus_nine_at_random_moments(tmp_path):
    path = tmp_path / "a.npz"
    save(path, 0)
    random = np.random.default_rng(0)
    last = 0.0
    for _ in range(25):
        child = os.fork()
        if child == 0:
            try:
                value = last
                while True:
                    value += 1
                    save(path, value)
            finally:
                os._exit(0)
        time.sleep(random.uniform(0, 0.15))
        value_of(path)  # a reader beside a living writer
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        now = value_of(path)
        assert now >= last
        last = now
    assert last > 0, "nothing was ever written, so nothing was tested"


def test_disk_full_keeps_the_previous_artefact(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    save(path, 1)
    real, step = os.fsync, 0
    for step in range(1, 20):
        calls = iter(range(1, 100))

        def full(file, calls=calls, step=step):
            if next(calls) == step:
                raise OSError(errno.ENOSPC, "No space left on device")
            real(file)

        monkeypatch.setattr(os, "fsync", full)
        try:
            save(path, 2)
            finished = True
        except UsageError as error:
            finished = False
            assert "the disk is full" in str(error)  # noqa: PT017
            assert str(path) in str(error)  # noqa: PT017
        monkeypatch.setattr(os, "fsync", real)
        assert value_of(path) in (1, 2)
        assert set(contents(tmp_path)) == {"a.npz", "manifest.json"}
        if finished:
            break
        save(path, 1)
    assert step > 4


def test_a_real_full_disk(tmp_path):
    (tmp_path / "full").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        storage._write_synced(tmp_path / "full", b"x")


def test_places_that_cannot_be_written_are_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"file: cannot be written: .*Choose a directory"):
        save(tmp_path / "file" / "a.npz")
    (tmp_path / "folder.npz").mkdir()
    with pytest.raises(UsageError, match=r"folder\.npz: cannot be written: is a directory"):
        save(tmp_path / "folder.npz")

    def denied(*arguments):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "open", denied)  # root may write anywhere, so a mode of 0500 would not do
    with pytest.raises(UsageError, match="permission denied"):
        save(tmp_path / "a.npz")


# ---- the lock ----------------------------------------------------------------------------------------


HOLDER = """
import sys, time
from headstart.envs.storage import lock
with lock(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_second_process_is_told_who_is_first(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with (
            pytest.raises(Busy, match=f"process {holder.pid} on .* is writing here") as caught,
            lock(tmp_path),
        ):
            pass
        assert caught.value.exit_code == 75
        with pytest.raises(Busy, match=str(tmp_path)):
            save(tmp_path / "a.npz")
        assert not exists(tmp_path / "a.npz")
        holder.kill()
        holder.wait()
        save(tmp_path / "a.npz", 1)  # the dead hold nothing
    assert value_of(tmp_path / "a.npz") == 1


def test_lock_is_for_one_directory_and_ends_with_its_block(tmp_path):
    with lock(tmp_path), lock(tmp_path / "inner"):
        save(tmp_path / "a.npz", 1)
        save(tmp_path / "inner" / "a.npz", 2)
        with pytest.raises(Busy, match=f"process {os.getpid()}"), lock(tmp_path):
            pass
    with lock(tmp_path):
        pass
    assert set(contents(tmp_path / "inner")) == {"a.npz", "manifest.json"}


def test_a_lock_file_deleted_by_its_last_holder_is_no_lock(tmp_path, monkeypatch):
    real = fcntl.flock

    def late(file, operation):
        monkeypatch.setattr(fcntl, "flock", real)
        (tmp_path / storage.LOCK).unlink()  # the holder leaves after we opened its file, before we lock it
        real(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with lock(tmp_path), pytest.raises(Busy), lock(tmp_path):
        pass


def test_a_forked_child_does_not_share_the_lock(tmp_path):
    with lock(tmp_path):
        child = os.fork()
        if child == 0:
            try:
                save(tmp_path / "a.npz")
            except Busy:
                os._exit(75)
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 75
        assert (tmp_path / storage.LOCK).exists()


# ---- small facts, and deleting ----
def test_small_facts_are_read_without_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    storage.save_arrays(path, {"x": np.zeros(3)}, kind="kind", schema=1, meta={"steps": 7})
    path.write_bytes(b"damaged")
    assert storage.meta(path) == {"steps": 7}
    with pytest.raises(DataError, match="no such file"):
        storage.meta(tmp_path / "b.npz")


def test_what_is_removed_leaves_nothing_behind(tmp_path: Path) -> None:
    storage.save_json(tmp_path / "kept.json", 1, kind="kind", schema=1)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    storage.save_json(tmp_path / "gone.json", 2, kind="kind", schema=1)
    for _ in range(2):  # to remove what is not there is no error
        storage.remove(tmp_path / "gone.json")
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    storage.remove(tmp_path / "nowhere" / "gone.json")
    assert not (tmp_path / "nowhere").exists()


def test_killed_while_removing_it_counts_as_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "gone.json"
    storage.save_json(path, 1, kind="kind", schema=1)
    with monkeypatch.context() as patch:
        patch.setattr(storage, "_write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            storage.remove(path)
    assert not storage.exists(path)
