"""What a wheel holds, and that an installed minidl works without the checkout and without a network."""

import configparser
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the content of a wheel, built from a copy of the project."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("minidl", "lessons", "datasets"):
        shutil.copytree(PROJECT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.cfg", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PROJECT / name, source)
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "--no-index", "-w", folder,
                    source], check=True, capture_output=True)
    wheel, = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_a_wheel_installs_only_minidl(installed):
    names = [path.name for path in installed.iterdir()]
    assert sorted(name.split("-")[0] for name in names) == ["minidl", "minidl"]
    assert sum(name.endswith(".dist-info") for name in names) == 1


def test_an_installed_minidl_carries_digits_and_lessons(installed, tmp_path):
    code = ("import minidl, pathlib; (x, y), (xt, yt) = minidl.data.load('digits'); "
            "print(pathlib.Path(minidl.__file__).parent, len(x), len(xt))")
    environment = {**os.environ, "PYTHONPATH": str(installed), "HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path)}
    environment.pop("MINIDL_DATA", None)
    result = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.stdout.split() == [str(installed / "minidl"), "10000", "2000"], result.stderr
    lessons = installed / "minidl" / "lessons"
    assert (lessons / "07_faster_convergence.py").is_file()
    solutions = {path.name for path in (PROJECT / "lessons" / "solutions").glob("*.py")}
    assert {path.name for path in (lessons / "solutions").iterdir()} == solutions and solutions
    assert (installed / "minidl" / "live" / "race.html").is_file()


def test_an_installed_minidl_gives_its_lessons_away(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-m", "minidl", "lesson", "--notebook", "nb"], cwd=tmp_path, env=environment, check=True)
    lessons = {path.stem for path in (PROJECT / "lessons").glob("[0-9]*.py")}
    assert {path.stem for path in (tmp_path / "nb").iterdir()} == lessons


def test_an_installed_minidl_gives_and_checks_its_exercises(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed), "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "minidl", "exercise"]
    subprocess.run([*command, "--copy", "mine"], cwd=tmp_path, env=environment, check=True)
    exercises = {path.name for path in (PROJECT / "lessons" / "exercises").glob("[0-9]*.py")}
    assert {path.name for path in (tmp_path / "mine").iterdir()} == exercises
    result = subprocess.run([*command, "mine/06_batchnorm_backward.py"], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert result.returncode == 1 and result.stdout == "not started yet\n", result.stderr


def test_a_data_folder_that_could_shadow_another_package_has_no_init():
    assert not (PROJECT / "datasets" / "__init__.py").exists()


def test_the_wheel_has_every_folder_of_the_package():
    """A folder that setup.cfg forgets is missing only in what is installed."""
    config = configparser.ConfigParser()
    config.read(PROJECT / "setup.cfg")
    listed = set(config["options"]["packages"].split()) - {"minidl.datasets", "minidl.lessons",
                                                               "minidl.lessons.solutions"}
    folders = {path.parent for path in (PROJECT / "minidl").rglob("*.py")}
    assert listed == {".".join(folder.relative_to(PROJECT).parts) for folder in folders}
