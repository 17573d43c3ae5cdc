"""Settings of the documentation site, which docs/site/build.py builds."""

from docutils import nodes

import carnet

project = "CARNet"
copyright = "The CARNet authors, Apache-2.0"
version = release = carnet.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
html_theme = "furo"
html_title = "CARNet"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sourcelink = False

nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
myst_heading_anchors = 4
# Docstrings mark code with single backticks.
default_role = "code"
smartquotes = False
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_inherit_docstrings = False
napoleon_use_rtype = False
napoleon_use_ivar = True
# Examples of answers leave parts out, which no language allows.
suppress_warnings = ["misc.highlighting_failure"]
copybutton_exclude = ".linenos, .gp, .go"


def mark_programs(*arguments):
    """Mark the indented programs in a docstring as such; sections such as Args follow their heading at once."""
    lines = arguments[-1]
    for number in range(len(lines) - 1, 1, -1):
        before, blank, line = lines[number - 2 : number + 1]
        if line.startswith("    ") and not blank and before and not before.startswith(" "):
            lines[number - 1 : number] = ["", "::", ""]


def draw_dashes(app, document):
    """Draw the dashes between a parameter and what it means, which stay two hyphens without smart quotes."""
    for text in list(document.findall(lambda node: isinstance(node, nodes.Text) and node.astext() == " -- ")):
        text.parent.replace(text, nodes.Text(" \u2013 "))


def setup(app):
    """Mark programs before napoleon reads the sections."""
    app.connect("autodoc-process-docstring", mark_programs, priority=400)
    app.connect("doctree-read", draw_dashes)
