"""`octavo plan serve`, `cost` and `break-even`: figures, reasons, refusals."""

import json

import pytest

from octavo.cli.main import main

LOAD = ["--prompt-tokens", "2000", "--output-tokens", "300"]


def run_json(capsys, *argv, code=0):
    assert main(["plan", *argv, "--json"]) == code
    return json.loads(capsys.readouterr().out)


def test_serve_ranks_and_says_why(capsys):
    told = run_json(
        capsys, "serve", "llama-3.1-70b", "--devices", "h100,h200", *LOAD, "--rate", "20", "--ttft", "1s",
        "--tpot", "50ms",
    )  # fmt: skip
    best = told["plans"][0]
    assert best["lost"] is None
    assert all(plan["lost"] for plan in told["plans"][1:])
    assert all(one["reason"] for one in told["rejected"])
    assert told["parameters"] == {"value": 70_553_706_496, "basis": "exact", "source": "its config"}
    for name in ("ttft_s", "tpot_s", "most_output_per_s", "usd_per_million_output"):
        figure = best["figures"][name]
        assert figure["low"] < figure["value"] < figure["high"]
        assert figure["basis"] == "predicted"
    assert best["figures"]["ttft_s"]["value"] <= 1.0
    assert best["figures"]["tpot_s"]["value"] <= 0.05
    assert best["requests_per_s"] == pytest.approx(20, rel=2e-3)
    # the mean step, not as often as requests see each
    assert sum(best["step_parts_s"].values()) == pytest.approx(best["figures"]["tpot_s"]["value"], rel=0.05)
    assert {"prompt_replicas", "decode_replicas", "pays", "ratio", "hand_over_s"} <= set(told["split"])
    assert "60 timed requests" in told["sharpen"]


def test_serve_of_a_closed_loop_of_experts_with_percentiles(capsys):
    told = run_json(
        capsys, "serve", "deepseek-v3", "--devices", "h200,b200", *LOAD, "--concurrency", "200", "--tpot", "60ms",
        "--percentile", "99", "--kv", "fp8", "--budget", "4096,8192",
    )  # fmt: skip
    best = told["plans"][0]
    assert best["concurrency"] == pytest.approx(200)
    assert any(plan["data"] > 1 for plan in told["plans"])
    labels = {plan["layout"] for plan in told["plans"]}
    assert {"4096 a step", "8192 a step"} <= {one.split(", ")[1] for one in labels}


def test_an_impossible_objective_names_what_binds_and_what_would_do(capsys):
    flags = ["serve", "llama-3.1-70b", *LOAD, "--rate", "5", "--tpot", "2ms"]
    told = run_json(capsys, *flags, code=1)
    assert told["plans"] == []
    assert told["relaxations"][0]["limits"] == ["TPOT"]
    assert told["relaxations"][0]["plan"]["figures"]["tpot_s"]["value"] <= told["relaxations"][0]["tpot_s"]
    assert main(["plan", *flags]) == 1
    shown = capsys.readouterr().out
    assert "No layout keeps the limits." in shown
    assert "Binding: TPOT" in shown


def test_a_person_reads_the_same(capsys):
    assert main(["plan", "serve", "llama-3.1-8b", *LOAD, "--rate", "5", "--price", "h100=2"]) == 0
    shown = capsys.readouterr().out
    for words in (
        "layouts looked at",
        "$2.00 an hour",
        "Bound:",
        "Apart:",
        "What came after it",
        "predicted",
    ):
        assert words in shown


def test_energy_is_unknown_where_no_power_is(capsys, tmp_path):
    machine = tmp_path / "machine.json"
    machine.write_text(
        json.dumps(
            {
                "fp32_flop_per_s": 1e12, "bf16_flop_per_s": 2e12, "int8_op_per_s": None, "read_bytes_per_s": 1e11,
                "total_memory_bytes": 64 << 30, "num_threads": 4, "cpu": {"model": "a CPU"},
            }
        )
    )  # fmt: skip
    told = run_json(capsys, "serve", "qwen3-0.6b", "--devices", str(machine), *LOAD, "--rate", "0.1")
    assert told["plans"][0]["watt_hours_per_million_at_most"] is None
    assert told["plans"][0]["usd_per_hour"] is None


def test_cost_by_hand(capsys):
    told = run_json(capsys, "cost", "--usd-per-hour", "3", "--tokens-per-s", "1000", "--utilization", "1,0.4")
    assert told["usd_per_million"]["1"] == pytest.approx(0.83333, abs=1e-5)
    assert told["usd_per_million"]["0.4"] == pytest.approx(2.08333, abs=1e-5)


def test_cost_of_a_model_adds_up(capsys):
    told = run_json(capsys, "cost", "llama-3.1-8b", *LOAD, "--cached-tokens", "800", "--price", "h100=3")
    assert told["price_basis"] == "given"
    full = {kind: one["value"] for kind, one in told["usd_per_million"]["1"].items()}
    whole = 1200 * full["input"] + 800 * full["cached input"] + 300 * full["output"]
    assert whole == pytest.approx(300 * full["output, all in"])
    assert full["output, all in"] == pytest.approx(1e6 * 3 / 3600 / told["output_per_s"]["value"])
    half = told["usd_per_million"]["0.4"]["output"]["value"]
    assert half == pytest.approx(full["output"] / 0.4)


def test_break_even(capsys):
    flags = ["--api-input", "0.9", "--api-output", "0.9", *LOAD]
    told = run_json(capsys, "break-even", "llama-3.1-70b", "--devices", "h200", *flags)
    assert told["api_usd_per_request"] == pytest.approx(2300 * 0.9 / 1e6)
    assert told["requests_per_hour"] * told["api_usd_per_request"] == pytest.approx(told["usd_per_hour"])
    usage = told["utilization"]
    assert usage["low"] < usage["value"] < usage["high"]
    assert told["pays"] is (usage["value"] <= 1)
    batch = run_json(
        capsys,
        "break-even",
        "--usd-per-hour",
        "3",
        "--requests-per-s",
        "0.5",
        *flags,
        "--batch-discount",
        "0.5",
    )
    assert batch["utilization"] == pytest.approx(3 / (0.5 * 2300 * 0.9 / 1e6) / 1800)
    assert batch["pays"] is False


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["serve", "llama-3.1-8b", *LOAD], "needs --rate or --concurrency"),
        (["serve", "llama-3.1-8b", *LOAD, "--rate", "1", "--concurrency", "2"], "and not both"),
        (["serve", "llama-3.1-8b", *LOAD, "--rate", "-1"], "must be above 0"),
        (["serve", "llama-3.1-8b", *LOAD, "--rate", "1", "--devices", "h1000"], "is not known"),
        (["serve", "llama-3.1-8b", *LOAD, "--rate", "1", "--weights", "fp7"], "fp7"),
        (["serve", "llama-3.1-8b", *LOAD, "--rate", "1", "--price", "h100=free"], "dollars above 0"),
        (
            ["serve", "llama-3.1-70b", *LOAD, "--rate", "1", "--devices", "l4", "--max-ranks", "1"],
            "no layout has room",
        ),
        (["cost"], "needs a MODEL"),
        (["cost", "llama-3.1-8b"], "needs --prompt-tokens"),
        (["cost", "llama-3.1-8b", *LOAD, "--tokens-per-s", "5"], "go without a MODEL"),
        (["cost", "llama-3.1-8b", *LOAD, "--utilization", "2"], "shares above 0"),
        (["cost", "llama-3.1-8b", *LOAD, "--devices", "h100-pcie"], "no price of h100-pcie"),
        (["break-even", *LOAD, "--api-input", "1", "--api-output", "1"], "needs a MODEL"),
        (
            ["break-even", "llama-3.1-8b", *LOAD, "--api-input", "-1", "--api-output", "1"],
            "cannot be negative",
        ),
    ],
)
def test_refusals(capsys, argv, said):
    assert main(["plan", *argv]) != 0
    assert said in capsys.readouterr().err
