"""Where steps end, and what is reasoning: tag families, boundaries, and nothing cut inside code, JSON or a tool call."""

from __future__ import annotations

import json
import sys
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_chains.core.families import FAMILIES, TOOL_MARKERS, ThinkTags, detect_tags, template_hash
from entropy_chains.core.steps import Phase, Scanner, Segmentation, detect_segmentation
from entropy_chains.errors import InputError


def boundaries(text, boundary="line", thinking=True, tags=None):
    """The prefixes of ``text`` after which a step may end, fed a character at a time."""
    scanner, found = Scanner(tags, boundary, thinking=thinking), []
    for n, c in enumerate(text, 1):
        scanner.feed(c)
        if scanner.at_boundary:
            found.append(n)
    return found


def pieces(text, boundary="line"):
    """``text`` cut at its boundaries."""
    cuts = [0, *boundaries(text, boundary), len(text)]
    return [text[a:b] for a, b in pairwise(cuts) if a < b]


# --- phases


@pytest.mark.parametrize("tags", FAMILIES, ids=lambda t: t.open)
def test_every_family(tags):
    """Before, thinking, answer; a boundary only while thinking."""
    scanner = Scanner(tags, "line")
    texts = (" \n", tags.open, "one\n", "two\n", tags.close, tags.after, "three\n")
    phases = [(scanner.feed(text), scanner.at_boundary) for text in texts]
    thinking, answer = Phase.THINKING, Phase.ANSWER
    expected = [
        (Phase.BEFORE, False),
        (thinking, False),
        (thinking, True),
        (thinking, True),
        (Phase.BEFORE if tags.in_channels else answer, False),  # what a channel's next message is, its header tells
        (answer, False),
        (answer, False),
    ]
    assert phases == expected


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


def test_a_closing_tag_ends_everything():
    """Inside a fence, JSON or a tool call: the thinking is over all the same."""
    for start in ("```\ncode", '{"a": ', "<tool_call>x"):
        scanner = Scanner(None, "line", thinking=True)
        scanner.feed(start)
        assert scanner.protected
        assert scanner.feed("</think>") is Phase.ANSWER
        assert not scanner.protected


def test_in_the_refine_loop_tags_mean_nothing():
    """A step is a call: every token of it is reasoning, and no text is a boundary."""
    assert boundaries("<think>a\n\nb</think>\n\n", "call") == []
    scanner = Scanner(None, "call", thinking=True)
    scanner.feed("<think>a</think>b")
    assert scanner.phase is Phase.THINKING


# --- boundaries


def test_lines_and_paragraphs():
    """A line ends with its line end; a paragraph with the blank line after it, also one of spaces, also after a carriage return."""
    assert pieces("a\nb\n\nc") == ["a\n", "b\n", "\n", "c"]
    assert pieces("a\nb\n\nc\n \t\nd", "blank_line") == ["a\nb\n\n", "c\n \t\n", "d"]
    assert pieces("a\r\nb\r\n\r\nc", "blank_line") == ["a\r\nb\r\n\r\n", "c"]
    assert pieces("a\r\nb") == ["a\r\n", "b"]


def test_a_deeply_indented_line_is_not_blank():
    """Sixty spaces and a word are not a paragraph's end."""
    assert boundaries("a\n" + " " * 60 + "word\n", "blank_line") == []


def test_a_token_that_goes_on_after_the_line_end_is_no_boundary():
    """The step ends with the line, not in the middle of the next one."""
    scanner = Scanner(None, "line", thinking=True)
    scanner.feed("a\nb")
    assert not scanner.at_boundary


# --- code, JSON, tool calls


@pytest.mark.parametrize(
    "code",
    [
        "```python\nx = 1\n\ny = 2\n```\n",
        "~~~\na\n\n```\n\nb\n~~~\n",
        "````md\n```\ninner\n```\n\n````\n",
        "  ```\nindented\n\n  ```\n",
        "- ```sh\n  ls\n\n  ```\n",
        "> ```\n> quoted\n> ```\n",
        "1. ```\nx\n```\n",
        "```\r\na\r\n\r\n```\r\n",
    ],
)
def test_no_step_ends_inside_a_fence(code):
    """The fence is one piece, and afterwards lines end steps again."""
    assert pieces(f"before\n{code}after\n") == ["before\n", code, "after\n"]


def test_backticks_that_open_nothing():
    """Code between three backticks on one line is no fence, nor is a word in single ones."""
    assert pieces("```x = 1```\nnext\n`y`\n") == ["```x = 1```\n", "next\n", "`y`\n"]


@pytest.mark.parametrize(
    "document",
    [
        '{"a": 1,\n "b": [1,\n 2]}\n',
        '{\n  "a": {\n    "b": "}\\" {"\n  }\n}\n',
        "[\n  1,\n  2\n]\n",
        "[[1, 2],\n [3, 4]]\n",
        '{"a": "x",\r\n "b": 2}\r\n',
        '{\n\n"a": 1\n\n}\n',
    ],
)
@pytest.mark.parametrize("before", ["", "The call is: "])
def test_no_step_ends_inside_json(document, before):
    """On its own lines or after a colon."""
    assert pieces(f"first\n{before}{document}after\n") == ["first\n", f"{before}{document}", "after\n"]


def test_a_list_of_numbers_on_its_own_lines():
    """A line's first bracket is enough; in the middle of a line numbers in brackets are an interval as often as JSON."""
    assert pieces("first\n[1,\n 2,\n 3]\nafter\n") == ["first\n", "[1,\n 2,\n 3]\n", "after\n"]


@pytest.mark.parametrize(
    "text",
    [
        "[0, 1) is half open\nnext\nlast\n",
        "x in [0, 1)\nnext\nlast\n",
        "{x | x > 0\nnext\nlast\n",
        "[ ] to do\nnext\nlast\n",
        "{}\nnext\nlast\n",
        'So ["\nnext\nlast\n',
    ],
)
def test_mathematics_is_not_json_for_long(text):
    """An unbalanced bracket holds a boundary back for two lines at most, so that stopping never silently ends."""
    assert boundaries(text)[-2:] == [len(text) - len("last\n"), len(text)]


@pytest.mark.parametrize("text", ["\\[\nx \\in [0, 1)\n\\]\n", "\\{\n", "\\left\\{\nx\n"])
def test_latex_brackets_are_not_json(text):
    """Display mathematics begins with a bracket and a line end, and may hold a half-open interval."""
    assert boundaries(text + "after\n")[-1] == len(text + "after\n")


@pytest.mark.parametrize(("opened", "closed"), TOOL_MARKERS.items(), ids=TOOL_MARKERS)
def test_no_step_ends_inside_a_tool_call(opened, closed):
    """In any split of the marker; a call without a closing text lasts."""
    for parts in ([opened], list(opened), [opened[:-1], opened[-1]]):
        scanner = Scanner(None, "line", thinking=True)
        for part in [*parts, '{"name":\n', "x\n", "\n"]:
            scanner.feed(part)
            assert not scanner.at_boundary
        assert scanner.protected
        for part in [closed or "", "\n"]:
            scanner.feed(part)
        assert scanner.at_boundary is (closed is not None)


# --- any split of any text

MARKS = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<function=",
    "</function>",
    "```",
    "~~~",
    "`",
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "a",
    "Wait",
    "1",
    "=",
    "<",
    ">",
    "|",
    "é",
    "[1",
]
WORDS = st.sampled_from([*MARKS, "\n", "\n\n", "\r\n", " ", "  ", "- ", "> ", '"', "\\", '{"a":', "x" * 50])


def split(text, cuts):
    """``text`` in pieces that end at ``cuts``."""
    at = sorted({0, len(text), *(c % (len(text) + 1) for c in cuts)})
    return [text[a:b] for a, b in pairwise(at)]


def state(scanner):
    return scanner.phase, scanner.at_boundary, scanner.protected


@settings(max_examples=500, deadline=None)
@given(
    st.lists(WORDS, max_size=40), st.lists(st.integers(0, 400), max_size=40), st.sampled_from(["line", "blank_line"]), st.booleans()
)
def test_the_split_into_tokens_changes_nothing(words, cuts, boundary, thinking):
    """Where a token ends, phase, boundary and protection are those of the same text fed character by character."""
    text = "".join(words)
    by_character, expected = Scanner(None, boundary, thinking=thinking), {}
    for n, c in enumerate(text, 1):
        by_character.feed(c)
        expected[n] = state(by_character)
    scanner, at = Scanner(None, boundary, thinking=thinking), 0
    for token in split(text, cuts):
        scanner.feed(token)
        at += len(token)
        assert state(scanner) == expected[at]


@settings(max_examples=500, deadline=None)
@given(st.lists(WORDS, max_size=40), st.text("ab =<|{`1", max_size=20), st.sampled_from(["line", "blank_line"]), st.booleans())
def test_no_step_and_no_thinking_ends_with_a_quiet_text(words, text, boundary, thinking):
    """Whatever came before: thinking goes on after it, and no step may end."""
    scanner = Scanner(None, boundary, thinking=thinking)
    for word in words:
        scanner.feed(word)
    before = scanner.phase
    assert scanner.quiet(text) is bool(text)  # the tags of this family end with ">"
    after = scanner.feed(text)
    assert after is before or (before is Phase.BEFORE and after is Phase.ANSWER)  # an output that begins with it has no thinking
    assert not (text and scanner.at_boundary)


@pytest.mark.parametrize("tags", FAMILIES)
def test_what_ends_something_is_not_quiet(tags):
    """A line end and either tag of every family."""
    for text in ("\n", "a\n", tags.open, tags.close, tags.close[-1], ""):
        assert not Scanner(tags).quiet(text)


TEXT = st.text(st.sampled_from('ab "\\{}[],:\n\t`~<>/é'), max_size=12)
SCALARS = st.none() | st.booleans() | st.integers(-99, 99) | TEXT
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=10)


@settings(max_examples=400, deadline=None)
@given(
    st.lists(JSON, max_size=3) | st.dictionaries(TEXT, JSON, max_size=3),
    st.sampled_from([None, 1, 2, 4, "\t"]),
    st.sampled_from(["", "So: ", "x = 1\n\n", "Call it with "]),
    st.sampled_from(["line", "blank_line"]),
    st.booleans(),
)
def test_no_boundary_inside_any_json_document(value, indent, before, boundary, ascii_only):
    """Any document as ``json.dumps`` writes it, on its own line or within one; a boundary after it comes back."""
    document = json.dumps(value, indent=indent, ensure_ascii=ascii_only)
    text = f"{before}{document}\n\nnext\n\n"
    found = boundaries(text, boundary)
    assert not [n for n in found if len(before) < n < len(before) + len(document)]
    assert found[-1] == len(text)


CODE = st.text(st.sampled_from('ab "{}[]()=:\n\t~<>/\\'), max_size=60)


@settings(max_examples=300, deadline=None)
@given(
    CODE, st.sampled_from(["```", "````", "~~~"]), st.sampled_from(["", "python", "c++"]), st.sampled_from(["line", "blank_line"])
)
def test_no_boundary_inside_any_code_fence(code, fence, language, boundary):
    """Any code without the fence itself."""
    code = code.replace("~~~", "~~")
    before, block = "Try:\n\n", f"{fence}{language}\n{code}\n{fence}"
    found = boundaries(f"{before}{block}\nx\n\n", boundary)
    assert not [n for n in found if len(before) < n <= len(before) + len(block)]


def test_memory_stays_constant():
    """200,000 characters without a line end, in an open bracket or outside, leave a scanner as small as ten do."""
    for text in ("word ", '{"a', "```\n", "<tool_call>", " "):
        scanner = Scanner(None, "line", thinking=True)
        sizes = []
        for _ in range(2):
            for _ in range(20_000 if sizes else 2):
                scanner.feed(text)
            held = [getattr(scanner, name) for name in scanner.__slots__ if hasattr(scanner, name)]
            held += [scanner._tail, scanner._line]
            sizes.append(sum(map(sys.getsizeof, held)))
        assert sizes[1] <= sizes[0] + 300


# --- settings and labels


@pytest.mark.parametrize(
    ("fields", "name"),
    [({"boundary": "word"}, "boundary"), ({"min_tokens": 0}, "min_tokens"), ({"min_tokens": True}, "min_tokens")],
)
def test_impossible_segmentations_are_refused(fields, name):
    """The message names the field."""
    with pytest.raises(InputError, match=name):
        Segmentation.from_dict(fields)


def test_a_segmentation_is_written_as_it_is_read():
    """The form of the files."""
    fields = {"boundary": "line", "min_tokens": 7}
    assert Segmentation.from_dict(fields).to_dict() == fields


def test_a_template_may_name_its_steps():
    """A comment in the template wins over paragraphs of 32 tokens."""
    assert detect_segmentation("{#- entropy-chains: boundary=line min_tokens=8 -#}{{ x }}") == Segmentation("line", 8)
    assert detect_segmentation(None) == detect_segmentation("{{ x }}") == Segmentation("blank_line", 32)


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
