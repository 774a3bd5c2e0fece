"""The data sets that go round in Chinese-CLIP's packing: counts, origins, terms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from xlcm.data.sources.base import Expected
from xlcm.data.sources.coco_names import coco_number
from xlcm.types import Item


@dataclass(frozen=True)
class Known:
    """What is known of one data set in this packing."""

    title: str
    get: str
    terms: str
    cite: str
    expected: Mapping[str, Expected] = field(default_factory=dict)
    machine: Mapping[str, str] = field(default_factory=dict)  # split -> engine
    prefix: str = ""  # of the key that tells pictures apart over data sets
    notes: tuple[str, ...] = ()

    def key(self, item: Item) -> str:
        """Return which picture it is over data sets."""
        identity = item.id.partition("@")[0]
        number = coco_number(identity)
        return self.prefix + identity if number is None else f"coco:{number}"


KNOWN = {
    "muge": Known(
        title="MUGE multimodal retrieval",
        get="Register at https://tianchi.aliyun.com/muge and download Multimodal_Retrieval.",
        terms="For research, after registration.",
        cite="Lin et al. 2021, https://arxiv.org/abs/2103.00823",
        prefix="muge:",
        notes=(
            "about 129,000, 30,000 and 30,000 pictures and 250,000 training pairs; the labels of "
            "test are hidden, papers report valid (val here).",
        ),
    ),
    "flickr30k-cn": Known(
        title="Flickr30k-CN, as packed for Chinese-CLIP",
        get="See https://github.com/OFA-Sys/Chinese-CLIP, section on data sets.",
        terms="Pictures under Flickr's terms, non-commercial research and education only.",
        cite="Lan et al. 2017, https://arxiv.org/abs/1708.04390",
        expected={
            "train": Expected(29_783, {"zh mt": 148_915}),
            "val": Expected(1_000, {"zh mt": 5_000}),
            "test": Expected(1_000, {"zh human": 5_000}),
        },
        machine={"train": "baidu", "val": "baidu"},
        prefix="flickr:",
        notes=(
            "its splits are not Karpathy's and not Multi30K's: 905 of its test pictures are in "
            "Multi30K's train (--against shows it).",
        ),
    ),
    "coco-cn": Known(
        title="COCO-CN, as packed for Chinese-CLIP",
        get="See https://github.com/OFA-Sys/Chinese-CLIP, or ask the owners: "
        "https://github.com/li-xirong/coco-cn.",
        terms="Text on request, for research; pictures under Flickr's terms.",
        cite="Li et al. 2019, https://arxiv.org/abs/1805.08661",
        expected={"train": Expected(18_341), "val": Expected(1_000), "test": Expected(1_000)},
        prefix="coco-cn:",
        notes=(
            "its split cuts across Karpathy's: do not mix the two.",
            "pictures that are not called COCO_val2014_... are compared by --against with those of "
            "this packing only; the source coco-cn knows COCO's numbers.",
        ),
    ),
    "other": Known(
        title="a data set in Chinese-CLIP's packing",
        get="These are your own files.",
        terms="Yours.",
        cite="-",
    ),
}


def key_of_title(title: str) -> Callable[[Item], str]:
    """Return the key of the pictures of the set that a report's title names."""
    known = {one.title: one for one in KNOWN.values()}
    return known.get(title, KNOWN["other"]).key
