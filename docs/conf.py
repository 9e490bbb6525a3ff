# SPDX-License-Identifier: Apache-2.0
"Sphinx configuration of the site that `cop docs` builds; nothing in it needs a network."

from docutils import nodes
from sphinx.util import logging

from cop_repro.cli._formulas import to_mathml
from cop_repro.core import BadInput

project = "cop_repro"
copyright = "2026 onwards, the cop_repro authors"
extensions = ["myst_nb"]
root_doc = "index"
highlight_language = "text"
smartquotes = False

# Every other warning is an error: a missing link, picture or formula stops the build.
suppress_warnings = [
    "toc.not_included",  # files that a page links to have a page, but no place in the order
    "misc.highlighting_failure",  # such a block is shown without colours
]

myst_enable_extensions = ["dollarmath", "html_image"]
myst_dmath_allow_labels = False
myst_dmath_double_inline = True
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_ipywidgets_js = {}

html_theme = "furo"
html_title = "cop_repro"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_show_sourcelink = False
html_show_search_summary = False  # summaries are fetched, which browsers refuse for local files


def visit_math(translator, node: nodes.math | nodes.math_block) -> None:
    "Write one formula; one that cannot be converted is a warning with its place."
    display = isinstance(node, nodes.math_block)
    try:
        mathml = to_mathml(node.astext(), display)
    except BadInput as error:
        logging.getLogger(__name__).warning(str(error), location=node)
        mathml = ""
    classes = "formula display" if display else "formula"
    translator.body.append(f'<span class="{classes}">{mathml}</span>')
    raise nodes.SkipNode


def setup(app) -> dict[str, bool]:
    "Register the renderer of formulas."
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
