"""From the MODEL a user names to files: folders, lone configs, bundled names, hub ids, and everything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from octavo import SamplingParams, bundled
from octavo.codec.numbers import NumberTokenizer
from octavo.engine import locate as locating
from octavo.engine.locate import locate
from octavo.errors import LoadError
from tests.engine.tiny import CONFIG, engine


def test_a_folder(tiny: Path) -> None:
    found = locate(str(tiny))
    assert (found.name, found.folder, found.config) == ("tiny", tiny, tiny / "config.json")
    assert not found.is_random


def test_a_folder_is_named_after_itself_however_it_is_reached(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny)
    assert locate(".").name == "tiny"
    assert locate("../tiny/").name == "tiny"


def test_a_lone_config_means_random_weights(tmp_path: Path) -> None:
    folder = tmp_path / "shape"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    (folder / "other.json").write_text(json.dumps(CONFIG))
    assert locate(str(folder / "config.json")).name == "shape"
    assert locate(str(folder / "other.json")).name == "other"
    assert locate(str(folder / "config.json")).is_random


def test_the_bundled_model_is_the_default() -> None:
    for name in ("auto", "quire"):
        found = locate(name)
        assert (found.name, found.folder) == ("quire", bundled.path("quire"))


def test_auto_is_the_bundled_model_whatever_lies_around(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "quire").mkdir()
    (tmp_path / "auto").mkdir()
    monkeypatch.chdir(tmp_path)
    assert locate("auto").folder == bundled.path("quire")


@pytest.mark.parametrize(
    "name", ["nothing-of-the-sort", "a/b/c", "/no/such/place", "../nowhere", "spa ce/model", ""]
)
def test_what_is_nowhere_is_refused_with_what_was_tried(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(LoadError, match=r"quire|no config\.json"):
        locate(name)


def test_a_folder_without_a_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"has no config\.json"):
        locate(str(tmp_path))


def test_a_file_that_is_no_config_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x")
    with pytest.raises(LoadError, match="name its folder"):
        locate(str(file))


def test_a_hub_id_is_fetched_without_pickles_or_code(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    asked = []

    def fetch(name: str, *, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tiny)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert locate("owner/model").folder == tiny
    ((name, patterns),) = asked
    assert name == "owner/model"
    assert not [pattern for pattern in patterns if pattern.endswith((".py", ".bin", ".pt", ".pth", "*"))]
    assert patterns == locating.HUB_FILES


def test_a_hub_id_that_cannot_be_fetched_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fetch(name: str, **_: object) -> str:
        raise OSError(f"no route to {name}")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    with pytest.raises(LoadError, match="no route to owner/model"):
        locate("owner/model")


def test_random_weights_serve_numbers_and_repeat(tmp_path: Path) -> None:
    """The tokenizer of a lone config.json reads and writes token ids; the seed fixes the weights."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    params = SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True)
    found = []
    for seed in (0, 0, 1):
        with engine(tmp_path / "config.json", seed=seed) as llm:
            assert isinstance(llm.tokenizer, NumberTokenizer)
            (by_text,) = llm.generate("17 4 250", params)
            (by_ids,) = llm.generate([17, 4, 250], params)
            assert by_text.prompt_token_ids == [17, 4, 250]
            assert by_text.outputs[0].token_ids == by_ids.outputs[0].token_ids
            assert by_text.outputs[0].text.split() == [str(token) for token in by_text.outputs[0].token_ids]
            found.append((llm.built.model.fingerprint, by_ids.outputs[0].token_ids))
    assert found[0] == found[1]
    assert found[0][0] != found[2][0]


def test_dummy_weights_in_a_folder_keep_its_tokenizer(tiny: Path) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True)
    with engine(tiny) as real, engine(tiny, load_format="dummy") as dummy:
        assert dummy.tokenizer.digest == real.tokenizer.digest
        assert dummy.built.model.fingerprint != real.built.model.fingerprint
        assert len(dummy.generate("word", params)[0].outputs[0].token_ids) == 4
