from types import SimpleNamespace

import pytest

from optimum_ffp.commands.plans import show_plan


def test_problems_come_after_the_plan_and_end_with_code_2(capsys):
    plan = SimpleNamespace(describe=lambda: "one")
    show_plan(plan, [])
    assert capsys.readouterr().out == "one\n"
    with pytest.raises(SystemExit) as end:
        show_plan(plan, [ValueError("no room")])
    assert end.value.code == 2 and capsys.readouterr().out == "one\nproblem: no room\n"
