"""The documentation as a site: `make docs` writes it to build/docs. Warnings are errors."""

project = "InstructLoop"
author = "InstructLoop"
extensions = ["myst_parser"]
source_suffix = {".md": "markdown"}
html_theme = "furo"
html_title = "InstructLoop"
html_show_sourcelink = False
html_copy_source = False
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
exclude_patterns = ["conf.py"]
