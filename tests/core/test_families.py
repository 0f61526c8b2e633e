"""Thinking tags of model families: found in templates, refused where impossible; and the hash of a template."""

from __future__ import annotations

import pytest

from entropy_chains.core.families import FAMILIES, ThinkTags, detect_tags, template_hash
from entropy_chains.core.steps import Phase, Scanner
from entropy_chains.errors import InputError


@pytest.mark.parametrize("tags", FAMILIES, ids=lambda t: t.open)
def test_every_family(tags):
    """Before, thinking, answer; a boundary only while thinking; tags found in a template that names them."""
    scanner = Scanner(tags, "line")
    texts = (" \n", tags.open, "one\n", "two\n", tags.close, tags.after, "three\n")
    phases = [(scanner.feed(text), scanner.at_boundary) for text in texts]
    thinking, answer = Phase.THINKING, Phase.ANSWER
    expected = [
        (Phase.BEFORE, False),
        (thinking, False),
        (thinking, True),
        (thinking, True),
        (answer, False),
        (answer, False),
        (answer, False),
    ]
    assert phases == expected
    assert detect_tags(f"{{{{ '{tags.open}' }}}}") == tags


def test_tags_are_found_only_where_they_are():
    """A template without thinking has none; a closing tag alone is enough, but not gpt-oss's general <|end|>."""
    assert detect_tags(None) is None
    assert detect_tags("{{ messages }}") is None
    assert detect_tags("content.split('</think>')[-1]") == ThinkTags()
    assert detect_tags("<|user|>{{ m }}<|end|>") is None


@pytest.mark.parametrize("bad", ["", "x" * 49])
def test_impossible_tags_are_refused(bad):
    """An empty tag would match everywhere, one longer than the scanner's history nowhere."""
    with pytest.raises(InputError, match="open is"):
        ThinkTags(bad, "</think>")
    with pytest.raises(InputError, match="close is"):
        ThinkTags("<think>", bad)


def test_tags_without_special_characters_work_in_any_split():
    """A family's tag may end in any character."""
    for parts in (["Thoughts:", "x\n", "Answer:", "y"], list("Thoughts:x\nAnswer:y")):
        scanner = Scanner(ThinkTags("Thoughts:", "Answer:"), "line")
        for part in parts:
            scanner.feed(part)
        assert scanner.phase is Phase.ANSWER


def test_the_template_hash_does_not_change_with_a_last_line_end():
    """Jinja does not render it, and servers leave it out: the policy is for both."""
    assert template_hash("a", ThinkTags()) == template_hash("a\n", ThinkTags()) != template_hash("a\n\n", ThinkTags())


def test_the_template_hash_changes_with_what_matters():
    """Template, tags and the text after them; the form is the policy file's."""
    labels = {
        template_hash("a", ThinkTags()),
        template_hash("b", ThinkTags()),
        template_hash("a", None),
        template_hash("a", ThinkTags(after="")),
    }
    assert len(labels) == 4
    assert all(label.startswith("sha256:") and len(label) == 23 for label in labels)
