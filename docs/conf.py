"""Sphinx reads the Markdown of this folder as it stands."""

project = "bench"
author = "the bench authors"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
root_doc = "index"
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {
    "description": "Pretraining methods beside each other, on boards that can be trusted.",
    "fixed_sidebar": True,
}
myst_heading_anchors = 3
nitpicky = True
