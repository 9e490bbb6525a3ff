# SPDX-License-Identifier: Apache-2.0
"Formulas as MathML, which browsers typeset without a script and without a network."

from cop_repro.core import BadInput, needs_extra


def to_mathml(
    latex: str,  # a formula without its dollar signs
    display: bool,  # set apart from the text?
) -> str:  # a `math` element
    "MathML Core; a command that is not known is refused."
    with needs_extra("docs"):
        from math_core import LatexError, LatexToMathML

    if r"\tag" in latex:
        latex = rf"\begin{{equation}}{latex}\end{{equation}}"
    converter = LatexToMathML(fancy_error=False)
    try:
        return converter.convert_with_local_state(latex, displaystyle=display)
    except LatexError as error:
        raise BadInput(f"formula {latex!r}: {error}") from None
