"""Any timm backbone as a tower: tokens, pooled vector, its own input settings and layers."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import timm
import torch
from pydantic import Field
from timm.data.config import resolve_model_data_config
from timm.models._manipulate import group_with_matcher
from torch import Tensor, nn

from xlcm.config import Part
from xlcm.encoders import image_weights
from xlcm.encoders.base import Freeze, ImageEncoder, KeepLast
from xlcm.encoders.pooling import PoolingFactory
from xlcm.encoders.transform import ImageTransform, Interpolation, Normalise, Resizer
from xlcm.registry import nearest, poolings
from xlcm.types import Encoded, Visual

STEM = 4  # convolutions that a transformer may begin with


class TimmImageEncoder(ImageEncoder):
    """A timm backbone without its classifier.

    Tokens are the last feature map, row by row, or the transformer's tokens, class and register
    tokens first; with a `pooling` of ours they are taken after the backbone's final norm, and its
    own pooling head is not built. Input settings come from the option, else from the weights
    file's metadata, else from timm.

    Args:
        backbone: timm's name, with or without the tag of its weights.
        backbone_options: passed on to `timm.create_model`, such as `{drop_path_rate: 0.1}`.
        weights: None (random), `hub` (timm's own for this name), a safetensors file, or a folder
            that holds model.safetensors; read by `load_weights`.
        image_size: side of the square input in pixels.
        mean: of the channels, in 0..1.
        std: of the channels, in 0..1.
        crop_pct: share of the resized shorter side that the crop keeps, in (0, 1].
        interpolation: of the resize.
        squash: resize without keeping the aspect ratio.
        resizer: `torch`, or `pillow` for the very pixels that Pillow makes, more slowly.
        pooling: from tokens to one vector; None: the backbone's own.
        freeze: see `Tower.freeze`.
        gradient_checkpointing: recompute activations in the backward pass, for memory.

    Attributes:
        width: size of the pooled vector.
        token_width: size of a token; differs from `width` where the backbone's own pooling ends
            in a wider layer (MobileNetV3).

    Raises:
        ValueError: for a name, tag or option that timm doesn't know.
        FileNotFoundError: if `weights` is a path without weights.
    """

    transform: ImageTransform

    def __init__(
        self,
        *,
        backbone: str,
        backbone_options: dict[str, Any] | None = None,
        weights: str | None = None,
        image_size: Annotated[int, Field(gt=0)] | None = None,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        crop_pct: Annotated[float, Field(gt=0.0, le=1.0)] | None = None,
        interpolation: Interpolation | None = None,
        squash: bool | None = None,
        resizer: Resizer = "torch",
        pooling: Annotated[PoolingFactory | None, Part(poolings)] = None,
        freeze: Freeze = "none",
        gradient_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        local = weights not in (None, "hub")
        stored = image_weights.metadata(image_weights.locate(str(weights))[0]) if local else {}
        self.name, self.weights = backbone, weights
        self.backbone_options = {**stored.get("create_kwargs", {}), **(backbone_options or {})}
        self.backbone = _create(
            backbone, self.backbone_options, image_size or stored.get("input_size")
        )
        known = resolve_model_data_config(self.backbone)
        default = ImageTransform.from_timm(known)
        self.transform = ImageTransform(
            image_size or stored.get("input_size") or _built_size(self.backbone, default.size),
            crop_pct or stored.get("crop_pct") or default.crop_pct,
            interpolation or stored.get("interpolation") or default.interpolation,
            default.squash if squash is None else squash,
            resizer,
        )
        self.normalise = Normalise(
            mean or stored.get("mean") or known["mean"], std or stored.get("std") or known["std"]
        )
        self.width = getattr(self.backbone, "head_hidden_size", None) or self.backbone.num_features
        self.token_width = self.backbone.num_features
        full = set(self.backbone.state_dict())
        self.pooling = None
        if pooling is not None:
            _unpool(self.backbone, backbone)
            self.token_width = self.width
            self.pooling = pooling(self.width)
            if self.pooling.needs_order and not self._prefix():
                raise ValueError(
                    f"pooling {self.pooling.name!r} needs a class token and {backbone} has none; "
                    "choose mean, max or attention"
                )
        self._spare = full - set(self.backbone.state_dict())
        convolutions = sum(isinstance(part, nn.Conv2d) for part in self.backbone.modules())
        # kernels for pixels that lie channel by channel are up to 1.6 times as fast, also on CPUs
        self._layout = torch.channels_last if convolutions > STEM else torch.contiguous_format
        if self._layout is torch.channels_last:
            _mark_channels_last(self.backbone)
        self.gradient_checkpointing = gradient_checkpointing
        self._reentrant = False
        if gradient_checkpointing:
            self.backbone.set_grad_checkpointing(True)
            # timm could only checkpoint the re-entrant way before it had this switch
            self._reentrant = getattr(timm.layers, "use_reentrant_ckpt", lambda: True)()
        self._freeze_spec = freeze
        self.freeze(freeze)

    def _prefix(self) -> int:
        return int(getattr(self.backbone, "num_prefix_tokens", 0))

    def spec(self) -> dict[str, Any]:
        """Return the config (with `name`) that rebuilds this tower without file or hub."""
        freeze, (mean, std) = self._freeze_spec, self.normalise.values
        transform = self.transform.spec()
        return {
            "name": "timm",
            "backbone": self.name,
            "backbone_options": dict(self.backbone_options),
            "weights": None,
            "image_size": transform.pop("size"),
            **transform,
            "mean": list(mean),
            "std": list(std),
            "pooling": None if self.pooling is None else self.pooling.spec(),
            "freeze": freeze.model_dump() if isinstance(freeze, KeepLast) else freeze,
            "gradient_checkpointing": self.gradient_checkpointing,
        }

    def load_weights(self) -> None:
        """Replace random weights by those that the option `weights` names; nothing for None.

        A classifier in the file is dropped; position tables of another size are resampled as
        timm does it.

        Raises:
            FileNotFoundError: naming the file that was expected and where, or the hub's failure.
            ValueError: listing the keys that don't fit.
        """
        if self.weights is None:
            return
        if self.weights == "hub":
            where, state = f"timm's weights for {self.name}", self._fetch()
        else:
            files = image_weights.locate(self.weights)
            where, state = str(files[0]), image_weights.read(files)
        classifier = self.backbone.pretrained_cfg.get("classifier") or ()
        heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
        spare = [*self._spare, *(f"{head}." for head in heads)]
        image_weights.load(self.backbone, self._resampled(state), spare, where)

    def _fetch(self) -> dict[str, Tensor]:
        try:
            return _create(
                self.name, self.backbone_options, self.transform.size, pretrained=True
            ).state_dict()
        except Exception as error:
            raise FileNotFoundError(
                f"timm's weights for {self.name} can't be fetched ({error}); put model.safetensors "
                "into a folder and set `weights` to its path, or set `weights: null` for random"
            ) from error

    def _resampled(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        own = self.backbone.state_dict()
        if all(k in state and state[k].shape == v.shape for k, v in own.items()):
            return state
        convert = getattr(sys.modules[type(self.backbone).__module__], "checkpoint_filter_fn", None)
        return state if convert is None else convert(state, self.backbone)

    def layers(self) -> list[nn.Module]:
        """Return stem, blocks, and what follows them (final norm or convolution, pooling), if any.

        Stem and blocks are told apart as for timm's layer-wise decay.
        """
        end = "\0"  # matches no pattern, so its group is what stands behind the last block
        names = [*(name for name, _ in self.backbone.named_parameters()), end]
        found = group_with_matcher(
            iter([(name, name) for name in names]), _matcher(self.backbone), return_values=True
        )
        *parts, after = (found[layer] for layer in sorted(found))
        after.remove(end)
        tokens = [name for name in after if "." not in name]  # registers, which older timm forgets
        if parts and tokens:
            parts[0] += tokens
            after = [name for name in after if name not in tokens]
        if len(parts) > 1:  # timm counts the final norm among the last block
            block = parts[-1][0].split(".")[0]
            after = [name for name in parts[-1] if name.split(".")[0] != block] + after
            parts[-1] = [name for name in parts[-1] if name not in after]
        parts += [after] if after else []
        layer_of = {name: layer for layer, own in enumerate(parts) for name in own}
        layers = _split(self.backbone, layer_of, len(parts))
        if self.pooling is not None and any(True for _ in self.pooling.parameters()):
            rest = [layers.pop()] if after else []
            layers.append(nn.ModuleList([*rest, self.pooling]))
        return layers

    def forward(self, visual: Visual) -> Encoded:
        """Return `pooled (b, width)` and `tokens (b, T, token_width)`; every token is real.

        Raises:
            ValueError: for no pixels, and pixels of another shape, dtype or range.
        """
        dtype = next(self.backbone.parameters()).dtype
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.frozen):
            values = self.normalise(visual.pixels, dtype).contiguous(memory_format=self._layout)
            if self._reentrant and torch.is_grad_enabled():
                values.requires_grad_()  # or blocks behind frozen ones would get no gradient
            maps = self.backbone.forward_features(values)
            pooled = self.backbone.forward_head(maps, pre_logits=True)
            if self.pooling is None:
                return Encoded(pooled, self._tokens(maps))
            tokens = self._tokens(pooled)
            seen = tokens if self.pooling.reads_prefix else tokens[:, self._prefix() :]
            mask = torch.ones(seen.shape[:2], dtype=torch.bool, device=seen.device)
            return Encoded(self.pooling(seen, mask), tokens)

    def _tokens(self, maps: Tensor) -> Tensor:
        if maps.ndim == 3:
            return maps
        if maps.ndim != 4:
            raise ValueError(
                f"{self.name} gives features {(*maps.shape,)}, expected tokens or a map; leave "
                "`pooling` null or choose another backbone"
            )
        if getattr(self.backbone, "output_fmt", "NCHW") != "NHWC":
            maps = maps.permute(0, 2, 3, 1)
        return maps.flatten(1, 2)


def _mark_channels_last(backbone: nn.Module) -> None:
    """Give weights whose two layouts are the same numbers the strides that their gradients have.

    These are of 1 x 1 and of depthwise convolutions. DDP compares strides of axes of length 1 as
    well, and warns of a loss of speed that there isn't.
    """
    for part in backbone.modules():
        if isinstance(part, nn.Conv2d) and part.weight.is_contiguous():
            weight = part.weight.data
            if weight.is_contiguous(memory_format=torch.channels_last):
                part.weight.data = weight.to(memory_format=torch.channels_last)


def _create(
    backbone: str, options: dict[str, Any], image_size: int | None, pretrained: bool = False
) -> Any:
    """Make a backbone without classifier, for inputs of `image_size` where that has to be known."""
    if not timm.is_model(backbone):
        hint = nearest(backbone.split(".")[0], timm.list_models())
        raise ValueError(f"timm has no backbone {backbone!r}{hint}")
    settings = {"num_classes": 0, **options}
    if "channel_multiplier" in options and backbone.startswith("mobilenetv1"):
        build = timm.models.efficientnet._gen_mobilenet_v1  # no registered name takes the width
        return build(backbone, pretrained=pretrained, **settings)
    try:
        settings_of = timm.get_pretrained_cfg(backbone)
        if image_size is not None and settings_of is not None and settings_of.fixed_input_size:
            settings.setdefault("img_size", image_size)
        return timm.create_model(backbone, pretrained=pretrained, **settings)
    except (TypeError, RuntimeError) as error:
        tags = ", ".join(timm.list_pretrained(f"{backbone.split('.')[0]}.*")) or "none"
        raise ValueError(
            f"timm can't make {backbone} with options {options}: {error}; with weights: {tags}"
        ) from error


def _unpool(backbone: Any, name: str) -> None:
    """Take out the backbone's own pooling, with its weights."""
    try:
        backbone.reset_classifier(0, "")
    except AssertionError as error:
        raise ValueError(
            f"{name} can't do without its own pooling ({error}): leave `pooling` null"
        ) from error


def _matcher(backbone: Any) -> Any:
    """Return what tells timm's layers apart by name; the top-level modules where it has nothing."""
    if hasattr(backbone, "group_matcher"):
        return backbone.group_matcher(coarse=False)
    order = [name for name, _ in backbone.named_children()]

    def place(name: str) -> int:
        top = name.split(".")[0]
        return order.index(top) if top in order else len(order)

    return place


def _built_size(backbone: Any, default: int) -> int:
    """Return the side that `img_size` among the options has set, or the default."""
    size = getattr(getattr(backbone, "patch_embed", None), "img_size", None)
    return int(size[0]) if size else default


def _split(root: nn.Module, layer_of: dict[str, int], count: int) -> list[nn.Module]:
    """Sort the modules and loose parameters under `root` into layers, each exactly once.

    Modules without parameters (dropout) go with what stands before them.
    """
    modules: list[list[nn.Module]] = [[] for _ in range(count)]
    loose: list[list[nn.Parameter]] = [[] for _ in range(count)]
    current = 0

    def walk(module: nn.Module, prefix: str) -> None:
        nonlocal current
        owners = {layer_of[prefix + name] for name, _ in module.named_parameters()}
        if len(owners) <= 1:
            current = owners.pop() if owners else current
            modules[current].append(module)
            return
        for name, parameter in module.named_parameters(recurse=False):
            loose[layer_of[prefix + name]].append(parameter)
        for name, child in module.named_children():
            walk(child, f"{prefix}{name}.")

    walk(root, "")
    return [nn.ModuleList([*m, nn.ParameterList(p)]) for m, p in zip(modules, loose)]
