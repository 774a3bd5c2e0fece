"""Source captions into target languages and back, into the manifest; on any number of processes.

Each different text is translated once. The work is cut into batches of like length, which are dealt
to the processes; each batch goes into the memory on disk when it is made (`memory.py`). The
manifest is written when all is there, by the first process, aside and renamed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

from msgspec.structs import replace

from xlcm.config import build
from xlcm.data.manifest import DataError, ManifestWriter, read_manifest
from xlcm.data.moving import Moving
from xlcm.data.progress import Progress
from xlcm.translation.engines import Engine, engines
from xlcm.translation.memory import Memory
from xlcm.translation.quality import measure, need_packages
from xlcm.translation.settings import TranslateConfig
from xlcm.translation.similarity import Similarity
from xlcm.types import Caption, Item


def line_of(text: str) -> str:
    """Return a text as one line: engines read and write lines."""
    return " ".join(text.split())


def translate(config: TranslateConfig, accelerator: Any) -> Counter[str]:
    """Translate a manifest.

    Args:
        config: what, into what, by what.
        accelerator: of `accelerate`; its processes share the work.

    Returns:
        On the first process how many captions there are of each kind: `mt de`, `back en`, `blank`
        (without text, not translated), `no translation` and `no way back` (the engine made a blank
        one; the next run tries again), `there before`, `updated` (the caption that they are of has
        changed since), `outdated` (made of an older text, and left out), and `paths moved`, of
        pictures; and on every process `cut`, texts that any of them cut in this run.

    Raises:
        ConfigError: if the engine lacks a language.
        DataError: for a manifest that can't be read, a caption id that is taken, or a memory of
            another engine.
    """
    from accelerate.utils import gather_object

    need_packages(config.quality)
    engine: Engine = build(engines, config.engine)
    for target in config.targets:
        engine.check(config.source, target)
        if config.back:
            engine.check(target, config.source)
    similarity = None
    if config.similarity is not None and accelerator.is_main_process:
        similarity = Similarity(config.similarity, accelerator.device)
    engine.to(accelerator.device)
    # a command that needs more patience than was thought is still the same engine
    spec = {k: v for k, v in config.engine.items() if k not in ("tries", "timeout_s")}
    folder = config.memory or f"{config.output}.memory"
    rank, world = accelerator.process_index, accelerator.num_processes
    texts = _texts(config, engine.label)
    if accelerator.is_main_process:
        Memory(folder, spec).close()  # a wrong one is found before any work
    accelerator.wait_for_everyone()
    memory = Memory(folder, spec, rank)
    _all_there(memory, accelerator)
    for target in config.targets:
        _stage(engine, memory, config.source, target, texts, config.batch_size, rank, world)
        _all_there(memory, accelerator)
        if config.back:
            made = _unique(memory.get((config.source, target, text)) for text in texts)
            _stage(engine, memory, target, config.source, made, config.batch_size, rank, world)
            _all_there(memory, accelerator)
    counts = Counter[str]()
    if accelerator.is_main_process:
        counts = _write(config, memory, engine.label, similarity)
    accelerator.wait_for_everyone()
    counts["cut"] = sum(gather_object([engine.cut]))
    return counts


def _all_there(memory: Memory, accelerator: Any) -> None:
    """Wait until every process has done its share; then read it."""
    memory.close()
    accelerator.wait_for_everyone()
    memory.refresh()
    accelerator.wait_for_everyone()  # nobody adds before all have read: all see the same


def _unique(texts: Iterator[str]) -> list[str]:
    return [text for text in dict.fromkeys(texts) if text]


def _wanted(item: Item, config: TranslateConfig) -> Iterator[Caption]:
    if config.splits is None or item.split in config.splits:
        for caption in item.captions:
            if caption.lang == config.source and caption.origin in config.origins:
                yield caption


def _texts(config: TranslateConfig, label: str) -> list[str]:
    found = _unique(
        line_of(caption.text)
        for item in read_manifest(config.manifest)
        for caption in _free(item, config, label)
    )
    if not found:
        where = "" if config.splits is None else f" in {', '.join(config.splits)}"
        raise DataError(
            f"{config.manifest}: no caption in {config.source!r} of origin "
            f"{' or '.join(config.origins)}{where}: nothing to translate; `xlcm data stats` counts "
            "what there is"
        )
    return found


def _free(item: Item, config: TranslateConfig, label: str) -> Iterator[Caption]:
    """Yield the captions to translate; refuse one whose translation's id another caption has."""
    known = {caption.id: caption for caption in item.captions}
    for caption in _wanted(item, config):
        for target in config.targets if line_of(caption.text) else ():
            name = f"{caption.id}.{target}"
            made = [(name, target, caption.id)]
            if config.back:
                made.append((f"{name}.{config.source}", config.source, name))
            for identity, lang, of in made:
                other = known.get(identity)
                if other and (other.lang, other.of, other.engine) != (lang, of, label):
                    raise DataError(
                        f"{item.where}: caption id {identity!r} is taken by one of engine "
                        f"{other.engine!r}; translate a manifest without it (`xlcm data filter "
                        "--drop-engine` removes an engine's captions)"
                    )
        yield caption


def _stage(
    engine: Engine,
    memory: Memory,
    source: str,
    target: str,
    texts: list[str],
    batch_size: int,
    rank: int,
    world: int,
) -> None:
    """Translate this process's share of what the memory lacks."""
    missing = [text for text in texts if (source, target, text) not in memory]
    missing.sort(key=lambda text: (-len(text), text))  # the longest first: memory runs out at once
    batches = [missing[i : i + batch_size] for i in range(0, len(missing), batch_size)][rank::world]
    told = Progress(len(missing), f"{source} to {target}", world, show=rank == 0)
    for batch in batches:
        made = [line_of(text) for text in engine.translate(batch, source, target)]
        if len(made) != len(batch):
            raise RuntimeError(f"the engine made {len(made)} translations of {len(batch)}")
        memory.add(source, target, batch, made)
        told.advance(len(batch))
    told.close()


# -- into the manifest --------------------------------------------------------------------------


def _write(
    config: TranslateConfig, memory: Memory, label: str, similarity: Similarity | None
) -> Counter[str]:
    counts = Counter[str]()
    move = Moving(config.manifest, config.manifest if config.keep_paths else config.output)
    with ManifestWriter(config.output, made_from=config.manifest) as writer:
        for item in read_manifest(config.manifest):
            made: dict[str, Caption] = {}
            for caption in _wanted(item, config):
                for target in config.targets:
                    for new in _made(caption, target, config, memory, label, counts):
                        if new.id in made:
                            raise DataError(f"{item.where}: two translations would be called "
                                            f"{new.id!r}; rename a caption")  # fmt: skip
                        made[new.id] = new
            captions = _merged(item, made, _without_result(item, made, config, label), counts)
            done = replace(item, captions=tuple(captions))
            for ready in similarity.add(done, set(made)) if similarity else [done]:
                writer.write(move(ready))
        for ready in similarity.rest() if similarity else []:
            writer.write(move(ready))
    if move.moved:
        counts["paths moved"] = move.moved
    return counts


def _made(
    caption: Caption,
    target: str,
    config: TranslateConfig,
    memory: Memory,
    label: str,
    counts: Counter[str],
) -> Iterator[Caption]:
    """Yield the captions that one gives rise to: its translation and the way back."""
    source = line_of(caption.text)
    if not source:
        counts["blank"] += 1
        return
    identity = f"{caption.id}.{target}"
    text = memory.get((config.source, target, source))
    if not text:
        counts["no translation"] += 1
        return
    back = memory.get((target, config.source, text)) if config.back else ""
    if config.back and not back:
        counts["no way back"] += 1
    quality = measure(
        config.quality, source, config.source, text, target, back if config.back else None
    )
    right = caption.relevant  # what the caption says of further items, its translation says too
    yield Caption(identity, target, text, "mt", caption.id, label, (), quality, right)
    if back:
        name = f"{identity}.{config.source}"
        yield Caption(name, config.source, back, "back", identity, label, (), quality, right)


def _without_result(
    item: Item, made: dict[str, Caption], config: TranslateConfig, label: str
) -> set[str]:
    """Return the captions of an earlier run that this one was to make and had no text for."""
    tried = {f"{c.id}.{target}" for c in _wanted(item, config) for target in config.targets}
    if config.back:
        tried |= {f"{identity}.{config.source}" for identity in tried}
    tried -= made.keys()
    return {c.id for c in item.captions if c.id in tried and c.engine == label}


def _merged(
    item: Item, made: dict[str, Caption], gone: set[str], counts: Counter[str]
) -> list[Caption]:
    """Return an item's captions with the new ones, which take the place of those before.

    A translation that says what it said is kept. Where it says something else, since its source
    was changed, what the library had made of the old one goes, unless it is made anew.
    """
    captions: list[Caption] = []
    old = set(gone)  # what must not be relied on any more
    for known in item.captions:
        new = made.get(known.id)
        if new is None:
            captions.append(known)
            continue
        if known.text == new.text:
            captions.append(replace(known, quality={**known.quality, **new.quality}))
            counts["there before"] += 1
        else:
            captions.append(new)
            old.add(known.id)
            counts["updated"] += 1
    machine = [c for c in captions if c.origin != "human" and c.id not in made]
    while more := {c.id for c in machine if c.of in old} - old:
        old |= more
    gone = old - made.keys()
    while more := {new.id for new in made.values() if new.of in gone} - gone:
        gone |= more  # translated from what goes itself
    there = {caption.id for caption in item.captions}
    if gone & there:
        counts["outdated"] += len(gone & there)
    kept = [replace(c, of=None) if c.of in gone else c for c in captions if c.id not in gone]
    fresh = [new for new in made.values() if new.id not in there | gone]
    counts.update(f"{new.origin} {new.lang}" for new in fresh)
    return [*kept, *fresh]
