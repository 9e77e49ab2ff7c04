"""The distribution fedsim-lab, beside a stranger's that is called as our package is, and installs one of that name."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import torch
import typer

ROOT = Path(__file__).parent.parent
REMEDY = "pip uninstall fedsim && pip install --force-reinstall --no-deps fedsim-lab"


def wheel(folder: Path, name: str, files: dict[str, str]) -> str:
    """A wheel of these files, by hand: to build one takes a package index."""
    folder.mkdir(exist_ok=True)
    metadata = f"{name.replace('-', '_')}-0.1.0.dist-info"
    files = {
        **files,
        f"{metadata}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n",
        f"{metadata}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    listed = "".join(f"{file},,\n" for file in [*files, f"{metadata}/RECORD"])
    place = folder / f"{name.replace('-', '_')}-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(place, "w") as opened:
        for file, text in {**files, f"{metadata}/RECORD": listed}.items():
            opened.writestr(file, text)
    return str(place)


def ours(folder: Path, files: dict[str, str]) -> str:
    script = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]["fedsim"]
    points = {"fedsim_lab-0.1.0.dist-info/entry_points.txt": f"[console_scripts]\nfedsim = {script}\n"}
    return wheel(folder, "fedsim-lab", files | points)


def whole() -> dict[str, str]:
    """What is installed of us, as far as the command needs it to say what it is."""
    found = [ROOT / "fedsim_lab.py", *sorted((ROOT / "fedsim").rglob("*.py"))]
    return {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in found}


class Environment:
    """A virtual environment in which the packages that fedsim needs come last, and no editable fedsim is."""

    def __init__(self, place: Path) -> None:
        venv.create(place)
        self.bin = place / "bin"
        (packages,) = place.glob("lib/python*/site-packages")
        behind = {str(Path(module.__file__).parent.parent) for module in (torch, typer)}
        (packages / "zz.pth").write_text("\n".join(behind))

    def pip(self, *arguments: str) -> None:
        command = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "--quiet", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr

    def install(self, *arguments: str) -> None:
        self.pip("install", "--no-compile", "--no-deps", "--no-index", *arguments)

    def fedsim(self, *command: str) -> tuple[int, str, str]:
        done = subprocess.run(command, cwd=self.bin, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, done.stdout, done.stderr

    def command(self) -> tuple[int, str, str]:
        return self.fedsim(str(self.bin / "fedsim"), "--version")


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    return Environment(tmp_path / "venv")


@pytest.fixture
def stranger(tmp_path: Path) -> str:
    """It says so if anything of it is executed."""
    return wheel(tmp_path, "fedsim", {"fedsim/__init__.py": "print('executed')\n", "fedsim/server.py": ""})


def test_a_package_that_is_written_over_is_refused_in_one_line(environment, stranger, tmp_path):
    installed = ours(tmp_path, whole())
    environment.install(installed)
    assert environment.command() == (0, "fedsim 0.1.0\n", "")
    environment.install(stranger)
    line = f"fedsim: another distribution called fedsim has written over this one; {REMEDY}\n"
    assert environment.command() == (2, "", line)
    # Python itself executes the package's first file, and then ours.
    said = environment.fedsim(str(environment.bin / "python"), "-m", "fedsim", "--version")
    assert said == (2, "executed\n", line)

    environment.pip("uninstall", "--yes", "fedsim")
    assert environment.command() == (2, "", line)  # it has taken the files along
    environment.install("--find-links", str(tmp_path), *REMEDY.partition("pip install ")[2].split())
    assert environment.command() == (0, "fedsim 0.1.0\n", "")


def test_a_package_that_hides_an_editable_one_is_refused_in_one_line(environment, stranger, tmp_path):
    environment.install(ours(tmp_path, {"_fedsim_lab.pth": str(ROOT)}))
    assert environment.command() == (0, "fedsim 0.1.0\n", "")
    environment.install(stranger)
    line = "fedsim: another distribution called fedsim hides this one; pip uninstall fedsim\n"
    assert environment.command() == (2, "", line)
    environment.pip("uninstall", "--yes", "fedsim")
    assert environment.command() == (0, "fedsim 0.1.0\n", "")


def test_no_extra_is_a_strangers():
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert own["name"] == "fedsim-lab"
    wanted = [line for lines in own["optional-dependencies"].values() for line in lines]
    ours = [line.partition("[")[0] for line in wanted if line.startswith("fedsim")]
    assert ours == ["fedsim-lab", "fedsim-lab"]


def test_nothing_tells_to_install_the_stranger():
    folders = ("fedsim", "strategies", "clients", "experiments", "docs")
    texts = [*ROOT.glob("*.md"), *(path for folder in folders for path in (ROOT / folder).rglob("*.*"))]
    read = {path: path.read_text(encoding="utf-8") for path in texts if path.suffix in (".py", ".md", ".txt")}
    assert "pip install 'fedsim-lab[cma]'" in read[ROOT / "strategies" / "cma_es.py"]
    assert [path for path, text in read.items() if re.search(r"""pip install ['"]?fedsim(?!-lab)""", text)] == []
