"""One file a public data set: its layout on disk -> a manifest.

A source is a module with `add_arguments(parser)` and `run(args) -> int`; its first docstring line
is its help. To add one, write the file and name it in `SOURCES`: `xlcm data import` finds it.
"""

SOURCES = {"photos": "xlcm.data.sources.photos"}
"""Name in `xlcm data import NAME` -> module."""
