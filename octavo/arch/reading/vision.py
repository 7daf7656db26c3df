"""The image encoder beside a text model, where its config is understood: its weights take memory too."""

from __future__ import annotations

from octavo.arch.reading.watch import Watched
from octavo.arch.tensors import Tensor, Vector


def read_vision(outer: Watched) -> tuple[tuple[Tensor, ...], tuple[str, ...]]:
    """Its weights, and a note where there is an encoder that is not counted."""
    config = outer.inner("vision_config")
    notes = tuple(
        f"{outer.source}: {name} describes an encoder that is not counted"
        for name in ("audio_config", "vision_config")
        if outer.inner(name) is not None
        and not (name == "vision_config" and (outer.values.get("model_type") in _TOWERS))
    )
    if config is None or outer.values.get("model_type") not in _TOWERS:
        return (), notes
    return _TOWERS[str(outer.values["model_type"])](outer, config), notes


def _pixtral(outer: Watched, config: Watched) -> tuple[Tensor, ...]:
    """Pixtral's encoder and Mistral 3's projector, which joins patches two by two."""
    hidden = config.whole("hidden_size", 1 << 16, 1024)
    width = config.whole("intermediate_size", 1 << 20, 4096)
    layers = config.whole("num_hidden_layers", 1024, 24)
    patch = config.whole("patch_size", 1 << 10, 16)
    channels = config.whole("num_channels", 16, 3)
    text = outer.inner("text_config")
    assert text is not None, "a model with an image encoder has a text model"
    out = text.whole("hidden_size", 1 << 20)
    merge = outer.whole("spatial_merge_size", 16, 2)
    layer = 4 * hidden * hidden + 3 * hidden * width + 2 * hidden
    bias = outer.flag("multimodal_projector_bias")
    join = hidden + merge * merge * hidden * hidden + (hidden + bias) * out + (out + bias) * out
    return (
        _part("patches", channels * patch * patch * hidden + hidden),
        _part("image layers", layers * layer),
        _part("projector", join),
    )


def _siglip(outer: Watched, config: Watched) -> tuple[Tensor, ...]:
    """SigLIP's encoder and Gemma 3's projector."""
    hidden = config.whole("hidden_size", 1 << 16, 1152)
    width = config.whole("intermediate_size", 1 << 20, 4304)
    layers = config.whole("num_hidden_layers", 1024, 27)
    patch = config.whole("patch_size", 1 << 10, 14)
    side = config.whole("image_size", 1 << 14, 896)
    channels = config.whole("num_channels", 16, 3)
    text = outer.inner("text_config")
    assert text is not None, "a model with an image encoder has a text model"
    out = text.whole("hidden_size", 1 << 20)
    attention = 4 * (hidden + 1) * hidden
    network = 2 * hidden * width + width + hidden
    embeddings = (channels * patch * patch + 1 + (side // patch) ** 2) * hidden
    pooled = attention + network + 3 * hidden if config.flag("vision_use_head", True) else 0
    return (
        _part("patches", embeddings),
        _part("image layers", layers * (attention + network + 4 * hidden) + 2 * hidden + pooled),
        _part("projector", hidden + hidden * out),
    )


def _part(name: str, size: int) -> Vector:
    return Vector(name=name, part="vision", size=size)


_TOWERS = {"mistral3": _pixtral, "gemma3": _siglip}
