"""`headstart doctor`: every check passes here, and fails with what to do when something is off."""

import re
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from headstart.envs import engine
from headstart.envs.errors import EnvironmentFailed, UsageError
from headstart.experiments import doctor


def lines_of(text: str) -> dict[str, list[str]]:
    """First word after ok or WRONG -> its lines."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines()[:-1]:
        verdict, name, rest = re.fullmatch(r"(ok|WRONG) +(.+?) +(.*)", line).groups()  # type: ignore[union-attr]
        found.setdefault(name, []).append(f"{verdict} {rest}")
    return found


@pytest.fixture(autouse=True)
def _own_caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


def test_all_is_well(tmp_path: Path, capsys):
    assert doctor.doctor(Path("runs")) == 0
    text = capsys.readouterr().out
    assert text.endswith("All is well.\n")
    lines = lines_of(text)
    assert all(line.startswith("ok ") for name in lines for line in lines[name])
    for requirement in metadata.requires("headstart") or []:
        assert (requirement in lines) == ("extra ==" not in requirement)
    assert lines["numpy>=1.26"] == [f"ok {np.__version__}"]
    assert len([line for line in text.splitlines() if "steps as in minigrid" in line]) == 2
    assert list(tmp_path.iterdir()) == []


def test_one_thing_is_off(monkeypatch: pytest.MonkeyPatch, capsys):
    """The others are checked all the same, whatever the one raises."""

    def broken() -> str:
        raise ZeroDivisionError("none left")

    monkeypatch.setattr(doctor, "_torch", broken)
    assert doctor.doctor(Path("runs")) == EnvironmentFailed.exit_code == 4  # 1 would be a bug
    text = capsys.readouterr().out
    assert text.endswith("1 of these need your attention.\n")
    assert "WRONG torch                  ZeroDivisionError: none left" in text
    assert len([line for line in text.splitlines() if "steps as in minigrid" in line]) == 2


def test_packages():
    assert doctor._package("numpy>=1.0") == np.__version__
    with pytest.raises(UsageError, match=r"is installed\. Type: pip install 'numpy>=99'"):
        doctor._package("numpy>=99")
    with pytest.raises(UsageError, match=r"is not installed\. Type: pip install 'no-such-package-here>=1'"):
        doctor._package("no-such-package-here>=1")


def test_python(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(doctor.platform, "python_version", lambda: "3.10.2")
    with pytest.raises(UsageError, match=r"3\.10\.2, but headstart needs >=3\.11"):
        doctor._python()


def test_a_driver_that_does_not_fit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(doctor, "NVIDIA_DRIVER", tmp_path / "nvidiactl")
    assert "takes the CPU" in doctor._torch()
    (tmp_path / "nvidiactl").touch()
    with pytest.raises(EnvironmentFailed, match="update the driver"):
        doctor._torch()


def test_nowhere_to_keep_the_compiled_engine(monkeypatch: pytest.MonkeyPatch):
    uncached = SimpleNamespace(stats=SimpleNamespace(cache_path=None))
    monkeypatch.setattr(engine, "_step_rows", uncached)
    with pytest.raises(UsageError, match="Set NUMBA_CACHE_DIR"):
        doctor._compiled()


def test_size_of_the_levels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "cache/levels/one").mkdir(parents=True)
    (tmp_path / "cache/levels/one/000000.npz").write_bytes(bytes(2_500_000))
    assert doctor._levels().startswith(f"2.5 MB in {tmp_path / 'cache'}")
    (tmp_path / "file").touch()
    monkeypatch.setenv("HEADSTART_CACHE", str(tmp_path / "file"))
    with pytest.raises(UsageError, match=r"HEADSTART_CACHE\): .*file cannot be written to: not a directory"):
        doctor._levels()


def test_full_disk(monkeypatch: pytest.MonkeyPatch):
    assert re.fullmatch(r"\d+ GB at .*", doctor._free_disk(Path("runs")))
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=2e8))
    with pytest.raises(UsageError, match=r"0\.2 GB at runs: free at least 1\.0 GB"):
        doctor._free_disk(Path("runs"))


def test_writable_leaves_nothing(tmp_path: Path):
    doctor.check_writable(tmp_path / "a" / "b", "--out")
    doctor.check_writable(Path("a"), "--out")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match=r"^--out: /proc/nowhere cannot be written to"):
        doctor.check_writable(Path("/proc/nowhere"), "--out")
    with pytest.raises(UsageError, match="file name too long"):
        doctor.check_writable(tmp_path / ("x" * 300), "--out")


@pytest.mark.parametrize("env_id", doctor.SELF_TEST)
def test_self_test_finds_a_wrong_engine(env_id: str, monkeypatch: pytest.MonkeyPatch):
    """One cell that is seen wrongly, an end that is missed, a step that is not taken."""
    doctor._self_test(env_id)
    observe, step = engine.observe, engine.step

    def blind(rows: np.ndarray) -> np.ndarray:
        frame = observe(rows)
        frame[:, 24] = 0
        return frame

    def endless(rows: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        step(rows, action)
        return np.zeros(1, bool), np.zeros(1, bool)

    def idle(rows: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return step(rows.copy(), action)

    for name, wrong in (("observe", blind), ("step", endless), ("step", idle)):
        with monkeypatch.context() as patched:
            patched.setattr(engine, name, wrong)
            with pytest.raises(EnvironmentFailed, match=r"step \d+ of seed \d+ differs from minigrid"):
                doctor._self_test(env_id)
