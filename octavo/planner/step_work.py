"""The work of a step on one rank: FLOPs, bytes that have to move, what goes over links, kernels that are launched.

A `StepCounter` has everything about a model, its precision and its spread added up beforehand, so that a step costs a
few operations for each of its slices.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from octavo.arch.mixers import Attention, LatentAttention
from octavo.arch.shape import Layer, Shape
from octavo.arch.tensors import Matrix
from octavo.planner.flops import Slice, causal_pairs
from octavo.planner.formats import FORMATS, WeightFormat, rest_bytes, tensor_bytes
from octavo.planner.kv_layouts import LAYOUTS, KvLayout, index_bytes, layer_state_bytes, token_bytes
from octavo.planner.parallel import ALONE, Parallel, cut, rank_tensors, stage_layers

ACTIVATION_BYTES = 2

INDEXER_PRODUCTS, INDEXER_KERNELS = 3, 2
"""Of an indexer in a layer: queries, keys and weights of the heads; scores of all positions, and the choice of the
best. Source: `Indexer.forward` of DeepSeek-V3.2-Exp, inference/model.py."""

SKEW_POWER = 0.25
"""Of the ranks that share routed experts: the busiest one's products take that power of their number longer than under
balanced routing. Measured with popularities of experts that fall as their rank to the power of 1.01: from 4,096 tokens
on 1.36, 1.65, 1.9 and 2.2 times as long on 4, 8, 16 and 32 ranks in fp8, and no longer where reading weights takes the
time (AIConfigurator's tables of kernels, vLLM 0.24, H100 and H200)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWork:
    """What one rank does in a step.

    linear_flop           of matrices and recurrences
    attention_flop        of queries with keys and weights with values; `chunk_attention_flop` the part of slices of
                          more than one token
    weight_bytes          read: of experts, those that uniform routing is expected to touch
    kv_read_bytes         keys, values, latents and states; `chunk_kv_read_bytes` the part of longer slices
    kv_write_bytes        of the tokens computed
    activation_bytes      written and read between matrices, were nothing kept on the chip
    link_bytes            sent to the other ranks of a tensor or expert group, in `link_operations` operations
    expert_flop, expert_bytes   of `linear_flop` and `weight_bytes`, the part of routed experts
    expert_skew           what the busiest rank of those that hold experts has to do over an even share
    num_products          matrices read one after another, those of one input as one; routed experts aside
    num_attentions        kernels that attend, score, pick or update a state; `num_routed` layers with routed experts
    """

    num_tokens: int
    num_seqs: int
    num_sampled: int
    linear_flop: float
    attention_flop: float
    chunk_attention_flop: float
    weight_bytes: float
    kv_read_bytes: float
    chunk_kv_read_bytes: float
    kv_write_bytes: float
    activation_bytes: float
    link_bytes: float
    link_operations: int
    expert_flop: float = 0.0
    expert_bytes: float = 0.0
    expert_skew: float = 1.0
    num_products: int = 0
    num_attentions: int = 0
    num_routed: int = 0

    @property
    def flop(self) -> float:
        return self.linear_flop + self.attention_flop

    @property
    def memory_bytes(self) -> float:
        """What has to move between memory and chip, whatever is kept there."""
        return self.weight_bytes + self.kv_read_bytes + self.kv_write_bytes

    @property
    def intensity(self) -> float:
        """FLOPs for each byte that has to move."""
        return self.flop / self.memory_bytes


def touched_experts(count: float, share: float, num_tokens: float) -> float:
    """Experts that tokens are expected to reach when each goes to `share` of them, evenly and independently."""
    return count * (1.0 - float((1.0 - share) ** num_tokens))


@dataclass(frozen=True, slots=True)
class _Routed:
    """Layers whose experts are alike: how many a rank holds, in all, and bytes of one."""

    held: float
    share: float
    expert_bytes: float


@dataclass(frozen=True, slots=True)
class _Pairs:
    """Attention layers that are alike, added up."""

    reach: int | None
    chunked: bool
    pair_flop: float
    absorbed_flop: float
    expand_flop: float
    token_bytes: float


class StepCounter:
    """Counts the work of steps of one model, stored and spread in one way.

    stage  layers of one pipeline stage; None counts all stages, as a token passes them one after another
    Raises ConfigError where the spread does not divide the model.
    """

    def __init__(
        self,
        shape: Shape,
        *,
        weights: WeightFormat = FORMATS["bf16"],
        kv: KvLayout = LAYOUTS["bf16"],
        parallel: Parallel = ALONE,
        stage: int | None = None,
    ) -> None:
        self.shape, self.weights, self.kv = shape, weights, kv
        self.parallel, self.stage = parallel, stage
        layers = _counted(stage_layers(shape, parallel, stage))
        self._skew = parallel.expert**SKEW_POWER
        self._read_matrices()
        self._read_experts(layers)
        self._pairs = _attention(layers, kv, parallel.tensor)
        self._state_bytes = sum(count * layer_state_bytes(one, kv, parallel.tensor) for one, count in layers)
        self._write_bytes = sum(pairs.token_bytes for pairs in self._pairs)
        self._read_links(layers)
        self._read_launches(layers)

    def _read_matrices(self) -> None:
        """Everything but experts' bytes, which depend on how many are touched."""
        form, parallel = self.weights, self.parallel
        rest = rest_bytes(form)
        self._token_flop = self._row_flop = self._expert_flop = 0.0
        self._fixed_bytes = self._head_bytes = self._width = 0.0
        for tensor, count in rank_tensors(self.shape, parallel, self.stage):
            is_head = tensor.part == "head"
            if isinstance(tensor, Matrix) and tensor.used:
                met = count * self._share(tensor)
                self._row_flop += met * tensor.flop_per_token() * is_head
                self._token_flop += met * tensor.flop_per_token() * (not is_head)
                self._expert_flop += met * tensor.flop_per_token() * tensor.is_expert
                self._width += met * (tensor.inputs + tensor.outputs) * tensor.used * (not is_head)
            if tensor.part in ("embedding", "positions") and not (isinstance(tensor, Matrix) and tensor.used):
                continue  # rows are picked from them
            if isinstance(tensor, Matrix) and tensor.is_expert:
                continue
            held = count * tensor_bytes(tensor, form, rest)
            self._head_bytes += held * is_head
            self._fixed_bytes += held * (not is_head)
        if self.shape.tie_embeddings and self.stage is None and parallel.pipeline == 1:
            head = cut(self.shape.head, parallel)
            assert isinstance(head, Matrix), "a head is a matrix"
            self._row_flop += head.flop_per_token()
            self._head_bytes += tensor_bytes(head, form, rest)

    def _share(self, tensor: Matrix) -> float:
        """Of its tokens that reach this rank: experts that lie whole on ranks get an even share."""
        return 1 / self.parallel.tensor if tensor.is_expert and self.parallel.expert > 1 else 1.0

    def _read_experts(self, layers: list[tuple[Layer, int]]) -> None:
        rest = rest_bytes(self.weights)
        grouped: dict[tuple[float, float], float] = {}
        for layer, count in layers:
            experts = layer.experts
            if experts is None:
                continue
            of_one = held = 0.0
            for tensor in layer.tensors(self.shape.hidden_size):
                if isinstance(tensor, Matrix) and tensor.is_expert:
                    mine = cut(tensor, self.parallel)
                    assert isinstance(mine, Matrix), "experts are matrices"
                    held = mine.count
                    of_one += tensor_bytes(mine.of_each(1, 1), self.weights, rest)
            key = (held, experts.used / experts.count)
            grouped[key] = grouped.get(key, 0.0) + count * of_one
        self._routed = [_Routed(held, share, bytes_) for (held, share), bytes_ in grouped.items()]

    def _read_links(self, layers: list[tuple[Layer, int]]) -> None:
        """All-reduces of a tensor group. Where groups that attend to sequences of their own share experts, tokens go to
        those and come back instead of the second."""
        hidden, ranks = self.shape.hidden_size * ACTIVATION_BYTES, self.parallel.tensor
        experts = self.parallel.expert
        sent, operations = 0.0, 0
        for layer, count in layers:
            routed = layer.experts if self.parallel.data > 1 else None
            sums = bool(layer.mixers) + (bool(layer.mlps) and routed is None)
            if ranks > 1:
                sent += count * sums * hidden * 2 * (ranks - 1) / ranks
                operations += count * sums
            if routed is not None:
                sent += count * 2 * routed.used * hidden * (experts - 1) / experts / ranks
                operations += 2 * count
        self._link_bytes, self._link_operations = sent, operations

    def _read_launches(self, layers: list[tuple[Layer, int]]) -> None:
        """Kernels that wait for one another. Matrices of a part that read the same vector are stored, and multiplied,
        as one: queries with keys and values, gate with up. An indexer's are multiplied by themselves, and it scores
        positions and picks some of them before attention begins."""
        self._products = 1
        self._attentions = self._routed_layers = 0
        for layer, count in layers:
            inputs = {
                (tensor.part, tensor.inputs)
                for tensor in layer.tensors(self.shape.hidden_size)
                if isinstance(tensor, Matrix) and not tensor.is_expert
            }
            indexers = sum(isinstance(one, LatentAttention) and one.index_heads > 0 for one in layer.mixers)
            self._products += count * (len(inputs) + INDEXER_PRODUCTS * indexers)
            self._attentions += count * (len(layer.mixers) + INDEXER_KERNELS * indexers)
            self._routed_layers += count * (layer.experts is not None)

    def work(self, slices: Iterable[Slice]) -> StepWork:
        """Of a step over (tokens before, tokens now, rows of logits) of each sequence."""
        tokens = seqs = sampled = 0
        flop = chunk_flop = read = chunk_read = expand = 0.0
        pairs_of = self._pairs
        for start, count, rows in slices:
            tokens += count
            seqs += 1
            sampled += rows
            of_slice = of_read = 0.0
            for one in pairs_of:
                pairs = causal_pairs(start, count, one.reach, chunked=one.chunked)
                cost = pairs * one.pair_flop
                if one.absorbed_flop:
                    again = start * one.expand_flop
                    if pairs * one.absorbed_flop < cost + again:
                        cost = pairs * one.absorbed_flop
                    else:
                        expand += again
                of_slice += cost
                of_read += one.token_bytes * kept_positions(start, count, one.reach, one.chunked)
            if count > 1:
                chunk_flop += of_slice
                chunk_read += of_read + self._state_bytes
            flop += of_slice
            read += of_read + self._state_bytes
        return StepWork(
            num_tokens=tokens,
            num_seqs=seqs,
            num_sampled=sampled,
            linear_flop=tokens * self._token_flop + sampled * self._row_flop + expand,
            attention_flop=flop,
            chunk_attention_flop=chunk_flop,
            weight_bytes=self.weight_bytes(tokens, sampled),
            kv_read_bytes=read,
            chunk_kv_read_bytes=chunk_read,
            kv_write_bytes=tokens * self._write_bytes + seqs * self._state_bytes,
            activation_bytes=tokens * self._width * ACTIVATION_BYTES,
            link_bytes=tokens * self._link_bytes,
            link_operations=self._link_operations,
            expert_flop=tokens * self._expert_flop,
            expert_bytes=self.expert_bytes(tokens),
            expert_skew=self._skew,
            num_products=self._products,
            num_attentions=self._attentions,
            num_routed=self._routed_layers,
        )

    def weight_bytes(self, num_tokens: float, num_sampled: int) -> float:
        """Read in a step: the head only where logits are asked for, experts as far as tokens reach them."""
        head = self._head_bytes if num_sampled else 0.0
        return self._fixed_bytes + head + self.expert_bytes(num_tokens)

    def expert_bytes(self, num_tokens: float) -> float:
        """Of routed experts, read in a step."""
        everyone = num_tokens * self.parallel.data
        return sum(
            touched_experts(routed.held, routed.share, everyone) * routed.expert_bytes
            for routed in self._routed
        )


def kept_positions(start: int, count: int, reach: int | None, chunked: bool) -> int:
    """Positions whose keys and values a slice reads, its own included."""
    end = start + count
    if reach is None:
        return end
    if chunked:
        return end - start // reach * reach
    return min(end, reach + count - 1)


def _counted(layers: Iterable[Layer]) -> list[tuple[Layer, int]]:
    counts: dict[Layer, int] = {}
    for layer in layers:
        counts[layer] = counts.get(layer, 0) + 1
    return list(counts.items())


def _attention(layers: list[tuple[Layer, int]], kv: KvLayout, ranks: int) -> tuple[_Pairs, ...]:
    """Layers of the same reach together."""
    found: dict[tuple[int | None, bool, bool], list[float]] = {}
    for layer, count in layers:
        for mixer in layer.attentions:
            is_latent = isinstance(mixer, LatentAttention)
            chunked = isinstance(mixer, Attention) and mixer.window is None and mixer.chunk is not None
            sums = found.setdefault((mixer.reach, chunked, is_latent), [0.0, 0.0, 0.0, 0.0])
            sums[0] += count * (mixer.score_flop_per_pair() + mixer.value_flop_per_pair()) / ranks
            if isinstance(mixer, LatentAttention):
                absorbed = mixer.score_flop_per_pair(True) + mixer.value_flop_per_pair(True)
                sums[1] += count * absorbed / ranks
                sums[2] += count * mixer.expand_flop_per_token() / ranks
            of_index = index_bytes(mixer, kv)
            sums[3] += count * (token_bytes(mixer, kv, ranks) - of_index)
            if isinstance(mixer, LatentAttention) and mixer.index_heads:
                every = found.setdefault((None, False, False), [0.0, 0.0, 0.0, 0.0])
                every[0] += count * mixer.index_flop_per_pair()
                every[3] += count * of_index
    return tuple(_Pairs(reach, chunked, *sums) for (reach, chunked, _), sums in found.items())


def step_work(
    shape: Shape,
    slices: Iterable[Slice],
    *,
    weights: WeightFormat = FORMATS["bf16"],
    kv: KvLayout = LAYOUTS["bf16"],
    parallel: Parallel = ALONE,
) -> StepWork:
    """Of one step; whoever counts many keeps a `StepCounter`."""
    return StepCounter(shape, weights=weights, kv=kv, parallel=parallel).work(slices)
