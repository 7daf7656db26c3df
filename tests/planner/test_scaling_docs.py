"""The tables of docs/scaling-laws.md are what the commands print."""

import re
from pathlib import Path

import pytest

from octavo.cli.amounts import short
from octavo.planner.forms import FORMS
from octavo.planner.laws import ParametricLaw
from octavo.planner.published import PUBLISHED

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "scaling-laws.md").read_text("utf-8")


def rows(heading):
    part = PAGE.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in part.splitlines()
        if line.startswith("| `")
    ]
    assert found
    return found


def test_every_published_law_is_in_the_table_with_its_advice():
    table = {re.match(r"`([^`]+)`", row[0])[1]: row[1:] for row in rows("Why constants are not rounded")}
    assert set(table) == set(PUBLISHED)
    for name, (params, tokens, ratio, loss) in table.items():
        best = PUBLISHED[name].optimum(5.76e23)
        assert (params, tokens, ratio) == (
            short(best.params),
            short(best.tokens),
            f"{best.tokens_per_param:.1f}",
        ), name
        law = PUBLISHED[name].law
        assert loss == (f"{law.loss(70e9, 1.4e12):.4f}" if isinstance(law, ParametricLaw) else "")


def test_every_form_is_in_the_table_with_its_constants():
    told = " ".join(row[0] for row in rows("What is fitted"))
    for name, form in FORMS.items():
        assert name.removesuffix("-bare") in told
        for row in rows("What is fitted"):
            if f"`{name}`" in row[0]:
                assert int(row[-1]) == len(form.constants)


@pytest.mark.parametrize("words", ["octavo fit", "octavo plan design", "octavo plan train"])
def test_flags_on_the_page_exist(words, capsys):
    from octavo.cli.main import main

    with pytest.raises(SystemExit):
        main([*words.split()[1:], "--help"])
    known = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
    for line in re.findall(rf"^{words} .*$|`{words} [^`]*`", PAGE, re.MULTILINE):
        assert set(re.findall(r"--[a-z-]+", line)) <= known, line
