"""What Flickr8k-CN and Flickr30k-CN share: files of tagged captions, joined to pictures by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec.structs import replace

from xlcm.data.manifest import DataError
from xlcm.data.sources.base import Skipped
from xlcm.data.sources.text_lines import iter_lines, tagged_line
from xlcm.types import Caption, Item, Origin


@dataclass(frozen=True)
class Kind:
    """Captions of one tag.

    Args:
        lang: BCP 47.
        origin: of all of them.
        name: what their ids have behind `#`, such as `zh.zhb`.
        of: the `name` of the kind that they were made from, same number; None: of none.
        engine: of a machine translation.
    """

    lang: str
    origin: Origin
    name: str
    of: str | None = None
    engine: str | None = None


def picture_key(item: Item) -> str:
    """Return `flickr:<photo id>`: Flickr8k has `<photo id>_<letters>`, Flickr30k `<photo id>`."""
    return f"flickr:{item.id.partition('_')[0]}"


def stem(name: str) -> str:
    """Return a picture's name without `.jpg`."""
    return name.strip().removesuffix(".jpg")


def read_captions(
    path: Path, kind: Kind, *, tag: str | None, skipped: Skipped
) -> Iterator[tuple[str, int, Caption, str]]:
    """Yield (picture, number, caption, `file:line`) of each line.

    Lines are `<id>#<tag>#<n> <text>` or `<id><TAB><text>`. In the second form captions are
    numbered as they come, and `of` isn't set, as nothing says that they are in the order of what
    they were translated from.

    Args:
        path: the file.
        kind: of all its captions.
        tag: the only one that may stand in it; None: any.
        skipped: told of captions without text.

    Raises:
        DataError: for a line in another form, another tag, or a number that a picture has twice.
    """
    counts: dict[str, int] = {}
    seen: set[tuple[str, int]] = set()
    for line_number, line in iter_lines(path):
        where = f"{path}:{line_number}"
        if not line.strip():
            continue
        name, tab, text = line.partition("\t")
        if tab and "#" not in name:
            image, number, told = stem(name), counts.get(stem(name), 0), False
            counts[image] = number + 1
        else:
            image, found, number, text = tagged_line(line, where)
            told = True
            if tag is not None and found != tag:
                raise DataError(f"{where}: expected captions tagged {tag!r} here, got {found!r}")
        if not image:
            raise DataError(f"{where}: no picture's name in front of the text")
        if told and (image, number) in seen:
            raise DataError(f"{where}: caption {number} of picture {image!r} was there before")
        seen.add((image, number))
        text = text.strip()
        if not text:
            skipped.add(where)
            continue
        of = f"{image}#{kind.of}.{number}" if kind.of and told else None
        identity = f"{image}#{kind.name}.{number}"
        yield image, number, Caption(identity, kind.lang, text, kind.origin, of, kind.engine), where


def join(
    splits: Mapping[str, Sequence[tuple[str, str]]],
    captions: Mapping[str, Sequence[Caption]],
) -> Iterator[Item]:
    """Yield the items of (picture, `file:line`) lists with their captions.

    Links to captions that weren't read are taken off.
    """
    for split, pictures in splits.items():
        for image, where in pictures:
            own = captions.get(image, ())
            ids = {caption.id for caption in own}
            linked = tuple(c if c.of is None or c.of in ids else replace(c, of=None) for c in own)
            yield Item(image, split, linked, image=f"{image}.jpg", where=where)
