"""What was inferred, as one page that needs no network."""

from gradbase.tables.report._pages import crowd_page, fuse_page, match_page

__all__ = ["crowd_page", "fuse_page", "match_page"]
