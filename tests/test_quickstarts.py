"""How the demo runs the two quickstarts; that they run is shown by the demo itself."""

from __future__ import annotations

import json

import pytest

from entropy_chains.demo import quickstarts


def test_the_comparison_by_hand():
    """Two questions: 300 tokens in full, 200 stopped: a third saved; one answer lost of two."""
    found = quickstarts.compared([(True, 100), (True, 200)], [(True, 100), (False, 100)])
    assert found["tokens_saved"] == pytest.approx(1 / 3)
    assert (found["accuracy_full"], found["accuracy"], found["accuracy_change"]) == (1.0, 0.5, -0.5)


def test_a_framework_that_is_missing_is_told_with_the_line_to_type(monkeypatch, tmp_path):
    """The demo goes on, and ``demo.json`` says why there are no figures."""
    monkeypatch.setattr(quickstarts, "_is_there", lambda name: False)
    story = {"questions": 1}
    quickstarts.add_quickstarts(story, tmp_path, lambda name, total: lambda count: None)
    assert "pip install" in story["quickstarts"]["langchain_quickstart.py"]["skipped"]
    assert json.loads((tmp_path / "demo.json").read_text()) == story


def test_a_quickstart_that_fails_is_told(monkeypatch, tmp_path, capsys):
    """A quickstart's own error is shown, and does not end the demo."""
    (tmp_path / "broken.py").write_text("raise ValueError('no such thing')")
    monkeypatch.setattr(quickstarts, "EXAMPLES", tmp_path)
    monkeypatch.setattr(quickstarts, "QUICKSTARTS", {"broken.py": (("json",), "")})
    found = quickstarts.run_quickstarts(tmp_path / "policy.json", lambda count: None)
    assert "no such thing" in found["broken.py"]["skipped"]
    quickstarts.show_quickstarts(found)
    assert "broken.py" in capsys.readouterr().out


def test_each_runs_on_one_core(tmp_path, monkeypatch):
    """Whatever the environment asks for: threads of so small a model wait for each other where the machine has other work."""
    told = 'import json, torch; print(json.dumps({"threads": {"threads": torch.get_num_threads()}}))\n'
    (tmp_path / "told.py").write_text(told)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.setattr(quickstarts, "EXAMPLES", tmp_path)
    monkeypatch.setattr(quickstarts, "QUICKSTARTS", {"told.py": (("torch",), "pip install torch")})
    assert quickstarts.run_quickstarts(tmp_path / "policy.json", lambda _: None) == {"threads": {"threads": 1}}
