"""Settings of the documentation site, which `make docs` builds of these Markdown files.

The pages stay plain Markdown: what only the site needs stands in HTML comments, `<!-- {directive}
... -->`, and is read as a directive of MyST. Nothing is fetched while it is built or read.
"""

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the packages of this checkout, for their docstrings

project = "Whitening transfer benchmark"
author = "the project's maintainers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3  # links to a section are the same as in plain Markdown
autodoc_typehints = "none"  # the signatures say them
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False
default_role = "code"  # `single` backticks in docstrings, as in Markdown
suppress_warnings = ["misc.highlighting_failure"]  # commands with {braces} are no plain shell

html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False


def read_comments(_: Sphinx, __: str, source: list[str]) -> None:
    """Turn comments that hold a directive into it."""
    source[0] = re.sub(r"<!-- (\{[\w-]+\}.*?)\n-->", r"```\1\n```", source[0], flags=re.DOTALL)


def setup(app: Sphinx) -> None:
    """Read comments before MyST does."""
    app.connect("source-read", read_comments)
