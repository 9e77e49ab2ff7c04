"""The distribution fedsim-lab: what is in it, and that it works outside the clone and beside a stranger's.

The stranger is called as our package is, and installs one of that name.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import torch
import typer
import yaml
from hatchling import build
from packaging.metadata import Metadata

import fedsim
from fedsim.configuration.places import experiment_file, shipped
from fedsim.core.errors import InputError

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


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, as `python -m build` makes it."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        return folder / build.build_wheel(str(folder))


def inside(wheel: Path) -> dict[str, str]:
    """The files of a wheel with the hashes of what they say."""
    with zipfile.ZipFile(wheel) as opened:
        return {name: hashlib.sha256(opened.read(name)).hexdigest() for name in opened.namelist()}


def test_the_wheel_has_all_files_of_its_packages_and_nothing_else(built: Path) -> None:
    tracked = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip("git lists the files of a clone, and this is none")
    packages = ("fedsim/", "strategies/", "clients/", "experiments/")
    ours = {path for path in tracked.stdout.splitlines() if path.startswith(packages) and (ROOT / path).is_file()}
    metadata = {f"fedsim_lab-{fedsim.__version__}.dist-info/{name}" for name in (
        *("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE"),
    )}  # fmt: skip
    assert set(inside(built)) == ours | {"fedsim_lab.py"} | metadata


def test_what_the_index_is_told_is_valid(built: Path) -> None:
    with zipfile.ZipFile(built) as opened:
        told = Metadata.from_email(opened.read(f"fedsim_lab-{fedsim.__version__}.dist-info/METADATA"), validate=True)
    assert (told.name, str(told.version), told.license_expression) == ("fedsim-lab", fedsim.__version__, "Apache-2.0")
    assert told.description_content_type == "text/markdown"
    assert not any(name.startswith("License ::") for name in told.classifiers or [])  # the expression is in their place


def test_an_experiment_that_comes_along_is_found_by_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits_fedprox").mkdir()  # as a folder of runs is called
    for name in shipped():
        assert experiment_file(name) == ROOT / "experiments" / f"{name}.toml"
    assert fedsim.load("digits_fedprox").name == "digits_fedprox"
    (tmp_path / "digits_fedavg").write_text('name = "mine"')
    assert fedsim.load("digits_fedavg").name == "mine"
    with pytest.raises(InputError, match=r"^experiment = digits_fedbrox: there is no such file; fedsim comes with .*"
        r"digits_fedavg, .*; did you mean digits_fedprox\?$"):  # fmt: skip
        fedsim.load("digits_fedbrox")
    with pytest.raises(InputError, match=r"^experiment = digits_fedprox.toml: there is no such file$"):
        fedsim.load("digits_fedprox.toml")


def instructions() -> list[tuple[str, str]]:
    """Those of the Dockerfile, in their order, with what they say."""
    lines = [line for line in (ROOT / "Dockerfile").read_text().splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_image_has_what_the_wheel_is_made_of_and_runs_the_main_experiment_as_nobody_special():
    made = instructions()
    first, image = made[0]
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    assert first == "FROM"
    minor = int(re.fullmatch(r"python:3\.(\d+)-slim", image)[1])
    assert int(re.search(r">=3\.(\d+)", wanted)[1]) <= minor < int(re.search(r"<3\.(\d+)", wanted)[1])
    copied = [source for word, rest in made if word == "COPY" for source in rest.split()[:-1]]
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert set(copied) == {*packages["packages"], "pyproject.toml", "README.md", "LICENSE", "constraints.txt"}
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert ignored[0] == "*"
    assert {line.strip("!/") for line in ignored if line.startswith("!")} == set(copied)
    (install,) = [rest for word, rest in made if word == "RUN" and rest.startswith("pip ")]
    assert install.endswith("-c constraints.txt .")
    assert [rest for word, rest in made if word == "USER"] == ["fedsim"]
    assert [word for word, _ in made[-2:]] == ["ENTRYPOINT", "CMD"]
    command = [part for _, rest in made[-2:] for part in json.loads(rest)]
    assert command == ["fedsim", "run", "digits_fedavg"]


def test_what_is_cited_is_this_version():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    own = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert {"cff-version", "message", "title", "authors"} <= set(cited)  # what the format asks for
    assert (cited["cff-version"], cited["type"]) == ("1.2.0", "software")
    assert (cited["version"], cited["license"]) == (own["version"], own["license"])
    assert cited["abstract"] == own["description"]
    assert cited["keywords"] == own["keywords"]


@pytest.mark.slow
def test_the_image_is_made_of_enough(built, tmp_path, monkeypatch):
    """What is copied into it, but for what is ignored, makes the wheel without its pictures."""
    ignored = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("**/")]
    for word, rest in instructions():
        for source in rest.split()[:-1] if word == "COPY" else ():
            if (ROOT / source).is_dir():
                names = shutil.ignore_patterns(*(line.removeprefix("**/") for line in ignored))
                shutil.copytree(ROOT / source, tmp_path / source, ignore=names)
            else:
                shutil.copy(ROOT / source, tmp_path)
    monkeypatch.chdir(tmp_path)
    record = f"fedsim_lab-{fedsim.__version__}.dist-info/RECORD"
    wanted = {name: text for name, text in inside(built).items() if not name.endswith(".png") and name != record}
    found = inside(tmp_path / build.build_wheel(str(tmp_path)))
    assert {name: text for name, text in found.items() if name != record} == wanted


@pytest.mark.slow
def test_the_source_distribution_makes_the_same_wheel(built, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    with tarfile.open(tmp_path / build.build_sdist(str(tmp_path))) as opened:
        opened.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path / f"fedsim_lab-{fedsim.__version__}")
    assert inside(tmp_path / build.build_wheel(str(tmp_path))) == inside(built)


@pytest.mark.slow
def test_the_wheel_runs_the_main_experiment_in_an_empty_folder_and_passes_tests(built, environment, tmp_path):
    """What the image does; then tests beside it, of which nothing but their own folder is on the path."""
    environment.install(str(built))
    empty, beside = tmp_path / "empty", tmp_path / "beside"
    empty.mkdir()
    python = str(environment.bin / "python")
    command = [str(environment.bin / "fedsim"), *json.loads(instructions()[-1][1]), "--set", "rounds=3"]
    done = subprocess.run(command, cwd=empty, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("finished: 3 rounds")
    assert (empty / "runs" / "digits_fedavg-0" / "model.safetensors").exists()
    shutil.copytree(ROOT / "tests", beside / "tests")
    shutil.copy(ROOT / "pyproject.toml", beside)
    where = [python, "-P", "-c", "import fedsim, strategies; print(fedsim.__file__, strategies.__file__)"]
    found = subprocess.run(where, cwd=beside, capture_output=True, text=True, check=True).stdout.split()
    assert all(str(environment.bin.parent) in path for path in found), found
    tests = ("tests/core/test_streams.py", "tests/exchange", "tests/strategies/test_fedavg.py")
    options = ("-P", "-m", "pytest", "-n0", "-q", "-o", "pythonpath=tests", "-p", "no:cacheprovider")
    done = subprocess.run([python, *options, *tests], cwd=beside, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
