"""Fields of configs that look as if they had a size and change nothing that is counted."""

from __future__ import annotations

_TEXT = """
    _attn_implementation _attn_implementation_autoset _attn_implementation_internal _flash_attn_2_enabled
    activation_dropout activation_function alibi_bias_max apply_residual_connection_post_layernorm
    attention_dropout attention_in_multiplier attention_multiplier attention_out_multiplier
    attention_probs_dropout_prob attention_softmax_in_fp32 attention_value_scale attn_dropout attn_impl
    attn_implementation attn_logit_softcapping attn_pdrop attn_scale attn_temperature_tuning attn_type
    attn_uses_sequence_id block_norm_eps block_size chunk_size chunk_size_feed_forward classifier_dropout
    clip_qkv conv_norm_eps dim_model_base emb_pdrop embd_pdrop embed_dropout embedding_dropout
    embedding_initializer_range embedding_multiplier encoder_no_repeat_ngram_size ep_size expert_dropout
    ffn_act_fn ffn_dropout final_logit_softcapping floor_scale full_attn_alpha_factor full_attn_beta_factor
    fused_add_norm hidden_act hidden_activation hidden_dropout hidden_dropout_prob init_device init_method
    init_std initializer_factor initializer_range input_jitter_noise key_multiplier
    layer_norm_elementwise_affine layer_norm_eps layer_norm_epsilon layerdrop layernorm_epsilon
    layernorm_full_attention_alpha layernorm_linear_attention_alpha layernorm_mlp_alpha
    linear_attn_alpha_factor linear_attn_beta_factor lm_head_multiplier logits_soft_cap mamba_chunk_size
    mamba_hidden_act mamba_norm_before_gate mamba_ssm_cache_dtype mamba_ssm_dtype max_position_embeddings
    max_sequence_length mixer_rms_eps mlp_alpha_factor mlp_beta_factor mlp_hidden_act mlp_multipliers
    moe_capacity moe_dropout_prob moe_gate moe_group_size moe_jitter_eps moe_loss_weight
    moe_multimodal_launch_moe moe_norm_min moe_normalize_expert_weights moe_renormalize
    moe_renormalize_weights moe_router_activation_func moe_scaling_factor moe_shared_expert_overlap
    moe_use_aux_free mup_enabled n_group no_repeat_ngram_size no_rope_layer_interval no_rope_layers norm_eps
    norm_epsilon norm_min norm_topk_prob norm_type num_beam_groups num_beams num_expert_group num_labels
    num_logits_to_keep num_return_sequences original_max_position_embeddings output_attentions
    output_hidden_states output_router_logits position_embedding_type prefix_lm query_pre_attn_scalar
    reorder_and_upcast_attn rescale_prenorm_residual resid_pdrop residual_dropout residual_in_fp32
    residual_multiplier rms_norm_eps rms_norm_epsilon rope_interleave routed_scaling_factor
    router_aux_loss_coef router_dtype router_jitter_noise router_z_loss_coef scale_attention_softmax_in_fp32
    scale_attn_by_inverse_layer_idx scale_attn_weights scale_depth scale_emb scale_embedding sinks_dtype
    slow_but_exact softmax_in_fp32 ssm_in_multiplier ssm_multipliers ssm_out_multiplier summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj swiglu_limit
    task_specific_params time_step_floor topk_group use_associative_scan use_bidirectional_attention
    use_flash_attention use_flash_attn use_mamba_kernels use_mambapy use_mem_eff_path use_parallel_embedding
    use_rotary_embedding_mask
"""

INERT = frozenset(_TEXT.split())
