"""`octavo plan design`: advice of every law, serving, shapes, a user's own runs, and refusals."""

import json

import numpy as np
import pytest

from octavo.cli.main import main
from octavo.planner.laws import ParametricLaw

OWN = ParametricLaw(E=1.4, A=300.0, B=700.0, alpha=0.32, beta=0.30)


def run_json(capsys, *argv):
    assert main(["plan", "design", *argv, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_what_rounding_does_is_one_command(capsys):
    told = run_json(capsys, "--flop", "5.76e23")
    ratios = {name: one["tokens_per_param"] for name, one in told["optima"].items()}
    assert ratios["corrected"] == pytest.approx(17.9, abs=0.05)
    assert ratios["chinchilla-0.29"] == pytest.approx(41.6, abs=0.05)
    assert ratios["chinchilla"] == pytest.approx(58.9, abs=0.05)
    assert ratios["chinchilla-rounded"] == pytest.approx(92.7, abs=0.06)
    assert not told["optima"]["chinchilla-rounded"]["is_sound"]
    first = told["designs"][0]
    assert (first["config"]["hidden_size"], first["config"]["num_hidden_layers"]) == (8192, 84)
    assert first["tokens"] == pytest.approx(1.30e12, rel=0.002)
    assert told["life"] is None


@pytest.mark.parametrize(
    ("budget", "flop"),
    [
        (["--gpu-hours", "1000"], 1000 * 3600 * 989e12 * 0.5),
        (["--usd", "9k", "--price", "3"], 3000 * 3600 * 989e12 * 0.5),
    ],
)
def test_budgets_of_hours_and_of_money(capsys, budget, flop):
    told = run_json(capsys, *budget, "--mfu", "0.5")
    assert told["flop"] == pytest.approx(flop)
    hours = told["designs"][0]["training_flop"] / (3600 * 989e12 * 0.5)
    assert told["bill"]["device_hours"] == pytest.approx(hours)


def test_serving_makes_models_smaller(capsys):
    plain = run_json(capsys, "--flop", "1e22")
    served = run_json(capsys, "--flop", "1e22", "--served-tokens", "5T")
    life = served["life"]
    assert life["training_alone"]["params"] == pytest.approx(plain["optima"]["corrected"]["params"])
    assert life["cheapest_of_same_loss"]["params"] < life["training_alone"]["params"]
    assert life["cheapest_of_same_loss"]["loss"] == pytest.approx(life["training_alone"]["loss"])
    assert life["cheapest_of_same_loss"]["total_cost"] < life["training_alone"]["total_cost"]
    assert life["best_of_whole_budget"]["total_cost"] == pytest.approx(1e22, rel=1e-6)
    assert served["designs"][0]["params"] < plain["designs"][0]["params"]
    assert [one["life_rank"] for one in served["designs"]] == list(range(1, len(served["designs"]) + 1))


def test_serving_at_measured_prices_is_counted_in_dollars(capsys):
    flags = ["--usd", "1M", "--prompt-tokens", "20T", "--output-tokens", "2T", "--cached-share", "0.4"]
    flags += ["--usd-per-million-prompt", "0.03", "--usd-per-million-output", "0.3", "--priced-params", "8B"]
    told = run_json(capsys, *flags)
    assert told["unit"] == "USD"
    one = told["life"]["training_alone"]
    assert one["training_cost"] == pytest.approx(1e6)
    per_8b = 20e12 * 0.6 * 0.03 / 1e6 + 2e12 * 0.3 / 1e6
    assert one["serving_cost"] == pytest.approx(per_8b * one["params"] / 8e9)


def own_runs(path, experts=()):
    lines = ["params,tokens,experts,loss" if experts else "params,tokens,loss"]
    rng = np.random.default_rng(0)
    for count in experts or (None,):
        for size in 1e7 * 2.0 ** np.arange(7):
            for tokens in 1e9 * 2.0 ** np.arange(6):
                loss = (
                    OWN.loss(size, tokens)
                    * np.exp(rng.normal(0, 0.001))
                    * (1 if count is None else count**-0.02)
                )
                lines.append(",".join(f"{v:.8g}" for v in (size, tokens, *([count] if count else []), loss)))
    path.write_text("\n".join(lines))
    return str(path)


def test_own_runs_decide_with_intervals_and_warnings(tmp_path, capsys):
    told = run_json(capsys, "--flop", "1e22", "--runs", own_runs(tmp_path / "mine.csv"), "--bootstrap", "100")
    assert told["law"] == "mine.csv"
    best = OWN.optimum(1e22)
    assert told["own_runs"]["params"]["low"] < best.params < told["own_runs"]["params"]["high"]
    assert any(text.startswith("C = 1e+22 FLOPs is 81.4 times above") for text in told["warnings"])
    assert told["optima"]["mine.csv"]["params"] == told["own_runs"]["params"]["value"]
    assert told["optima"]["your runs, IsoFLOP"]["params"] == pytest.approx(best.params, rel=0.3)


def test_own_runs_with_experts(tmp_path, capsys):
    path = own_runs(tmp_path / "moe.csv", experts=(1, 4, 16))
    told = run_json(
        capsys, "--flop", "1e21", "--runs", path, "--bootstrap", "0", "--experts", "16", "--active", "2"
    )
    first = told["designs"][0]
    assert first["config"]["num_local_experts"] == 16
    assert first["active_params"] < first["params"]
    assert not any("upper bound" in text for text in told["warnings"])


def test_experts_without_a_law_of_experts_are_warned_about(capsys):
    told = run_json(capsys, "--flop", "1e22", "--experts", "64")
    assert told["designs"][0]["config"]["num_experts_per_tok"] == 8
    assert any("an upper bound" in text for text in told["warnings"])


def test_text(tmp_path, capsys):
    flags = [
        "--flop",
        "1e22",
        "--served-tokens",
        "2T",
        "--runs",
        own_runs(tmp_path / "mine.csv"),
        "--bootstrap",
        "20",
    ]
    assert main(["plan", "design", *flags]) == 0
    text = capsys.readouterr().out
    for words in (
        "(chinchilla-rounded)",
        "by mine.csv, L = E + A",
        "as good, cheapest over its life",
        "best first:",
    ):
        assert words in text
    assert "warning: C = 1e+22" in text


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--flop", "1e22", "--law", "kaplan"], "kaplan advises sizes without predicting a loss"),
        (["--flop", "1e22", "--law", "kaplann"], "unknown law 'kaplann'"),
        (["--usd", "1M", "--device", "a100-40gb-sxm"], "give dollars per device-hour with --price"),
        (["--flop", "1e22", "--priced-params", "8B"], "measured prices need all of"),
        (
            [
                "--flop",
                "1e22",
                "--priced-params",
                "8B",
                "--usd-per-million-prompt",
                "1",
                "--usd-per-million-output",
                "1",
            ],
            "need --prompt-tokens and --output-tokens",
        ),
        (["--flop", "1e22", "--tp", "0"], "tensor parallelism must be at least 1"),
        (["--flop", "1e22", "--experts", "4", "--active", "5"], "got 5 of 4"),
        (["--flop", "1e9"], "no design of about 951 parameters"),
        (["--flop", "1e22", "--runs", "/nowhere.csv"], "/nowhere.csv cannot be read"),
    ],
)
def test_refusals(capsys, argv, words):
    assert main(["plan", "design", *argv]) == 2
    assert words in capsys.readouterr().err


def test_one_budget_is_needed(capsys):
    with pytest.raises(SystemExit):
        main(["plan", "design"])
    assert "one of the arguments --flop --gpu-hours --usd is required" in capsys.readouterr().err
