"""A frozen retriever that a student learns from: looked up where nothing changes, else computed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from xlcm.data.dataset import Dataset
from xlcm.data.manifest import DataError
from xlcm.data.views import Views
from xlcm.data.visuals import visuals_of
from xlcm.distributed import gather, rank, world
from xlcm.files import readable_like
from xlcm.models.dual_encoder import DualEncoder
from xlcm.models.encoding import inference
from xlcm.models.lengths import embed_texts
from xlcm.models.weights import weights_digest
from xlcm.types import Batch

log = logging.getLogger(__name__)

FORMAT = 1  # of the embeddings that are kept; another one makes them void
MOST_CUT = 0.1  # share of the captions that a teacher may cut before it is refused


class Teacher:
    """Embeddings of the source captions and of the images by a saved model; never trained.

    It is no `nn.Module`: optimiser, DDP and checkpoints have nothing to do with it.

    Args:
        source: folder that `save_pretrained` wrote, or id on the hub.

    Attributes:
        text_name: under which the batch holds the captions in its tokens.

    Raises:
        FileNotFoundError: if there is no such model.
    """

    def __init__(self, source: str, number: int = 0) -> None:
        self.source = source
        self.model = DualEncoder.from_pretrained(source).eval().requires_grad_(False)
        self.text_name = f"teacher{number}"
        self._rows: dict[str, int] = {}  # caption id -> row
        self._text: Tensor | None = None
        self._image: Tensor | None = None

    def refuse_misfit(self, student: Any) -> None:
        """Stop before the first step if the teacher can't read what the student's batch holds.

        Args:
            student: the retriever in training.

        Raises:
            ValueError: naming the teacher and the remedy.
        """
        mine, other = self.model.image, student.image
        where = f"teacher {self.source}"
        if mine.reads_features != other.reads_features:
            kind = ("pixels", "features")
            raise ValueError(
                f"{where} reads {kind[mine.reads_features]}, the student "
                f"{kind[other.reads_features]}: train the teacher on the same data"
            )
        if mine.reads_features and mine.feature_width != other.feature_width:
            raise ValueError(
                f"{where} reads features of width {mine.feature_width}, the student of width "
                f"{other.feature_width}: train the teacher on the same feature store"
            )
        if not mine.reads_features and mine.transform != other.transform:
            raise ValueError(
                f"{where} was trained on pictures prepared otherwise ({mine.transform}) than the "
                f"student's ({other.transform}): give both the same image_size, crop_pct, "
                "interpolation, squash and resizer"
            )

    def refuse_languages(self, langs: list[str]) -> None:
        """Stop if the teacher is to be asked in a language that it was not trained on.

        Raises:
            ValueError: naming teacher and languages.
        """
        unknown = [lang for lang in langs if lang not in self.model.languages]
        if self.model.languages and unknown:
            raise ValueError(
                f"teacher {self.source} was trained on {', '.join(self.model.languages)} and is to "
                f"be asked in {', '.join(unknown)}: choose data.views.source.langs among its own"
            )

    def to(self, device: torch.device) -> Teacher:
        """Move the model, where it is still needed."""
        if self.model.device != device:
            self.model.to(device)
        return self

    # -- once -----------------------------------------------------------------------------------

    def remember(
        self,
        dataset: Dataset,
        views: Views,
        view: str,
        *,
        images: bool,
        batch_size: int = 256,
        workers: int = 0,
        folder: Path | None = None,
    ) -> None:
        """Embed every caption of a view, and every image, once; each process takes a share.

        Args:
            dataset: the training split.
            views: which captions stand for the view.
            view: the one that the teacher reads.
            images: whether an item looks the same each time; if not, they are embedded anew in
                each step.
            batch_size: images at once; captions are batched by their tokens.
            workers: processes that read images, for each training process.
            folder: where the embeddings are kept; there they are read, if they are those of the
                same weights and config, captions and items (pictures and features are not
                compared).

        Raises:
            ValueError: if the teacher would cut more than a tenth of the captions.
            DataError: naming file and line of a picture or features that can't be had.
            OSError: if they can't be written.
        """
        ids: list[str] = []
        texts: list[str] = []
        langs: list[str] = []
        items: list[str] = []
        for index in range(len(dataset)):
            item = dataset[index]
            items.append(item.id)
            for caption in views.candidates(item)[view]:
                ids.append(caption.id)
                texts.append(caption.text)
                langs.append(caption.lang)
        about = [ids, texts, langs, items if images else None]
        file = None if folder is None else folder / f"{self.text_name}.safetensors"
        identity = "" if file is None else self._identity(about)
        kept = None if file is None else _kept(file, identity)
        # all or none: to embed them processes need one another
        if bool(gather(torch.tensor([kept is not None], device=self.model.device)).all()):
            assert kept is not None
        else:
            kept = {}
            with inference(self.model):
                kept["text"] = self._texts(texts, langs)
                if images:
                    kept["image"] = self._images(dataset, batch_size, workers)
            if file is not None and rank() == 0:
                _keep(file, kept, identity)
        self._text, self._image = kept["text"], kept.get("image")
        self._rows = {name: row for row, name in enumerate(ids)}
        if images:
            self.to(torch.device("cpu"))  # it has said all that it will be asked

    def _identity(self, about: list[list[str] | None]) -> str:
        made_by = [FORMAT, self.model.config, repr(self.model.image.transform)]
        whole = [made_by, weights_digest(self.model), about]
        return hashlib.sha256(json.dumps(whole).encode()).hexdigest()

    def _texts(self, texts: list[str], langs: list[str]) -> Tensor:
        share = -(-len(texts) // world())
        mine = slice(rank() * share, (rank() + 1) * share)
        out = torch.zeros(share, self.model.width)
        rows, cut = embed_texts(self.model, texts[mine], langs[mine])
        out[: len(rows)] = rows
        # of all processes: those that go on would wait for one that stops
        cut = int(gather(torch.tensor([cut], device=self.model.device)).sum())
        if cut > MOST_CUT * len(texts):
            raise ValueError(
                f"teacher {self.source} reads {self.model.text.max_tokens} tokens and would cut "
                f"{cut} of {len(texts)} captions: train it with a larger tokenizer.max_tokens"
            )
        if cut:
            log.warning("teacher %s cuts %d of %d captions", self.source, cut, len(texts))
        return self._whole(out, len(texts))

    def _images(self, dataset: Dataset, batch_size: int, workers: int) -> Tensor:
        share = -(-len(dataset) // world())
        mine = range(rank() * share, min((rank() + 1) * share, len(dataset)))
        out = torch.zeros(share, self.model.width)
        if self.model.image.reads_features and not isinstance(dataset.load_features(0), Tensor):
            raise DataError("a store of several views can't be remembered")
        done = 0
        for visual in visuals_of(
            dataset, self.model.image.transform, mine, batch_size=batch_size, workers=workers
        ):
            embedded = self.model.embed_visual(visual.to(self.model.device)).cpu()
            out[done : done + len(embedded)] = embedded
            done += len(embedded)
        return self._whole(out, len(dataset))

    def _whole(self, share: Tensor, total: int) -> Tensor:
        return gather(share.to(self.model.device)).cpu()[:total]

    # -- in each step ---------------------------------------------------------------------------

    @torch.no_grad()
    def __call__(self, batch: Batch, view: str) -> tuple[Tensor, Tensor]:
        """Return the embeddings `(b, D)` of the batch's captions of a view and of its images.

        Raises:
            ValueError: for a caption that was not among those that `remember` was shown, or, where
                nothing was remembered, a batch without the captions in the teacher's tokens.
        """
        device = batch.ids.device
        keys = batch.text[view].keys
        if self._text is not None and keys:
            text = self._text[self._rows_of(keys, view)].to(device)
        elif self.text_name not in batch.text:
            raise ValueError(
                f"teacher {self.source} was not shown the training data before the first step "
                f"(`Method.remember`), and the batch has no captions {self.text_name!r} in its "
                "tokens (`Method.extra_texts`)"
            )
        else:
            text = self.to(device).model.embed_text(batch.text[self.text_name])
        if self._image is not None and batch.fixed:
            image = self._image[batch.ids.cpu()].to(device)
        else:
            assert batch.visual is not None
            image = self.to(device).model.embed_visual(batch.visual)
        return text, image

    def _rows_of(self, keys: tuple[str, ...], view: str) -> list[int]:
        unseen = [key for key in keys if key not in self._rows]
        if unseen:
            raise ValueError(
                f"teacher {self.source} has never seen {len(unseen)} of the batch's {len(keys)} "
                f"{view!r} captions, the first of them {unseen[0]!r}: it remembers "
                f"{len(self._rows)} captions of the data that `Method.remember` was called with; "
                "call it with the data set and views that the batches are drawn from"
            )
        return [self._rows[key] for key in keys]


def _kept(file: Path, identity: str) -> dict[str, Tensor] | None:
    """Return the embeddings in a file, if they are whole and those that are asked for."""
    with contextlib.suppress(OSError, SafetensorError), safe_open(file, "pt") as opened:
        if (opened.metadata() or {}).get("identity") == identity:
            return {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    return None


def _keep(file: Path, embeddings: dict[str, Tensor], identity: str) -> None:
    """Write them aside and rename: a name never stands for half a file."""
    aside = file.with_name(f".{file.name}.tmp")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        copies = {name: rows.contiguous() for name, rows in embeddings.items()}
        save_file(copies, aside, {"identity": identity})
        readable_like(aside, file.parent)
        os.replace(aside, file)
    except (OSError, SafetensorError) as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise OSError(f"could not write {file}: {error}") from error
