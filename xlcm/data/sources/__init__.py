"""One file a public data set: its layout on disk -> a manifest.

A source is a module with `add_arguments(parser)` and `run(args) -> int`; its first docstring line
is its help. To add one, write the file and name it in `SOURCES`: `xlcm data import` finds it.
"""

SOURCES = {
    "aic-icc": "xlcm.data.sources.aic_icc",
    "c2kd": "xlcm.data.sources.c2kd",
    "cc3m": "xlcm.data.sources.cc3m",
    "cclm": "xlcm.data.sources.cclm",
    "chinese-clip": "xlcm.data.sources.chinese_clip",
    "coco": "xlcm.data.sources.coco",
    "coco-cn": "xlcm.data.sources.coco_cn",
    "coco-json": "xlcm.data.sources.coco_json",
    "crossmodal3600": "xlcm.data.sources.crossmodal3600",
    "csv": "xlcm.data.sources.csv",
    "flickr30k-cn": "xlcm.data.sources.flickr30k_cn",
    "flickr8k-cn": "xlcm.data.sources.flickr8k_cn",
    "folder": "xlcm.data.sources.folder",
    "hf": "xlcm.data.sources.hf",
    "howto100m": "xlcm.data.sources.howto100m",
    "jsonl": "xlcm.data.sources.jsonl",
    "lines": "xlcm.data.sources.lines",
    "msrvtt": "xlcm.data.sources.msrvtt",
    "msrvtt-cn": "xlcm.data.sources.msrvtt_cn",
    "multi30k": "xlcm.data.sources.multi30k",
    "nrccr": "xlcm.data.sources.nrccr",
    "photos": "xlcm.data.sources.photos",
    "rudder": "xlcm.data.sources.rudder",
    "stair": "xlcm.data.sources.stair",
    "vatex": "xlcm.data.sources.vatex",
    "wit": "xlcm.data.sources.wit",
    "wukong": "xlcm.data.sources.wukong",
    "xflickrco": "xlcm.data.sources.xflickrco",
    "xm-translations": "xlcm.data.sources.xm_translations",
    "xtd10": "xlcm.data.sources.xtd10",
    "youcook2": "xlcm.data.sources.youcook2",
}
"""Name in `xlcm data import NAME` -> module."""
