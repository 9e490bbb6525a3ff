# SPDX-License-Identifier: Apache-2.0
"`cop lock`: what `make lock` resolves."

from configparser import ConfigParser

from cop_repro.core import project_root

HELP = "print all requirements of settings.ini, extras included"


def add_arguments(parser) -> None:
    "It takes no arguments."


def run(args) -> int:
    "Print what settings.ini asks for, one requirement a line."
    parser = ConfigParser(delimiters=["="])
    parser.read(project_root() / "settings.ini", encoding="utf-8")
    settings = parser["DEFAULT"]
    extras = [settings[key] for key in settings if key.startswith("extras_")]
    print("\n".join(" ".join([settings["requirements"], *extras]).split()))
    return 0
