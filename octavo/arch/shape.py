"""A model as a list of layers to count with: parameters, matrices, and what is kept per token or per sequence.

`Arch` is what the engine runs; a `Shape` is read from many more families, and knows nothing of positions, norms'
epsilons or activation functions, only of what has a size. Every count of the planner goes through it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from octavo.arch.fields import read_json
from octavo.arch.mixers import Attention, LatentAttention
from octavo.arch.mlps import Experts, Mlp
from octavo.arch.states import StateMixer
from octavo.arch.tensors import Matrix, Tensor, Vector

Mixer = Attention | LatentAttention | StateMixer


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """What one layer is made of. Several mixers or several networks stand side by side or one after another; counts
    do not tell.

    norm_elements   weights of the norms around them
    others          what belongs to neither, such as the projection into a layer that predicts a further token
    """

    mixers: tuple[Mixer, ...]
    mlps: tuple[Mlp | Experts, ...]
    norm_elements: int
    others: tuple[Tensor, ...] = ()

    def tensors(self, hidden: int) -> tuple[Tensor, ...]:
        parts: list[Tensor] = [tensor for mixer in self.mixers for tensor in mixer.tensors(hidden)]
        parts += [tensor for mlp in self.mlps for tensor in mlp.tensors(hidden)]
        if self.norm_elements:
            parts.append(Vector(name="norms", part="norm", size=self.norm_elements))
        return (*parts, *self.others)

    @property
    def attentions(self) -> tuple[Attention | LatentAttention, ...]:
        return tuple(mixer for mixer in self.mixers if isinstance(mixer, Attention | LatentAttention))

    @property
    def states(self) -> tuple[StateMixer, ...]:
        return tuple(mixer for mixer in self.mixers if not isinstance(mixer, Attention | LatentAttention))

    @property
    def experts(self) -> Experts | None:
        return next((mlp for mlp in self.mlps if isinstance(mlp, Experts)), None)

    def kv_elements_per_token(self) -> int:
        return sum(mixer.kv_elements_per_token() for mixer in self.attentions)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One decoder, ready to be counted.

    embedding_size      width of an embedding where it is not `hidden_size`; `around` has the projections then
    position_elements   weights of learned positions
    around              what lies outside the layers beside embedding, final norm and head
    final_norm_elements weights of the norm before the head
    mtp_layers          layers that predict further tokens; in the checkpoint, idle unless they draft
    mtp_copies          embeddings and heads that the checkpoint holds again for them
    vision              what encodes images, where its config is understood
    rotary_size         elements of a head that positions turn; 0 for none
    stored              how the published weights are quantized, by its name in the config, or None
    notes               what is in the file and not counted, for people to read
    """

    family: str
    hidden_size: int
    vocab_size: int
    layers: tuple[Layer, ...]
    tie_embeddings: bool
    max_positions: int
    embedding_size: int | None = None
    position_elements: int = 0
    around: tuple[Tensor, ...] = ()
    final_norm_elements: int = 0
    head_bias: bool = False
    mtp_layers: tuple[Layer, ...] = ()
    mtp_copies: int = 0
    vision: tuple[Tensor, ...] = ()
    rotary_size: int = 0
    dtype: str | None = None
    stored: str | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str = "config.json") -> Shape:
        """Read the fields of a `config.json`. `source` names it in errors.

        Raises LoadError that names the field, its value and what is expected, also for a field that nobody
        here knows and that looks as if it changed what is counted.
        """
        from octavo.arch.reading import read

        return read(config, source)

    @classmethod
    def from_file(cls, path: str | Path) -> Shape:
        """Read a config file, or the `config.json` of a folder. Raises LoadError."""
        file = Path(path)
        fields = read_json(file / "config.json" if file.is_dir() else file)
        return cls.from_config(fields.values, fields.source)

    @property
    def num_layers(self) -> int:
        return len(self.layers)

    def groups(self) -> tuple[tuple[Layer, int], ...]:
        """Each different layer with how many there are, in the order of their first places."""
        counts: dict[Layer, int] = {}
        for layer in self.layers:
            counts[layer] = counts.get(layer, 0) + 1
        return tuple(counts.items())

    @property
    def embedding(self) -> Matrix:
        """Rows are picked, not multiplied: no token uses it as a matrix."""
        return Matrix(
            name="embedding",
            part="embedding",
            inputs=self.vocab_size,
            outputs=self.embedding_size or self.hidden_size,
            used=0,
            cut="vocab",
            units=self.vocab_size,
        )

    @property
    def head(self) -> Matrix:
        """The matrix that turns the last hidden state into logits, whether or not it is the embedding again."""
        return Matrix(
            name="head",
            part="head",
            inputs=self.embedding_size or self.hidden_size,
            outputs=self.vocab_size,
            bias=self.head_bias,
            cut="vocab",
            units=self.vocab_size,
        )

    def outer_tensors(self) -> tuple[Tensor, ...]:
        """All weights outside the layers, a tied head only by its bias."""
        found: list[Tensor] = [self.embedding, *self.around]
        if self.position_elements:
            found.append(Vector(name="positions", part="positions", size=self.position_elements))
        if self.final_norm_elements:
            found.append(Vector(name="final norm", part="norm", size=self.final_norm_elements))
        if not self.tie_embeddings:
            found.append(self.head)
        elif self.head_bias:
            found.append(Vector(name="head bias", part="head", size=self.vocab_size))
        return tuple(found)

    def tensors(self) -> Iterable[tuple[Tensor, int]]:
        """Every weight of the decoder with how many layers hold one like it."""
        for tensor in self.outer_tensors():
            yield tensor, 1
        for layer, count in self.groups():
            for tensor in layer.tensors(self.hidden_size):
                yield tensor, count

    def num_parameters(self) -> int:
        """All weights of the decoder, exactly; a tied head is counted once, further-token layers not at all."""
        return sum(count * tensor.num_elements() for tensor, count in self.tensors())

    def num_active_parameters(self) -> int:
        """Without the experts that a token does not pass."""
        return sum(count * tensor.num_active_elements() for tensor, count in self.tensors())

    def num_matmul_parameters(self) -> int:
        """Weights that a token meets as matrices, the head included, embedding, biases and norms not."""
        return self.forward_flop_per_token() // 2

    def num_layer_parameters(self, index: int = 0) -> int:
        """Weights of one layer: what mixes, what follows, and their norms."""
        return sum(tensor.num_elements() for tensor in self.layers[index].tensors(self.hidden_size))

    def num_mtp_parameters(self) -> int:
        """Weights of the layers that predict further tokens, without what the checkpoint repeats for them."""
        return sum(
            tensor.num_elements() for layer in self.mtp_layers for tensor in layer.tensors(self.hidden_size)
        )

    def num_checkpoint_parameters(self) -> int:
        """What the published files hold: the decoder, its further-token layers with the embeddings and heads that
        are stored again for them, and the vision tower where it is counted."""
        copies = self.mtp_copies * (self.embedding.num_elements() + self.head.num_elements())
        vision = sum(tensor.num_elements() for tensor in self.vision)
        return self.num_parameters() + self.num_mtp_parameters() + copies + vision

    def forward_flop_per_token(self, *, with_head: bool = True) -> int:
        """Of all matrices, for one token; comparing it with other tokens comes on top."""
        found = [(tensor, count) for tensor, count in self.tensors() if isinstance(tensor, Matrix)]
        found = [(tensor, count) for tensor, count in found if tensor.name != "head"]
        if with_head:
            found.append((self.head, 1))
        return sum(
            count * tensor.flop_per_token() for tensor, count in found if with_head or tensor.part != "head"
        )

    def num_parameters_by_part(self) -> dict[str, int]:
        """Part, one of PARTS, to weights."""
        found: dict[str, int] = {}
        for tensor, count in self.tensors():
            found[tensor.part] = found.get(tensor.part, 0) + count * tensor.num_elements()
        return found

    def kv_elements_per_token(self) -> int:
        """Of all layers that keep keys, values or latents, windows or not."""
        return sum(count * layer.kv_elements_per_token() for layer, count in self.groups())
