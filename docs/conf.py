"""Sphinx settings. Build with: sphinx-build -W -b html docs docs/_build"""

from greats_jax import __version__

project = "greats-jax"
author = "The greats-jax authors"
copyright = "The greats-jax authors"
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
]
myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "sphinx_book_theme"
html_title = "greats-jax"

# Docstrings write code in single backquotes.
default_role = "code"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
