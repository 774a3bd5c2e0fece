"""Who may read a file that xlcm wrote."""

from __future__ import annotations

from pathlib import Path


def readable_like(path: str | Path, folder: str | Path) -> None:
    """Let those read, and write, a file who may read, and write, a folder.

    safetensors from 0.8 on writes files that nobody but their owner may read, whatever the umask
    is: a model or a feature store on a disk that a group shares would then be of no use to it.
    """
    Path(path).chmod(Path(folder).stat().st_mode & 0o666)
