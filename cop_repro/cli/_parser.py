# SPDX-License-Identifier: Apache-2.0
"The parser of the command line: errors are one line, and a slip gets a suggestion."

import argparse
import re

from cop_repro.core import did_you_mean

CHOICE = re.compile(r"invalid choice: '(.+)' \(choose from (.+)\)")


class Parser(argparse.ArgumentParser):
    "An argument parser that suggests the command, the choice or the option that was meant."

    given: tuple[str, ...] = ()

    def parse_known_args(self, args=None, namespace=None):
        "Keep what was given, for messages."
        if args is not None:
            self.given = tuple(args)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> None:
        "End with one line and code 2."
        hint = self._choice_hint(message) or self._option_hint()
        self.exit(2, f"{self.prog}: {message}{hint}; `{self.prog} --help` explains\n")

    def _choice_hint(self, message: str) -> str:
        "The nearest of the choices."
        found = CHOICE.search(message)
        if not found:
            return ""
        return did_you_mean(found[1], [name.strip("' ") for name in found[2].split(",")])

    def _option_hint(self) -> str:
        "The nearest option to the first one that does not exist."
        known = list(self._option_string_actions)
        for word in self.given:
            option = word.partition("=")[0]
            if option.startswith("--") and not any(k.startswith(option) for k in known):
                return did_you_mean(option, known)
        return ""
