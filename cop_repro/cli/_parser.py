# SPDX-License-Identifier: Apache-2.0
"The parser of the command line: errors are one line, and a slip gets a suggestion."

import argparse
import re

from cop_repro.core import did_you_mean

CHOICE = re.compile(r"argument (\S+): invalid choice: '(.+)' \(choose from (.+)\)")


class Formatter(argparse.HelpFormatter):
    "Help texts that end with the default, where there is one to show."

    def _get_help_string(self, action: argparse.Action) -> str:
        shown = "default: " in (action.help or "") or action.default in (None, False, "", [])
        if shown or action.default is argparse.SUPPRESS:
            return action.help
        return f"{action.help} (default: %(default)s)"


class Parser(argparse.ArgumentParser):
    "An argument parser that suggests the command, the choice or the option that was meant."

    given: tuple[str, ...] = ()
    mixed = False  # whether options may stand between a name and a list of names

    def __init__(self, **options):
        super().__init__(formatter_class=Formatter, **options)

    def parse_known_args(self, args=None, namespace=None):
        "Keep what was given, for messages; parse it in any order where `mixed` asks for that."
        if args is not None:
            self.given = tuple(args)
        if not self.mixed:
            return super().parse_known_args(args, namespace)
        self.mixed = False  # argparse calls this method from the one below
        try:
            return super().parse_known_intermixed_args(args, namespace)
        finally:
            self.mixed = True

    def error(self, message: str) -> None:
        "End with one line and code 2."
        said = self._no_choice(message) or f"{message}{self._option_hint()}"
        self.exit(2, f"{self.prog}: {said}; `{self.prog} --help` explains\n")

    def _no_choice(self, message: str) -> str:
        "A word that is none of the choices, with the nearest one, else with all."
        found = CHOICE.search(message)
        if not found:
            return ""
        names = [name.strip("' ") for name in found[3].split(",")]
        hint = did_you_mean(found[2], names) or f": choose from {', '.join(names)}"
        return f"no {found[1]} {found[2]!r}{hint}"

    def _option_hint(self) -> str:
        "The nearest option to the first one that does not exist."
        known = list(self._option_string_actions)
        for word in self.given:
            option = word.partition("=")[0]
            if option.startswith("--") and not any(k.startswith(option) for k in known):
                return did_you_mean(option, known)
        return ""
