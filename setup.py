# SPDX-License-Identifier: Apache-2.0
"""Reads settings.ini, the single source of metadata, and puts the shipped data into the package.

Git holds the data once, as objects of the DVC store in dvcstore/. A build takes each file from
data/ or, in a clone that has not pulled it yet, from its object.
"""

import hashlib
import json
import re
import shutil
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist
from setuptools.errors import FileError

ROOT = Path(__file__).resolve().parent
SHIPPED = {"assets": "*.safetensors", "etudes": "*.yaml"}  # folders of data/ and what they hold
NOT_FOR_RUNNING = ("dev", "docs")  # extras that `all` leaves out


def read_settings() -> dict[str, str]:
    "The keys of settings.ini."
    parser = ConfigParser(delimiters=["="])
    parser.read(ROOT / "settings.ini", encoding="utf-8")
    return dict(parser["DEFAULT"])


def read_extras(settings: dict[str, str]) -> dict[str, list[str]]:
    "The requirements of each extra, and `all`."
    prefix = "extras_"
    extras = {
        key.removeprefix(prefix): value.split()
        for key, value in settings.items()
        if key.startswith(prefix)
    }
    running = [extras[name] for name in extras if name not in NOT_FOR_RUNNING]
    return extras | {"all": sorted({word for words in running for word in words})}


def stored_object(md5: str) -> Path:
    "The file in the DVC store that has this hash; a folder's ends in .dir."
    return ROOT / "dvcstore" / "files" / "md5" / md5[:2] / md5[2:]


def tracked_files() -> dict[str, str]:
    "Path in data/ -> MD5 of the files that data.dvc tracks; empty without a store, as in an sdist."
    pointer = ROOT / "data.dvc"
    if not pointer.is_file():
        return {}
    folder = stored_object(re.search(r"md5: (\w+\.dir)", pointer.read_text()).group(1))
    if not folder.is_file():
        return {}
    return {entry["relpath"]: entry["md5"] for entry in json.loads(folder.read_text())}


def shipped_data() -> dict[str, Path]:
    "Path below cop_repro/shipped -> the file to copy."
    found = {}
    for folder, pattern in SHIPPED.items():
        for path in sorted((ROOT / "data" / folder).glob(pattern)):
            found[f"{folder}/{path.name}"] = path
    for name, md5 in tracked_files().items():
        if name.split("/")[0] in SHIPPED and name not in found:
            found[name] = checked_object(name, md5)
    lacking = [folder for folder in SHIPPED if not any(n.startswith(f"{folder}/") for n in found)]
    if lacking:
        raise FileError(
            f"no files for {' and '.join(lacking)}: they are needed in data/ (`make setup` or "
            "`dvc pull data.dvc`) or as objects in dvcstore/"
        )
    return found


def checked_object(name: str, md5: str) -> Path:
    "The object of a tracked file, if it is there and whole."
    path = stored_object(md5)
    if not path.is_file():
        raise FileError(f"data/{name} is missing, and so is its object {md5} in dvcstore/")
    found = hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()
    if found != md5:
        raise FileError(f"the object of data/{name} in dvcstore/ is damaged: {found}, not {md5}")
    return path


def copy_shipped(folder: Path) -> None:
    "Copy the shipped data below a folder."
    for name, source in shipped_data().items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


class BuildWithData(build_py):
    "Modules and shipped data; an editable install reads data/ itself."

    def run(self):
        "Build into an empty folder, because a module removed since would stay in it."
        if self.editable_mode:
            return super().run()
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()
        copy_shipped(self._shipped_folder())

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        "All files that are built."
        made = super().get_outputs(include_bytecode)
        if self.editable_mode:
            return made
        return made + [str(self._shipped_folder() / name) for name in shipped_data()]

    def _shipped_folder(self) -> Path:
        "Where the data lies in the built package."
        return Path(self.build_lib) / "cop_repro" / "shipped"


class SourcesWithData(sdist):
    "Sources and, in data/, the files that a wheel built from them will ship."

    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        "Add the shipped data to the files of the manifest."
        super().make_release_tree(base_dir, files)
        copy_shipped(Path(base_dir) / "data")


settings = read_settings()
setup(
    name=settings["lib_name"],
    version=settings["version"],
    description=settings["description"],
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    keywords=settings["keywords"].split(),
    author=settings["author"],
    license_expression=settings["license_expression"],
    license_files=["LICENSE", "LICENSES.md"],
    classifiers=settings["classifiers"].strip().split("\n"),
    project_urls=dict(line.split(": ", 1) for line in settings["urls"].strip().split("\n")),
    packages=find_packages(include=["cop_repro*"]),
    package_data={"cop_repro.evaluation": ["*.html"], "cop_repro.benchmark": ["*.html"]},
    python_requires=f">={settings['min_python']}",
    install_requires=settings["requirements"].split(),
    extras_require=read_extras(settings),
    entry_points={"console_scripts": settings["console_scripts"].split("\n")},
    cmdclass={"build_py": BuildWithData, "sdist": SourcesWithData},
)
