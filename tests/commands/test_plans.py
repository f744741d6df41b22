from types import SimpleNamespace

import pytest

from optimum_ffp.commands.plans import show_plans


def test_problems_come_after_all_plans_and_end_with_code_2(capsys):
    plans = [SimpleNamespace(describe=lambda text=text: text) for text in ("one", "two")]
    show_plans(plans, [])
    assert capsys.readouterr().out == "one\n\ntwo\n"
    with pytest.raises(SystemExit) as end:
        show_plans(plans, [ValueError("no room")])
    assert end.value.code == 2 and capsys.readouterr().out == "one\n\ntwo\nproblem: no room\n"
