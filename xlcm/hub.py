"""A model as a folder: config, weights, tokenizer, report and a card, written whole or not at all.

config.json          resolved spec (the image transform is part of it), languages, versions
model.safetensors    weights; nothing is ever pickled
tokenizer/           the text tower's tokenizer
report.json          the evaluation, where one was handed over
README.md            the model card
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xlcm.encoders.text_spec import innermost, with_tokenizer
from xlcm.files import readable_like
from xlcm.model_card import write_card

if TYPE_CHECKING:
    import torch

    from xlcm.models.dual_encoder import DualEncoder

FORMAT = 1  # raised when an older version can no longer read the folder
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer"
REPORT, CARD = "report.json", "README.md"
PARTS = (WEIGHTS, TOKENIZER, REPORT, CARD, CONFIG)  # in the order of writing: config.json is last


def save_pretrained(
    model: DualEncoder,
    folder: str | Path,
    *,
    report: Mapping[str, Any] | None = None,
    languages: Sequence[str] | None = None,
    about: Mapping[str, Any] | None = None,
    title: str | None = None,
) -> Path:
    """Write everything that `from_pretrained` needs.

    Call it on one process. All files are written aside and then renamed. Where the folder holds
    a model already, config.json goes first and comes last, so that a folder with one is always
    complete. Files of other names are left alone.

    Args:
        model: on any device.
        folder: made if need be.
        report: as `report.json` of an evaluation; goes into the card as well.
        languages: BCP 47 codes seen in training; None: those the model knows of.
        about: for the card: `data`, `method`, `licence`, ... ; None: what the model knows of.
        title: of the card; None: the folder's name.

    Returns:
        The folder.

    Raises:
        NotADirectoryError: if a file is in the way.
        OSError: if the disk is full or not to be written; the message names the path.
    """
    folder = Path(folder)
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"{folder} is a file, expected a folder to save the model in")
    folder.mkdir(parents=True, exist_ok=True)
    if languages is not None:
        model.languages = tuple(languages)
    if about is not None:
        model.about = dict(about)
    aside = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    try:
        _write(model, aside, report, title or folder.resolve().name)
        readable_like(aside / WEIGHTS, folder)
        _move(aside, folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def _write(model: DualEncoder, folder: Path, report: Mapping[str, Any] | None, title: str) -> None:
    import safetensors.torch

    spec = model.config
    saved = model.text.tokenizer.save(str(folder / TOKENIZER))
    saved["path"] = (Path(TOKENIZER) / saved["path"]).as_posix()
    spec["text"] = with_tokenizer(spec["text"], saved)
    config = {
        "format": FORMAT,
        "xlcm_version": version(),
        "languages": list(model.languages),
        "about": _plain(model.about),
        "model": spec,
    }
    safetensors.torch.save_model(model, str(folder / WEIGHTS), {"format": "pt"})
    if report is not None:
        report = _plain(report)
        _write_json(folder / REPORT, report)
    write_card(folder / CARD, title, config, report)
    _write_json(folder / CONFIG, config)


def _write_json(file: Path, value: Any) -> None:
    text = json.dumps(_plain(value), ensure_ascii=False, indent=2, allow_nan=False)
    file.write_text(text + "\n", encoding="utf-8")


def _plain(value: Any) -> Any:
    """Return what JSON can hold: numbers of NumPy and torch as numbers, NaN and inf as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(inner) for inner in value]
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if isinstance(value, str | int | None) else str(value)


def _move(aside: Path, folder: Path) -> None:
    (folder / CONFIG).unlink(missing_ok=True)
    for name in PARTS:
        old = folder / name
        if old.is_dir():
            shutil.rmtree(old)
        elif not (aside / name).exists():
            old.unlink(missing_ok=True)  # such as the report of the model that was here before
        if (aside / name).exists():
            os.replace(aside / name, old)


def from_pretrained(
    source: str | Path, *, device: str | torch.device | None = None, revision: str | None = None
) -> DualEncoder:
    """Open a saved model; from a folder this takes no network.

    Args:
        source: folder, or id of a repository on the hub.
        device: where the model goes; None: the CPU.
        revision: branch, tag or commit on the hub.

    Returns:
        The model in evaluation mode.

    Raises:
        FileNotFoundError: naming the file that is missing, or why the hub can't give it.
        ValueError: if the folder was written by a newer version, or its files don't fit together.
    """
    import safetensors.torch

    from xlcm.models.dual_encoder import DualEncoder

    folder = _folder(str(source), revision)
    config = _read_config(folder)
    if not (folder / WEIGHTS).is_file():
        raise FileNotFoundError(f"expected the weights at {folder / WEIGHTS}, but there is no "
                                "such file: save or copy the folder again")  # fmt: skip
    spec = _with_paths(config["model"], folder)
    model = DualEncoder.from_config(spec, load_weights=False)
    try:
        safetensors.torch.load_model(model, folder / WEIGHTS, strict=True)
    except (RuntimeError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"{folder / WEIGHTS} does not fit {folder / CONFIG}: {error}. One of them is broken or "
            "comes from another model; save or copy the folder again"
        ) from error
    model.languages = tuple(config.get("languages", ()))
    model.about = dict(config.get("about", {}))
    return model.to(device or "cpu").eval()


def _folder(source: str, revision: str | None) -> Path:
    """Return the folder that `source` names, downloaded if it is an id on the hub."""
    folder = Path(source)
    expected = f"expected {folder / CONFIG} and {folder / WEIGHTS}"
    if folder.is_dir():
        if (folder / "model" / CONFIG).is_file() and not (folder / CONFIG).is_file():
            raise FileNotFoundError(
                f"{source} is the folder of a run: {expected}; give its model, {folder / 'model'}"
            )
        return folder
    if folder.exists():
        raise FileNotFoundError(f"{source} is a file: {expected}; give the folder")
    if not re.fullmatch(r"\w[\w.-]*/[\w.-]+", source):
        raise FileNotFoundError(
            f"there is no folder {source}: {expected}, as a finished run leaves them in its "
            "`model` folder; or give the id of a model on the hub, owner/name"
        )
    try:
        return _download(source, revision)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{expected}; {error}") from error


def _read_config(folder: Path) -> dict[str, Any]:
    file = folder / CONFIG
    if not file.is_file():
        raise FileNotFoundError(
            f"expected {CONFIG} in {folder}, which has: "
            f"{', '.join(sorted(p.name for p in folder.iterdir())) or 'nothing'}. A folder that "
            "save_pretrained wrote has one; without it, saving was interrupted"
        )
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(config, dict) or not {"format", "model"} <= config.keys():
        raise ValueError(f"{file} is not the config of an xlcm model: expected the keys 'format' "
                         "and 'model'")  # fmt: skip
    if config["format"] > FORMAT:
        raise ValueError(
            f"{file} has format {config['format']}, written by xlcm "
            f"{config.get('xlcm_version', '?')}; this is xlcm {version()}, which reads up to "
            f"format {FORMAT}: pip install --upgrade xlcm"
        )
    return config


def _with_paths(spec: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Return the spec with the tokenizer's path made absolute."""
    tokenizer = dict(innermost(spec["text"])["tokenizer"])
    path = folder / tokenizer["path"]
    if not path.exists():
        raise FileNotFoundError(f"expected the tokenizer at {path}, but there is nothing: save or "
                                "copy the folder again")  # fmt: skip
    tokenizer["path"] = str(path)
    return {**spec, "text": with_tokenizer(spec["text"], tokenizer)}


def _download(source: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        patterns = [CONFIG, WEIGHTS, f"{TOKENIZER}/*", REPORT]
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub's many errors: offline, unknown, gated, malformed
        raise FileNotFoundError(
            f"no model to be had from {source!r}: there is no such folder here, and the hub says: "
            f"{error}"
        ) from error


def push_to_hub(
    model: DualEncoder,
    repo_id: str,
    *,
    private: bool = True,
    token: str | None = None,
    message: str = "Upload an xlcm model",
    **options: Any,
) -> str:
    """Upload a model to the Hugging Face hub.

    Args:
        model: on any device.
        repo_id: `owner/name`; made if need be.
        private: whether a new repository is for its owner alone.
        token: of the hub; None: the one that `hf auth login` stored.
        message: of the commit.
        options: as in `save_pretrained`.

    Returns:
        The address of the repository.

    Raises:
        ConnectionError: if the hub refuses or can't be reached, saying what to do.
    """
    from huggingface_hub import HfApi

    options.setdefault("title", repo_id.rpartition("/")[2])
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as folder:
        save_pretrained(model, folder, **options)
        try:
            address = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message=message)
        except Exception as error:  # the hub's many errors: offline, no right, malformed name
            raise ConnectionError(
                f"the hub did not take {repo_id!r}: {error}. Check the network, the name "
                "(owner/name) and the token (`hf auth login`, with the right to write); the model "
                "itself can be kept with save_pretrained"
            ) from error
    return str(address)


def version() -> str:
    """Return the installed version of xlcm."""
    try:
        return metadata.version("xlcm")
    except metadata.PackageNotFoundError:  # used from a checkout that is not installed
        return "0.1.0"
