"""`octavo fit`: what it prints and stores for a table whose law is known, and how it refuses bad ones."""

import json
import re

import numpy as np
import pytest

from octavo.cli import fit_results
from octavo.cli.amounts import amount, short
from octavo.cli.main import main
from octavo.errors import ConfigError
from octavo.planner.laws import ParametricLaw

LAW = ParametricLaw(E=1.7, A=420.0, B=900.0, alpha=0.33, beta=0.31)


def table(path, noise=0.002, seed=0, header="params,tokens,loss", spoilt=()):
    rng = np.random.default_rng(seed)
    lines = [header]
    for size in np.geomspace(1e7, 1e9, 7):
        for tokens in np.geomspace(1e9, 3e10, 6):
            loss = LAW.loss(size, tokens) * np.exp(rng.normal(0, noise))
            lines.append(f"{size:.6e},{tokens:.6e},{loss * (1.4 if len(lines) in spoilt else 1.0):.8f}")
    path.write_text("\n".join(lines) + "\n")
    return path


def run_json(capsys, *argv):
    assert main(["fit", *map(str, argv), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_json_holds_the_law_and_its_doubts(tmp_path, capsys):
    told = run_json(
        capsys, table(tmp_path / "runs.csv"), "--budget", "1e22", "--bootstrap", "200", "--level", "0.95"
    )
    for name, value in LAW.constants().items():
        figure = told["constants"][name]
        assert figure["low"] < value < figure["high"], name
        assert figure["standard_error"] > 0
    assert told["fit"]["num_runs"] == 42
    assert told["bootstrap"]["num_resamples"] == 200
    matrix = np.array(told["bootstrap"]["covariance"]["matrix"])
    assert matrix.shape == (7, 7)
    assert np.allclose(matrix, matrix.T)
    profile = told["profile_intervals"]["alpha"]
    assert profile["low"] < told["constants"]["alpha"]["value"] < profile["high"]
    best = LAW.optimum(1e22)
    assert told["advice"]["params"]["low"] < best.params < told["advice"]["params"]["high"]
    assert any(
        text.startswith("C = 1e+22 FLOPs is 55.6 times above the largest") for text in told["warnings"]
    )


def test_the_same_seed_prints_the_same(tmp_path, capsys):
    path = table(tmp_path / "runs.csv")
    one, two = (run_json(capsys, path, "--bootstrap", "50", "--seed", "3") for _ in range(2))
    assert one == two
    assert one != run_json(capsys, path, "--bootstrap", "50", "--seed", "4")


def test_text_says_law_advice_and_warnings(tmp_path, capsys):
    assert main(["fit", str(table(tmp_path / "runs.csv")), "--bootstrap", "50", "--budget", "1e20"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("L = E + A / N^alpha + B / D^beta\n42 runs;")
    for word in (
        "alpha by its profile",
        "tokens_per_param",
        "IsoFLOP parabolas",
        "envelope: N* ~ C^",
        "5.0%",
    ):
        assert word in text
    assert "inf" not in text


def test_spoilt_runs_are_named_by_their_rows_and_can_be_dropped(tmp_path, capsys):
    path = table(tmp_path / "runs.csv", spoilt=(9, 31))
    assert run_json(capsys, path)["outlying_rows"] == [9, 31]
    cleaned = run_json(capsys, path, "--drop-outliers", "auto")
    assert cleaned["fit"]["num_dropped"] == 2
    assert cleaned["outlying_rows"] == []
    assert run_json(capsys, path)["constants_without_outlying"] == {
        name: pytest.approx(cleaned["constants"][name]["value"]) for name in LAW.constants()
    }
    assert run_json(capsys, path, "--drop-outliers", "3")["fit"]["num_runs"] == 39


@pytest.mark.parametrize(
    ("flags", "constants"),
    [
        (["--law", "kaplan"], ["Nc", "Dc", "alpha_n", "alpha_d"]),
        (["--law", "power-flop", "--budget", "1e21"], ["scale", "exponent", "E"]),
        (["--law", "power-tokens-bare"], ["scale", "exponent"]),
    ],
)
def test_other_laws(tmp_path, capsys, flags, constants):
    told = run_json(capsys, table(tmp_path / "runs.csv"), *flags, "--bootstrap", "30")
    assert list(told["constants"]) == constants
    if "--budget" in flags:
        assert (
            told["advice"]["loss"]["low"] <= told["advice"]["loss"]["value"] <= told["advice"]["loss"]["high"]
        )


def test_experts(tmp_path, capsys):
    lines = ["params,tokens,experts,loss"]
    for experts in (1, 8, 64):
        law = ParametricLaw(E=1.5, A=200 * experts**-0.1, B=500.0, alpha=0.3, beta=0.3)
        for size in np.geomspace(1e7, 1e9, 5):
            lines += [f"{size},{d},{experts},{law.loss(size, d)}" for d in np.geomspace(1e9, 1e11, 5)]
    path = tmp_path / "moe.csv"
    path.write_text("\n".join(lines))
    told = run_json(capsys, path, "--law", "moe", "--bootstrap", "0", "--budget", "1e21", "--experts", "8")
    expected = ParametricLaw(E=1.5, A=200 * 8**-0.1, B=500.0, alpha=0.3, beta=0.3).optimum(1e21)
    assert told["advice"]["params"]["value"] == pytest.approx(expected.params, rel=1e-5)
    assert main(["fit", str(path), "--law", "moe", "--bootstrap", "0", "--budget", "1e21"]) == 2
    assert "add --experts" in capsys.readouterr().err


def test_a_page_that_fetches_nothing(tmp_path, capsys):
    path, out = table(tmp_path / "runs.csv", spoilt=(9,)), tmp_path / "fit.html"
    flags = ["--bootstrap", "30", "--budget", "1e22", "--html"]
    assert main(["fit", str(path), *flags, str(out)]) == 0
    printed, text = capsys.readouterr().out, out.read_text()
    assert text.count("<svg") == 1
    for elsewhere in ('src="http', 'href="http', "@import", "<script", "<metadata"):
        assert elsewhere not in text
    for line in printed.splitlines():
        if line.startswith(("warning:", "far off the fit", "IsoFLOP", "alpha by its profile")):
            assert f"<p>{line}</p>" in text
    alpha = next(line for line in printed.splitlines() if line.startswith("alpha "))
    assert "".join(f"<td>{cell}</td>" for cell in alpha.split()) in text
    assert "<td>tokens_per_param</td>" in text
    assert main(["fit", str(path), *flags, str(out)]) == 0
    assert out.read_text() == text
    assert main(["fit", str(path), "--html", str(tmp_path / "none" / "fit.html")]) == 2
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize("law", ["chinchilla", "power-params", "kaplan"])
def test_charts(tmp_path, capsys, law):
    path, out = table(tmp_path / "runs.csv", spoilt=(9,)), tmp_path / "fit.svg"
    flags = ["--law", law, "--bootstrap", "0", "--plot"]
    assert main(["fit", str(path), *flags, str(out)]) == 0
    drawn = out.read_text()
    assert drawn.count("<svg") == 1
    assert re.search(r">predicted minus observed log loss<", drawn)
    if law == "power-params":
        assert main(["fit", str(path), *flags, str(tmp_path / "again.svg")]) == 0
        assert (tmp_path / "again.svg").read_text() == drawn
        assert main(["fit", str(path), *flags, str(tmp_path / "no" / "folder.svg")]) == 2
        assert "folder.svg cannot be written: No such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--law", "chinchila"], "unknown law 'chinchila'; laws that can be fitted"),
        (["--bootstrap", "-1"], "--bootstrap must be 0 or more, got -1"),
        (["--level", "90"], "must lie between 0 and 1, got 90"),
        (["--drop-outliers", "some"], "a number of runs or auto, got 'some'"),
        (["--drop-outliers", "40"], "has 5 constants and needs at least 6 runs, got 2"),
        (["--columns", "loss"], "takes NAME=COLUMN, such as loss=val_nll; got 'loss'"),
        (["--columns", "loss=nll"], "no column 'nll' for loss"),
        (["--budget", "lots"], "'lots' is not an amount; write it such as 13B, 2T, 400M or 5.76e23"),
        (["--law", "power-params", "--budget", "1e20"], "says nothing of a budget"),
        (["--delta", "0"], "delta must be positive"),
    ],
)
def test_refusals(tmp_path, capsys, flags, words):
    assert main(["fit", str(table(tmp_path / "runs.csv")), *flags]) == 2
    assert words in capsys.readouterr().err


def test_files_that_are_no_tables(tmp_path, capsys):
    assert main(["fit", str(tmp_path / "none.csv")]) == 2
    assert "none.csv cannot be read: No such file or directory" in capsys.readouterr().err
    (tmp_path / "bytes.csv").write_bytes(b"params,tokens,loss\n\xff\xfe,1,1\n")
    assert main(["fit", str(tmp_path / "bytes.csv")]) == 2
    assert "is no text in UTF-8" in capsys.readouterr().err
    (tmp_path / "one.csv").write_text("params,tokens,loss\n" + "1e6,1e7,3\n" * 9)
    assert main(["fit", str(tmp_path / "one.csv")]) == 2
    assert "all runs have one params" in capsys.readouterr().err


def test_amounts():
    assert [amount(text) for text in ("13B", "2T", "400m", "5.76e23", "7", "1.5 k")] == [
        13e9,
        2e12,
        4e8,
        5.76e23,
        7.0,
        1500.0,
    ]
    for text in ("", "-3", "13X", "1e999", "0", "nan"):
        with pytest.raises(ConfigError):
            amount(text)
    assert [short(v) for v in (13e9, 2.38e12, 412.0, 5.76e23, 0.0123, 17.92, 0.0)] == [
        "13.0B",
        "2.38T",
        "412",
        "5.76e+23",
        "0.0123",
        "17.9",
        "0",
    ]


def test_open_ends_are_null():
    assert fit_results.finite({"a": [float("inf"), 1.5, {"b": float("nan")}], "c": "x"}) == {
        "a": [None, 1.5, {"b": None}],
        "c": "x",
    }
