"""What tells the weights of a tower or model from others, wherever their files lie."""

from __future__ import annotations

import hashlib

import torch
from torch import nn

from xlcm.models.exported import ExportedImage, ExportedText


def weights_digest(model: nn.Module | ExportedImage | ExportedText) -> str:
    """Return `sha256:...` of all weights and buffers, by name; of a graph, of what it was made."""
    if isinstance(model, ExportedImage | ExportedText):
        return model.weights_digest
    digest = hashlib.sha256()
    for name, value in model.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return f"sha256:{digest.hexdigest()}"
