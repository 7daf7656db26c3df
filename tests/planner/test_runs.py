"""Tables of runs: columns under many names, the third of C = 6 N D, and errors that name row and column."""

import numpy as np
import pytest

from octavo.errors import ConfigError
from octavo.planner.runs import Runs, from_columns, read_table
from tests.shared_data import shared


def table(text, **names):
    return read_table(text.splitlines(keepends=True), names, source="runs.csv")


def test_columns_under_other_names_and_order():
    runs = table("Final Loss,model-size,D\n3.0,1e6,2e7\n2.5,1e7,2e8\n")
    assert runs.loss.tolist() == [3.0, 2.5]
    assert runs.params.tolist() == [1e6, 1e7]
    assert runs.flop.tolist() == [1.2e14, 1.2e16]
    assert runs.experts is None


def test_the_third_of_params_tokens_and_flop():
    assert table("n,flops,loss\n1e6,1.2e14,3\n").tokens.tolist() == pytest.approx([2e7])
    assert table("tokens,compute,loss\n2e7,1.2e14,3\n").params.tolist() == pytest.approx([1e6])
    kept = table("n,d,c,loss\n1e6,2e7,1.5e14,3\n")
    assert kept.flop.tolist() == [1.5e14]


def test_names_can_be_given():
    runs = table("size,tokens,test nll,loss\n1e6,2e7,3,9\n", params="size", loss="test nll")
    assert runs.loss.tolist() == [3.0]
    assert table("params,tokens,experts,loss\n1e6,2e7,8,3\n").experts.tolist() == [8.0]


def test_empty_lines_are_passed_over():
    assert len(table("params,tokens,loss\n1e6,2e7,3\n\n , , \n1e7,2e7,2.9\n")) == 2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "runs.csv is empty; it needs a header such as params,tokens,loss"),
        ("params,tokens,loss\n", "a header and no runs"),
        (
            "params,tokens,losss\n1,2,3\n",
            "no column of losses; it has params, tokens, losss; --columns loss=losss",
        ),
        ("params,loss\n1e6,3\n", "needs two of the columns params, tokens and flop"),
        (
            "params,n,tokens,loss\n1,1,2,3\n",
            "several columns for params: params, n; say which with --columns params=",
        ),
        ("params,tokens,loss\n1e6,x,3\n", "runs.csv, line 2, column tokens: 'x' is not a number"),
        ("params,tokens,loss\n1e6,1e7,3\n1e6,,3\n", "line 3, column tokens: the value is missing"),
        ("params,tokens,loss\n1e6,1e7\n", "line 2, column loss: the value is missing"),
        ("params,tokens,loss\n1e6,-1e7,3\n", "line 2, column tokens: -1e7 must be a positive number"),
        ("params,tokens,loss\n0,1e7,3\n", "column params: 0 must be a positive number"),
        ("params,tokens,loss\n1e6,1e7,nan\n", "column loss: nan must be a positive number"),
    ],
)
def test_bad_tables(text, words):
    with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
        table(text)


def test_bad_names():
    with pytest.raises(ConfigError, match="no column 'lss' for loss; it has params, tokens, loss"):
        table("params,tokens,loss\n1,2,3\n", loss="lss")
    with pytest.raises(ConfigError, match="unknown column 'width'; columns are params"):
        table("params,tokens,loss\n1,2,3\n", width="params")


def test_columns_are_checked_too():
    with pytest.raises(ConfigError, match="params of run 2 is -1"):
        from_columns({"params": [1.0, -1.0], "tokens": [1.0, 1.0], "loss": [1.0, 1.0]})
    with pytest.raises(ConfigError, match="tokens has 1 values for 2 losses"):
        Runs(params=np.ones(2), tokens=np.ones(1), flop=np.ones(2), loss=np.ones(2))
    with pytest.raises(ConfigError, match="runs need a loss; columns given: params"):
        from_columns({"params": [1.0]})


def test_dropping_the_highest_losses_keeps_the_order():
    runs = from_columns({"params": [1, 2, 3, 4], "tokens": [1, 1, 1, 1], "loss": [5.0, 3.0, 9.0, 4.0]})
    assert runs.without_highest_losses(2).loss.tolist() == [3.0, 4.0]
    assert runs.without_highest_losses(0).loss.tolist() == [5.0, 3.0, 9.0, 4.0]
    for count in (-1, 4):
        with pytest.raises(ConfigError, match=f"cannot drop {count} of 4 runs"):
            runs.without_highest_losses(count)


def test_the_public_points():
    with shared("scaling/chinchilla_fig4_points.csv").open(newline="") as lines:
        runs = read_table(lines)
    assert len(runs) == 245
    assert np.allclose(runs.flop, 6 * runs.params * runs.tokens, rtol=1e-6)


def test_too_many_runs_are_refused():
    text = "params,tokens,loss\n" + "1e6,1e7,3\n" * 20_001
    with pytest.raises(ConfigError, match="more than 20000 runs; keep the last checkpoints of each"):
        table(text)
