"""transformers' continuous batching, as it comes, on the same requests."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benches.device.subjects import Requests
from benches.harness import GateFailed, Subject


class Peer:
    """A model of transformers on a device. Raises ImportError where the library lacks continuous batching."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        from transformers import AutoModelForCausalLM, GenerationConfig

        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.bfloat16, attn_implementation="sdpa"
        )
        self.model: Any = loaded.to(device)
        if not hasattr(self.model, "generate_batch"):
            raise ImportError("this transformers has no generate_batch")
        self._config: Any = GenerationConfig

    def close(self) -> None:
        """Give back its weights, and its own cache, which takes most of the memory that was free."""
        destroy = getattr(self.model, "destroy_cached_continuous_batching_manager", None)
        if destroy is not None:
            destroy()
        self.model = None

    def tokens(self, prompts: list[list[int]], num_output: int) -> list[list[int]]:
        """Greedy, `num_output` tokens for each prompt: no token ends an answer.

        Whatever the library sets up for its first batch stays for the later ones.
        """
        config: Any = self._config(
            max_new_tokens=num_output, do_sample=False, eos_token_id=-1, pad_token_id=0, use_cache=True
        )
        found = self.model.generate_batch(prompts, generation_config=config, persistent_manager=True)
        ordered = sorted(found.values(), key=lambda one: int(str(one.request_id).rpartition("_")[2]))
        return [list(one.generated_tokens) for one in ordered]

    def subject(self, requests: Requests) -> Subject:
        """The same prompts in the same repeats as `subjects.throughput`."""

        def run(repeat: int) -> Mapping[str, float]:
            prompts = requests.prompts(self.model.config.vocab_size, repeat)
            began_s = time.perf_counter()
            answers = self.tokens(prompts, requests.num_output)
            wall_s = time.perf_counter() - began_s
            lengths = [len(answer) for answer in answers]
            if lengths != [requests.num_output] * len(prompts):
                raise GateFailed(f"transformers gave {len(answers)} answers of {set(lengths)} tokens")
            return {"output_tokens_per_s": sum(lengths) / wall_s, "wall_s": wall_s}

        return run
