"""Runs as one page of HTML that needs nothing else: no network, no server, no file beside it."""

from fedsim.reports.page.document import page, write_page

__all__ = ["page", "write_page"]
