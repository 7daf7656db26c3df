"""What one rank holds and computes when a model is spread over several."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from octavo.arch.shape import Layer, Shape
from octavo.arch.tensors import Matrix, Tensor, Vector
from octavo.errors import ConfigError

VOCABULARY_MULTIPLE = 64
"""Rows of embedding and head are padded to a multiple of this before they are cut; vLLM's
`DEFAULT_VOCAB_PADDING_SIZE`, and Megatron-LM pads likewise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parallel:
    """Ranks of one replica.

    tensor    ranks that share each matrix
    pipeline  stages of consecutive layers
    data      groups that attend to sequences of their own and share experts; 1 for plain replicas
    expert    1: every expert is cut like other matrices; else experts lie whole on tensor x data ranks
    """

    tensor: int = 1
    pipeline: int = 1
    data: int = 1
    expert: int = 1

    def __post_init__(self) -> None:
        for name in ("tensor", "pipeline", "data", "expert"):
            value = getattr(self, name)
            if not 1 <= value <= 65536:
                raise ConfigError(f"{name}-parallel must be from 1 to 65536, got {value}")
        if self.expert not in (1, self.tensor * self.data):
            raise ConfigError(
                f"expert-parallel must be 1, or tensor x data, which is {self.tensor * self.data}, got {self.expert}"
            )
        if self.data > 1 and self.expert == 1:
            raise ConfigError(
                f"data-parallel {self.data} inside a replica needs expert-parallel {self.tensor * self.data}; "
                "replicas that share nothing are planned as one each"
            )

    @property
    def num_ranks(self) -> int:
        return self.tensor * self.pipeline * self.data


ALONE = Parallel()


def cut(tensor: Tensor, parallel: Parallel) -> Tensor:
    """The share of a tensor that one rank holds. Raises ConfigError where it does not divide.

    Of experts that lie whole on ranks it is fewer; `used` still says how many a token passes on all of them.
    """
    if isinstance(tensor, Matrix) and tensor.is_expert and parallel.expert > 1:
        return tensor.of_each(-(-tensor.count // parallel.expert), tensor.used)
    ranks = parallel.tensor
    if ranks == 1 or tensor.cut == "none":
        return tensor
    if tensor.cut == "vocab":
        assert isinstance(tensor, Matrix), "only embedding and head are cut by vocabulary"
        return _vocabulary(tensor, ranks)
    if isinstance(tensor, Vector):
        return replace(tensor, size=-(-tensor.size // ranks), units=max(1, tensor.units // ranks))
    units = _units(tensor, ranks)
    if tensor.cut == "in":
        return replace(tensor, inputs=-(-tensor.inputs * units // tensor.units), units=units)
    return replace(tensor, outputs=-(-tensor.outputs * units // tensor.units), units=units)


def _units(tensor: Matrix, ranks: int) -> int:
    if tensor.units % ranks == 0:
        return tensor.units // ranks
    if tensor.repeats and ranks % tensor.units == 0:
        return 1
    what = "heads" if tensor.part in ("qkv", "output") else "pieces"
    raise ConfigError(
        f"tensor-parallel {ranks} does not divide the {tensor.units} {what} of `{tensor.name}`; "
        f"use one of {', '.join(map(str, divisors(tensor.units)))}"
    )


def _vocabulary(tensor: Matrix, ranks: int) -> Matrix:
    padded = padded_vocabulary(tensor.units)
    if padded % ranks:
        raise ConfigError(
            f"tensor-parallel {ranks} does not divide the vocabulary of {tensor.units}, padded to {padded}"
        )
    if tensor.part == "embedding":
        return replace(tensor, inputs=padded // ranks, units=padded // ranks)
    return replace(tensor, outputs=padded // ranks, units=padded // ranks)


def padded_vocabulary(size: int) -> int:
    return -(-size // VOCABULARY_MULTIPLE) * VOCABULARY_MULTIPLE


def divisors(number: int) -> list[int]:
    return [one for one in range(1, min(number, 1024) + 1) if number % one == 0]


def stage_sizes(num_layers: int, stages: int) -> list[int]:
    """Layers of each stage; what is left over goes to the stages before the last, which has the head to carry.

    Source: vLLM, `get_pp_indices`. Raises ConfigError for more stages than layers.
    """
    if stages > num_layers:
        raise ConfigError(f"pipeline-parallel {stages} needs that many layers; the model has {num_layers}")
    each, over = divmod(num_layers, stages)
    sizes = [each] * stages
    for place in range(2, over + 2):
        sizes[-place] += 1
    return sizes


def stage_layers(shape: Shape, parallel: Parallel, stage: int | None) -> tuple[Layer, ...]:
    """Layers of one stage, or all of them."""
    if stage is None:
        return shape.layers
    sizes = stage_sizes(shape.num_layers, parallel.pipeline)
    first = sum(sizes[:stage])
    return shape.layers[first : first + sizes[stage]]


def rank_tensors(shape: Shape, parallel: Parallel, stage: int | None = None) -> Iterator[tuple[Tensor, int]]:
    """Every weight that one rank of a stage holds, with how many layers hold one like it.

    The first stage has the embedding, the last the final norm and the head; a tied head on another stage than its
    embedding is a second copy. Without a stage: one rank of each, all stages together.
    """
    is_first = stage in (None, 0)
    is_last = stage in (None, parallel.pipeline - 1)
    for tensor in shape.outer_tensors():
        late = tensor.part in ("norm", "head") and tensor.name != "embedding norm"
        if is_last if late else is_first:
            yield cut(tensor, parallel), 1
    if shape.tie_embeddings and parallel.pipeline > 1 and is_last:
        yield cut(shape.head, parallel), 1
    counts: dict[Layer, int] = {}
    for layer in stage_layers(shape, parallel, stage):
        counts[layer] = counts.get(layer, 0) + 1
    for layer, count in counts.items():
        for tensor in layer.tensors(shape.hidden_size):
            yield cut(tensor, parallel), count


def kv_heads_per_rank(num_kv_heads: int, tensor: int) -> int:
    """Key-value heads that a rank keeps: a share, or one where there are more ranks than heads."""
    return max(1, num_kv_heads // tensor)
