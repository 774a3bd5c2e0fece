"""Weights of text backbones: found in a folder or on the hub, matched by name, loaded strictly."""

from __future__ import annotations

from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from transformers import PreTrainedModel

from xlcm.encoders import image_weights
from xlcm.files import readable_like

PREFIXES = ("", "text_model.", "model.", "text_encoder.", "encoder.", "0.auto_model.")
CONVERT = (
    "python -c \"from xlcm.encoders.text_weights import convert_bin; convert_bin('{folder}')\""
)


def load(model: PreTrainedModel, source: str, revision: str | None = None) -> None:
    """Fill a network from safetensors; every weight must be there and fit.

    Weights of the file that the network has no place for (heads of another task, a second tower)
    are left.

    Args:
        model: the network.
        source: file, folder, or hub id.
        revision: on the hub.

    Raises:
        FileNotFoundError: naming the file that was expected and where.
        ValueError: listing what is missing or doesn't fit.
    """
    stored = image_weights.read(_files(source, revision))
    wanted = model.state_dict()
    found = _match(stored, wanted, model.base_model_prefix)
    # T5 has one embedding under two names, of which a file may hold either
    filled = {tensor.data_ptr() for name, tensor in wanted.items() if name in found}
    missing = [n for n, t in wanted.items() if n not in found and t.data_ptr() not in filled]
    if missing:
        raise ValueError(
            f"{source}: {len(missing)} of {len(wanted)} weights of {type(model).__name__} are "
            f"missing: {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}; the file "
            f"has {', '.join(list(stored)[:3])} ...: is it a checkpoint of this architecture?"
        )
    wrong = [n for n, t in found.items() if t.shape != wanted[n].shape]
    if wrong:
        raise ValueError(_misfit(source, wrong[0], found[wrong[0]], wanted[wrong[0]]))
    model.load_state_dict(found, strict=False)  # complete but for tied names, as checked above


def _misfit(source: str, name: str, found: Tensor, wanted: Tensor) -> str:
    text = f"{source}: {name} is {tuple(found.shape)}, the network wants {tuple(wanted.shape)}"
    if found.ndim == 2 and found.shape[1] == wanted.shape[1] and "embed" in name:
        text += (
            f"; the file's vocabulary has {found.shape[0]} entries, this one {wanted.shape[0]}: "
            "use the tokenizer that belongs to the weights, or weights: null"
        )
    return text


def _match(stored: dict[str, Tensor], wanted: dict[str, Tensor], base: str) -> dict[str, Tensor]:
    """Return the stored tensors under the network's own names, whatever prefix either carries."""
    # the first checkpoints of BERT call weight and bias of a norm gamma and beta
    spelt = {
        k.removesuffix("gamma") + "weight" if k.endswith(".gamma")
        else k.removesuffix("beta") + "bias" if k.endswith(".beta")
        else k: v
        for k, v in stored.items()
    }  # fmt: skip
    prefixes = (*PREFIXES, f"{base}.", f"{base}.text_model.")
    best: dict[str, Tensor] = {}
    for in_file in prefixes:
        for in_model in ("", "text_model."):
            names = {w: in_file + w.removeprefix(in_model) for w in wanted}
            found = {w: spelt[s] for w, s in names.items() if s in spelt}
            best = max(best, found, key=len)
    return best


def _files(source: str, revision: str | None) -> list[Path]:
    here = Path(source).expanduser()
    here = here if here.exists() else _download(source, revision)
    folder = here if here.is_dir() else here.parent
    pickles = sorted(folder.glob("*.bin")) if here.is_dir() else [here]
    safe = list(folder.glob("*.safetensors")) if here.is_dir() else []
    if here.suffix != ".safetensors" and pickles and not safe:
        raise FileNotFoundError(
            f"expected safetensors, but {folder} has only {pickles[0].name}, a pickle, which can "
            f"run code when it is read. Convert it without running any: "
            + CONVERT.format(folder=folder)
        )
    return image_weights.locate(str(here))


def _download(source: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    try:
        patterns = ["*.safetensors", "*.safetensors.index.json", "config.json"]
        return Path(snapshot_download(source, revision=revision, allow_patterns=patterns))
    except Exception as error:  # the hub's many errors: offline, unknown, gated, malformed
        raise FileNotFoundError(
            f"no weights to be had from {source!r}: it is no folder or file here, and the hub "
            f"says: {error}. Put the repository's model.safetensors and config.json into a "
            "folder and name it as `weights` or `backbone`"
        ) from error


def convert_bin(folder: str | Path) -> Path:
    """Write `model.safetensors` beside a folder's `pytorch_model*.bin`, running none of its code.

    Raises:
        FileNotFoundError: if there is no `.bin` file.
    """
    folder = Path(folder)
    files = sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise FileNotFoundError(f"no pytorch_model*.bin in {folder}")
    weights: dict[str, Tensor] = {}
    for file in files:
        loaded = torch.load(file, map_location="cpu", weights_only=True)
        weights.update({k: v.clone().contiguous() for k, v in loaded.items()})
    target = folder / "model.safetensors"
    safetensors.torch.save_file(weights, target, {"format": "pt"})
    readable_like(target, folder)
    return target
