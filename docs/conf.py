"""How Sphinx makes the site; CONTRIBUTING.md names the command.

The source is the whole repository, so that the links between pages are the same on the site and in a clone.
"""

project = "copier-django-celery"
extensions = ["myst_parser"]
root_doc = "docs/index"
include_patterns = ["docs/index.md", "docs/**/*.md", "bench/*.md", "CHANGELOG.md", "CONTRIBUTING.md"]

html_theme = "furo"
html_title = project
html_show_sphinx = False
# Nothing that is written down needs a date, and the same pages make the same site.
html_last_updated_fmt = None

myst_heading_anchors = 3
# A link that leads nowhere, and a page that no list names, end the build.
nitpicky = True
