"""`octavo plan train`: bills and verdicts as a user sees them."""

import json

import pytest

from octavo.cli.main import main


def run_json(capsys, *argv):
    assert main(["plan", "train", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_a_size_alone(capsys):
    told = run_json(
        capsys, "--params", "70B", "--tokens", "1.4T", "--devices", "1024", "--price", "2", "--mfu", "0.4"
    )
    assert told["bill"]["flop"] == pytest.approx(6 * 70e9 * 1.4e12)
    hours = told["bill"]["flop"] / (989e12 * 0.40) / 3600
    assert told["bill"]["device_hours"] == pytest.approx(hours)
    assert told["bill"]["wall_s"] == pytest.approx(hours * 3600 / 1024)
    assert told["bill"]["usd"] == pytest.approx(2 * hours)
    assert told["is_exact"] is False
    assert told["verdict"]["tokens_per_param"] == pytest.approx(20.0)
    assert 0 <= told["verdict"]["wasted_share"] < 0.01


def test_a_known_model_is_counted(capsys):
    told = run_json(capsys, "llama-2-7b", "--tokens", "2T", "--sequence", "4096", "--mfu", "0.5")
    assert told["is_exact"] is True
    assert told["params"] == 6_738_415_616
    assert told["flop_per_token"] == pytest.approx(42.86e9, rel=2e-4)
    assert told["fleet"]["mfu"] == 0.5


def test_a_config_file(tmp_path, capsys):
    config = {
        "model_type": "llama",
        "hidden_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 768,
        "vocab_size": 4096,
        "tie_word_embeddings": True,
        "max_position_embeddings": 1024,
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    told = run_json(capsys, str(tmp_path / "config.json"), "--tokens", "100M", "--sequence", "1024")
    matrices = 4 * (2 * 256 * 256 + 2 * 256 * 128 + 3 * 256 * 768) + 4096 * 256
    attention = 4 * 4 * 256 * 1025 / 2
    assert told["flop_per_token"] == pytest.approx(3 * (2 * matrices + attention))


def test_experts_are_judged_by_what_is_active(capsys):
    told = run_json(capsys, "mixtral-8x7b", "--tokens", "2T")
    assert told["active_params"] < told["params"]
    assert told["verdict"]["tokens_per_param"] == pytest.approx(2e12 / told["active_params"])
    assert any("active parameters" in note for note in told["notes"])


def test_text(capsys):
    assert main(["plan", "train", "--params", "7B", "--tokens", "15T", "--devices", "512"]) == 0
    text = capsys.readouterr().out
    assert "7.00B parameters, 15.0T tokens" in text
    assert "512 x h100-sxm at MFU 0.387: 37 days" in text
    assert "by corrected: 2142.9 tokens a parameter" in text
    assert "octavo plan design --served-tokens weighs that" in text


def test_a_law_without_a_loss_judges_nothing(capsys):
    told = run_json(capsys, "--params", "7B", "--tokens", "1T", "--law", "kaplan")
    assert told["verdict"] is None
    assert any("kaplan predicts no loss" in note for note in told["notes"])


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--tokens", "1T"], "needs either a MODEL or --params"),
        (["llama-2-7b", "--params", "7B", "--tokens", "1T"], "needs either a MODEL or --params"),
        (["llama-2-7b", "--active-params", "7B", "--tokens", "1T"], "--active-params goes with --params"),
        (["--params", "7B", "--tokens", "much"], "'much' is not an amount"),
        (
            ["--params", "7B", "--tokens", "1T", "--device", "h1000"],
            "device 'h1000' is not known; near it are",
        ),
        (["--params", "7B", "--tokens", "1T", "--mfu", "40"], "mfu must be above 0 and at most 1, got 40"),
        (["--params", "7B", "--tokens", "1T", "--devices", "0"], "at least 1 device"),
        (["--params", "7B", "--tokens", "1T", "--law", "x"], "unknown law 'x'; published laws: kaplan"),
        (["--params", "7B", "--tokens", "1T", "--precision", "fp2"], "precision 'fp2' is not one of"),
    ],
)
def test_refusals(capsys, argv, words):
    assert main(["plan", "train", *argv]) == 2
    assert words in capsys.readouterr().err
