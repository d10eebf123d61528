"""What is installed: the package `headstart`, whole and nothing beside it, from wheel, sdist and editable."""

import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from importlib import metadata, util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGES = ["envs", "experiments", "learners", "models"]


def package_folders() -> list[str]:
    """Every folder with an __init__.py, as git or the disk shows it, hidden folders and .venv aside."""
    folders = [file.parent.relative_to(ROOT) for file in ROOT.glob("[!.]*/**/__init__.py")]
    return sorted(folder.as_posix() for folder in folders if folder.parts[0] not in ("build", "dist"))


def test_every_package_folder_is_listed():
    setuptools = PROJECT["tool"]["setuptools"]
    names = [f"headstart.{folder.replace('/', '.')}" for folder in package_folders()]
    assert sorted(setuptools["packages"]) == names
    assert setuptools["package-dir"] == dict(zip(names, package_folders(), strict=True))
    assert set(setuptools["package-data"]) == set(names)


def test_type_checkers_see_the_same_packages():
    links = {link.name: link.resolve() for link in (ROOT / ".typings" / "headstart").iterdir()}
    assert links == {name: ROOT / name for name in PACKAGES}


def test_the_editable_install_is_this_tree():
    for name in PACKAGES:
        spec = util.find_spec(f"headstart.{name}")
        assert spec is not None
        assert spec.origin is not None
        assert Path(spec.origin).resolve().parent == ROOT / name


def test_version():
    assert metadata.version("headstart") == PROJECT["project"]["version"]
    assert f"## {PROJECT['project']['version']}" in (ROOT / "CHANGELOG.md").read_text()


def requirements(distribution: str, extra: str, seen: set[tuple[str, str]]) -> None:
    """Add (name, extra) of everything installed that the distribution needs, however indirectly."""
    from packaging.requirements import Requirement

    for text in metadata.requires(distribution) or []:
        requirement = Requirement(text)
        if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
            continue
        for wanted in ("", *requirement.extras):
            name = re.sub(r"[-_.]+", "-", requirement.name).lower()
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                requirements(name, wanted, seen)


def test_constraints_pin_every_dependency():
    needed: set[tuple[str, str]] = set()
    requirements("headstart", "dev", needed)
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "exact and public versions only"
    pins = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in lines}
    cuda = ("nvidia-", "cuda-", "triton")  # PyTorch's builds for GPUs pin these themselves
    assert {name for name, _ in needed if not name.startswith(cuda)} - pins == set()


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A folder with the wheel and the sdist, built without network from a clean copy of the tree."""
    tree = tmp_path_factory.mktemp("build") / "tree"
    ignored = shutil.ignore_patterns("__pycache__", "results")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, tree / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tree / name)
    code = "from setuptools import build_meta as b; b.build_wheel('dist'); b.build_sdist('dist')"
    subprocess.run([sys.executable, "-c", code], cwd=tree, check=True, capture_output=True)
    return tree / "dist"


def expected_files() -> set[str]:
    folders = [ROOT / name for name in PACKAGES]
    files = [file for folder in folders for file in [*folder.glob("*.py"), folder / "py.typed"]]
    return {f"headstart/{file.relative_to(ROOT).as_posix()}" for file in files}


def test_wheel_holds_headstart_and_nothing_else(built):
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"headstart-{PROJECT['project']['version']}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert {name for name in names if ".dist-info/" not in name} == expected_files()
    assert any(name.endswith("licenses/LICENSE") for name in names)


def installed_into(venv: Path, wheel: Path) -> Path:
    """Make a virtual environment, install the wheel into it, and return its Python.

    The dependencies are those of this Python: its site-packages are put on the path, but their .pth files,
    and with them the editable headstart, are not followed.
    """
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(venv)], check=True)
    python = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python)]
    install = ["install", "--quiet", "--no-deps", "--no-index", "--disable-pip-version-check", str(wheel)]
    subprocess.run([*pip, *install], check=True)
    (packages,) = venv.glob("lib/python*/site-packages")
    assert {path.name.partition("-")[0] for path in packages.iterdir()} == {"headstart"}
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return python


USE = """
from importlib import metadata, util
from pathlib import Path
import sys
import headstart.envs, headstart.models, headstart.learners, headstart.experiments
for name in ("envs", "models", "learners", "experiments"):
    assert util.find_spec(name) is None, name
    module = sys.modules["headstart." + name]
    assert Path(module.__file__).is_relative_to(sys.prefix), module.__file__
print(metadata.version("headstart"))
"""


@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_installs_into_a_fresh_environment(built, tmp_path, kind):
    wheels = built
    if kind == "sdist":
        (sdist,) = built.glob("*.tar.gz")
        with tarfile.open(sdist) as archive:
            archive.extractall(tmp_path, filter="data")
        code = "from setuptools import build_meta as b; b.build_wheel('dist')"
        (unpacked,) = tmp_path.iterdir()
        subprocess.run([sys.executable, "-c", code], cwd=unpacked, check=True, capture_output=True)
        wheels = unpacked / "dist"
    (wheel,) = wheels.glob("*.whl")
    python = installed_into(tmp_path / "venv", wheel)
    version = subprocess.run([python, "-c", USE], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert version.strip() == PROJECT["project"]["version"]
