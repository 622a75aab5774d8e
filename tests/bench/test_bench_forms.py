"""Forms of a step run one after another on one state; one that does not compile is named."""

import pytest
from helpers import tiny
from rich.console import Console

from cotjax.bench import forms
from cotjax.bench.forms import Form, Settings, compare_forms
from cotjax.errors import UsageError


def test_forms_are_timed_and_one_that_fails_is_named(monkeypatch, capsys):
    monkeypatch.setattr(forms, "named_model", lambda *_: tiny.model_config())
    wrong = Form(options=(("xla_no_such_option", True),))
    settings = Settings("tiny", "float32", layers=2, batch=2, length=32)
    asked = (Form(), wrong, Form(scan=True, joined=True))
    found = compare_forms(settings, Console(width=200), asked)
    assert list(found) == [asked[0], asked[2]] and min(found.values()) > 0
    printed = capsys.readouterr().out
    assert "no_such_option=True: " in printed, "with the compiler's reason"
    assert "scanned, remat dots, attention auto, joined" in printed


def test_no_time_is_said(monkeypatch, capsys):
    class Slow(forms._Bench):
        def compiled(self, form):
            forms.time.sleep(0.8)
            return super().compiled(form)

    monkeypatch.setattr(forms, "named_model", lambda *_: tiny.model_config())
    monkeypatch.setattr(forms, "_Bench", Slow)
    settings = Settings("tiny", "float32", layers=1, batch=1, length=8, seconds=1)
    assert not compare_forms(settings, Console(width=200), (Form(), Form(scan=True)))
    assert capsys.readouterr().out.count("no time left") == 2
    with pytest.raises(UsageError, match="--layers is 0"):
        compare_forms(Settings(layers=0))
