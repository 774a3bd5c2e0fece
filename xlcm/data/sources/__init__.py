"""One file a public data set: its layout on disk -> a manifest.

A source is a module with `add_arguments(parser)` and `run(args) -> int`; its first docstring line
is its help. To add one, write the file and name it in `SOURCES`: `xlcm data import` finds it.
"""

SOURCES = {
    "aic-icc": "xlcm.data.sources.aic_icc",
    "cc3m": "xlcm.data.sources.cc3m",
    "cclm": "xlcm.data.sources.cclm",
    "chinese-clip": "xlcm.data.sources.chinese_clip",
    "coco-json": "xlcm.data.sources.coco_json",
    "csv": "xlcm.data.sources.csv",
    "folder": "xlcm.data.sources.folder",
    "hf": "xlcm.data.sources.hf",
    "jsonl": "xlcm.data.sources.jsonl",
    "multi30k": "xlcm.data.sources.multi30k",
    "photos": "xlcm.data.sources.photos",
    "wukong": "xlcm.data.sources.wukong",
}
"""Name in `xlcm data import NAME` -> module."""
