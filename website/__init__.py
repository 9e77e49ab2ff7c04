"""The documentation as a site that needs no network: pages of `docs/`, a page for every method, and the Python API.

`python -m website` builds it in `build/website/site`, strictly: a link or an anchor that leads nowhere fails it.
"""
