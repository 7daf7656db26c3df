"""Families from before config fields had common names: each reads its own."""

from __future__ import annotations

from octavo.arch.mixers import Attention
from octavo.arch.mlps import Experts, Mlp
from octavo.arch.reading.common import finish, head_dim
from octavo.arch.reading.watch import Watched
from octavo.arch.shape import Layer, Shape
from octavo.arch.tensors import Matrix, Vector


def read_gpt2(fields: Watched) -> Shape:
    """Also GPT-BigCode, whose heads may share one key and value head."""
    hidden = fields.whole(fields.first("n_embd", "hidden_size"), 1 << 20)
    heads = fields.whole(fields.first("n_head", "num_attention_heads"), 1 << 16)
    positions = fields.whole(fields.first("n_positions", "n_ctx"), 1 << 30)
    fields.skip("n_ctx")
    kind = fields.values.get("model_type")
    single = kind == "gpt_bigcode" and fields.flag("multi_query", True)
    fields.skip("num_key_value_heads")
    if fields.flag("add_cross_attention"):
        raise fields.fail("add_cross_attention", "false: there is no encoder here")
    attention = _biased(fields, hidden, heads, 1 if single else heads)
    layer = Layer(mixers=(attention,), mlps=(_plain(fields, hidden, "n_inner"),), norm_elements=4 * hidden)
    return finish(
        fields,
        (layer,) * fields.whole(fields.first("n_layer", "num_hidden_layers"), 4096),
        hidden=hidden,
        tied=True,
        final_norm_elements=2 * hidden,
        position_elements=positions * hidden,
        max_positions="n_positions" if fields.has("n_positions") else "n_ctx",
    )


def read_gptj(fields: Watched) -> Shape:
    """GPT-J and CodeGen: attention without biases beside a network with them, under one norm."""
    hidden = fields.whole("n_embd", 1 << 20)
    heads = fields.whole("n_head", 1 << 16)
    fields.skip("n_ctx")
    attention = Attention(num_heads=heads, num_kv_heads=heads, head_dim=_width(fields, hidden, heads))
    layer = Layer(mixers=(attention,), mlps=(_plain(fields, hidden, "n_inner"),), norm_elements=2 * hidden)
    return finish(
        fields,
        (layer,) * fields.whole("n_layer", 4096),
        hidden=hidden,
        final_norm_elements=2 * hidden,
        head_bias=True,
        rotary_head=attention.head_dim,
        max_positions="n_positions",
    )


def read_gpt_neo(fields: Watched) -> Shape:
    """Every other layer looks back `window_size` positions only; `attention_types` says which."""
    hidden = fields.whole("hidden_size", 1 << 20)
    heads = fields.whole("num_heads", 1 << 16)
    count = fields.whole("num_layers", 4096)
    kinds = [kind for kinds, times in fields.listed("attention_types") for kind in kinds * times]
    if len(kinds) != count or any(kind not in ("global", "local") for kind in kinds):
        raise fields.fail("attention_types", f"{count} layers, each global or local")
    fields.skip("attention_layers")
    width = fields.whole("window_size", 1 << 30, 256)
    layers = tuple(
        Layer(
            mixers=(
                Attention(
                    num_heads=heads,
                    num_kv_heads=heads,
                    head_dim=_width(fields, hidden, heads),
                    o_bias=True,
                    window=width if kind == "local" else None,
                ),
            ),
            mlps=(_plain(fields, hidden, "intermediate_size"),),
            norm_elements=4 * hidden,
        )
        for kind in kinds
    )
    positions = fields.whole("max_position_embeddings", 1 << 30)
    return finish(
        fields, layers, tied=True, final_norm_elements=2 * hidden, position_elements=positions * hidden
    )


def read_opt(fields: Watched) -> Shape:
    hidden = fields.whole("hidden_size", 1 << 20)
    heads = fields.whole("num_attention_heads", 1 << 16)
    bias = fields.flag("enable_bias", True)
    norm = 2 * hidden * fields.flag("layer_norm_elementwise_affine", True)
    positions = fields.whole("max_position_embeddings", 1 << 30) + 2
    width = fields.whole("word_embed_proj_dim", 1 << 20, hidden)
    attention = Attention(
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=_width(fields, hidden, heads),
        q_bias=bias,
        kv_bias=bias,
        o_bias=bias,
    )
    network = Mlp(width=fields.whole("ffn_dim", 1 << 24), gated=False, bias=bias, out_bias=bias)
    layer = Layer(mixers=(attention,), mlps=(network,), norm_elements=2 * norm)
    has_final = fields.flag("do_layer_norm_before", True) and not fields.flag("_remove_final_layer_norm")
    narrow = (
        Matrix(name="embedding in", part="embedding", inputs=width, outputs=hidden),
        Matrix(name="embedding out", part="head", inputs=hidden, outputs=width),
    )
    return finish(
        fields,
        (layer,) * fields.whole("num_hidden_layers", 4096),
        tied=True,
        final_norm_elements=norm * has_final,
        position_elements=positions * hidden,
        embedding_size=width if width != hidden else None,
        around=narrow if width != hidden else (),
    )


def read_bloom(fields: Watched) -> Shape:
    hidden = fields.whole(fields.first("hidden_size", "n_embed"), 1 << 20)
    heads = fields.whole(fields.first("n_head", "num_attention_heads"), 1 << 16)
    layer = Layer(
        mixers=(_biased(fields, hidden, heads, heads),),
        mlps=(_plain(fields, hidden, ""),),
        norm_elements=4 * hidden,
    )
    fields.skip("n_embed")
    return finish(
        fields,
        (layer,) * fields.whole(fields.first("n_layer", "num_hidden_layers"), 4096),
        hidden=hidden,
        tied=True,
        final_norm_elements=2 * hidden,
        around=(Vector(name="embedding norm", part="norm", size=2 * hidden),),
        max_positions="seq_length",
    )


def read_falcon(fields: Watched) -> Shape:
    """Three generations: one key head for all, as many as query heads, or groups ("new decoder architecture")."""
    hidden = fields.whole("hidden_size", 1 << 20)
    heads = fields.whole(fields.first("num_attention_heads", "n_head"), 1 << 16)
    grouped = fields.flag("new_decoder_architecture")
    single = fields.flag("multi_query", True)
    given = fields.whole(fields.first("num_kv_heads", "n_head_kv"), heads, heads)
    is_parallel = fields.flag("parallel_attn", True)
    norms = fields.whole("num_ln_in_parallel_attn", 2, 2 if grouped else 1)
    norms = norms if is_parallel and grouped else (1 if is_parallel else 2)
    bias = fields.flag("bias")
    fields.flag("alibi")
    attention = Attention(
        num_heads=heads,
        num_kv_heads=given if grouped else 1 if single else heads,
        head_dim=_width(fields, hidden, heads),
        q_bias=bias,
        kv_bias=bias,
        o_bias=bias,
    )
    width = fields.whole("ffn_hidden_size", 1 << 24, 4 * hidden)
    layer = Layer(
        mixers=(attention,),
        mlps=(Mlp(width=width, gated=False, bias=bias, out_bias=bias),),
        norm_elements=2 * norms * hidden,
    )
    return finish(
        fields,
        (layer,) * fields.whole(fields.first("num_hidden_layers", "n_layer"), 4096),
        tied=True,
        final_norm_elements=2 * hidden,
        rotary_head=attention.head_dim,
    )


def read_mpt(fields: Watched) -> Shape:
    hidden = fields.whole("d_model", 1 << 20)
    heads = fields.whole("n_heads", 1 << 16)
    given = fields.inner("attn_config") or Watched({}, fields.source, "attn_config.")
    if given.values.get("attn_type", "multihead_attention") != "multihead_attention" or given.has(
        "kv_n_heads"
    ):
        raise given.fail("attn_type", '"multihead_attention" without kv_n_heads')
    if given.flag("qk_ln"):
        raise given.fail("qk_ln", "false")
    bias = not fields.flag("no_bias", True)
    if fields.has("ffn_config") or fields.number("embedding_fraction", 1.0, low=0.0) <= 0:
        raise fields.fail("ffn_config", "nothing: MPT models have plain networks")
    attention = Attention(
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=_width(fields, hidden, heads),
        q_bias=bias,
        kv_bias=bias,
        o_bias=bias,
    )
    ratio = fields.number("expansion_ratio", 4.0, low=0.0, is_open=True)
    network = Mlp(width=int(hidden * ratio), gated=False, bias=bias, out_bias=bias)
    layer = Layer(mixers=(attention,), mlps=(network,), norm_elements=2 * (1 + bias) * hidden)
    is_learned = fields.flag("learned_pos_emb", True) and not given.flag("alibi", True)
    return finish(
        fields,
        (layer,) * fields.whole("n_layers", 4096),
        hidden=hidden,
        tied=True,
        final_norm_elements=(1 + bias) * hidden,
        position_elements=fields.whole("max_seq_len", 1 << 30) * hidden * is_learned,
        max_positions="max_seq_len",
    )


def read_dbrx(fields: Watched) -> Shape:
    hidden = fields.whole("d_model", 1 << 20)
    heads = fields.whole("n_heads", 1 << 16)
    given = fields.inner("attn_config")
    network = fields.inner("ffn_config")
    if given is None or network is None:
        raise fields.fail("ffn_config" if given else "attn_config", "an object")
    network.skip("hidden_size")
    fields.skip("num_key_value_heads")
    attention = Attention(
        num_heads=heads,
        num_kv_heads=given.whole("kv_n_heads", heads),
        head_dim=_width(fields, hidden, heads),
    )
    experts = Experts(
        count=network.whole("moe_num_experts", 1 << 16),
        used=network.whole("moe_top_k", 1 << 16),
        width=network.whole("ffn_hidden_size", 1 << 24),
    )
    return finish(
        fields,
        (Layer(mixers=(attention,), mlps=(experts,), norm_elements=2 * hidden),)
        * fields.whole("n_layers", 4096),
        hidden=hidden,
        final_norm_elements=hidden,
        rotary_head=attention.head_dim,
        max_positions="max_seq_len",
    )


def read_stablelm(fields: Watched) -> Shape:
    """Norms of queries and keys have a scale for each head; a parallel layer has one norm for both halves."""
    hidden = fields.whole("hidden_size", 1 << 20)
    heads = fields.whole("num_attention_heads", 1 << 16)
    kv_heads = fields.whole("num_key_value_heads", heads, heads)
    width = head_dim(fields, heads)
    bias = fields.flag("use_qkv_bias")
    attention = Attention(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=width,
        q_bias=bias,
        kv_bias=bias,
        norm_elements=(heads + kv_heads) * width * fields.flag("qk_layernorm"),
    )
    layer = Layer(
        mixers=(attention,),
        mlps=(Mlp(width=fields.whole("intermediate_size", 1 << 24)),),
        norm_elements=2 * hidden if fields.flag("use_parallel_residual") else 4 * hidden,
    )
    return finish(
        fields,
        (layer,) * fields.whole("num_hidden_layers", 4096),
        final_norm_elements=2 * hidden,
        rotary_head=width,
    )


def _biased(fields: Watched, hidden: int, heads: int, kv_heads: int) -> Attention:
    return Attention(
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=_width(fields, hidden, heads),
        q_bias=True,
        kv_bias=True,
        o_bias=True,
    )


def _plain(fields: Watched, hidden: int, name: str) -> Mlp:
    """Two matrices with biases, four times as wide as the hidden state unless the file says otherwise."""
    width = fields.whole(name, 1 << 24, 4 * hidden) if name else 4 * hidden
    return Mlp(width=width, gated=False, bias=True, out_bias=True)


def _width(fields: Watched, hidden: int, heads: int) -> int:
    width, rest = divmod(hidden, heads)
    if rest or not width:
        name = next(
            (name for name in ("n_embd", "d_model", "hidden_size") if fields.has(name)), "hidden_size"
        )
        raise fields.fail(name, f"a multiple of the number of heads, which is {heads}")
    return width


OLDER = {
    "gpt2": read_gpt2,
    "gpt_bigcode": read_gpt2,
    "gptj": read_gptj,
    "codegen": read_gptj,
    "gpt_neo": read_gpt_neo,
    "opt": read_opt,
    "bloom": read_bloom,
    "falcon": read_falcon,
    "mpt": read_mpt,
    "dbrx": read_dbrx,
    "stablelm": read_stablelm,
}
