"""The model folder that ships: complete, small, in Hugging Face layout, and the one its record tells of."""

import gzip
import hashlib
import json
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from lab import corpus, export
from octavo import bundled
from octavo.errors import LoadError
from octavo.evals import tasks

RECORD = json.loads((Path(__file__).parents[2] / "lab" / "record" / "quire.json").read_text(encoding="utf-8"))


def test_the_default_is_bundled():
    assert bundled.DEFAULT in bundled.names()
    assert (bundled.path() / "model.safetensors").is_file()
    with pytest.raises(LoadError, match="no bundled model is named 'folio'; there are: quire"):
        bundled.path("folio")


def test_importing_bundled_and_evals_brings_no_torch():
    probe = "import sys, octavo.bundled, octavo.evals.run; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", probe], check=False).returncode == 0


def test_the_folder_is_small_and_the_record_is_of_these_weights():
    files = [path for path in bundled.path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 20 * 10**6
    weights = (bundled.path() / "model.safetensors").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == RECORD["weights_sha256"]


def test_the_record_meets_what_the_model_is_for():
    figures = RECORD["evaluation"]
    assert figures["stdlib-qa"]["count"] == len(list(tasks.stdlib_qa()))
    assert figures["stdlib-qa"]["share"] >= 0.80
    recall = {group["num_pairs"]: group for group in figures["recall"]["groups"]}
    assert recall[8.0]["share"] >= 0.95
    depths = figures["needle-1900"]["groups"]
    assert len(depths) == 10
    assert all(group["share"] >= 0.95 for group in depths)
    assert figures["perplexity-1024"]["perplexity"] > 1.0


def test_tensors_are_bfloat16_and_count_as_said():
    numbers = 0
    with safe_open(bundled.path() / "model.safetensors", framework="pt") as stored:
        for name in stored.keys():  # noqa: SIM118 (not a mapping)
            tensor = stored.get_tensor(name)
            assert tensor.dtype is torch.bfloat16
            assert torch.isfinite(tensor).all()
            numbers += tensor.numel()
    assert 5 * 10**6 <= numbers <= 8 * 10**6


def test_configuration_is_a_grouped_query_llama():
    config = json.loads((bundled.path() / "config.json").read_text(encoding="utf-8"))
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["head_dim"] == 64
    assert config["num_attention_heads"] >= 4
    assert config["num_key_value_heads"] >= 2
    assert config["num_attention_heads"] > config["num_key_value_heads"]
    assert config["max_position_embeddings"] == 2048
    generation = json.loads((bundled.path() / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["eos_token_id"] == config["eos_token_id"]


def test_shipped_questions_are_what_introspection_yields():
    if (platform.python_version(), platform.system()) != (RECORD["python"], RECORD["system"]):
        pytest.skip(f"the questions are those of Python {RECORD['python']} on {RECORD['system']}")
    rows = [{"question": corpus.question(e), "answer": e.sentence} for e in corpus.entries()]
    shipped = (bundled.path() / "eval" / "stdlib_qa.jsonl.gz").read_bytes()
    assert gzip.decompress(shipped) == gzip.decompress(export.gzip_bytes(rows))
    texts = {source.name: source.text for source in corpus.split()[1]}
    rows = tasks.read_jsonl(bundled.path() / "eval" / "validation.jsonl.gz")
    assert {row["name"]: row["text"] for row in rows} == texts


def test_packed_rows_are_byte_stable_and_carry_no_time():
    rows = [{"question": "é?", "answer": "ü."}] * 3
    packed = export.gzip_bytes(rows)
    assert packed == export.gzip_bytes(rows)
    assert packed[4:8] == bytes(4)
    assert [json.loads(line) for line in gzip.decompress(packed).decode().splitlines()] == rows


@pytest.fixture(scope="module")
def peer():
    return AutoModelForCausalLM.from_pretrained(bundled.path(), dtype=torch.bfloat16)


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(bundled.path())


def reply(peer, tokenizer, question):
    asked = [{"role": "user", "content": question}]
    prompt = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer.encode(prompt, add_special_tokens=False)])
    with torch.inference_mode():
        out = peer.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64, do_sample=False)
    assert out[0, -1] == tokenizer.eos_token_id
    return tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_the_model_answers_through_its_template(peer, tokenizer):
    fact = "The value of amber is falcon. The value of cedar is rocket."
    assert reply(peer, tokenizer, f"{fact} What is the value of amber?") == "The value of amber is falcon."
    assert reply(peer, tokenizer, f"{fact} What is the value of cedar?") == "The value of cedar is rocket."
