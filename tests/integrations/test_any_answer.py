"""Any answer comes out as the server sent it, letter for letter, through both frameworks; more examples in ``tests/slow``."""

from __future__ import annotations

import pytest
from any_answer import CASES, TELLING, WAYS, Checks
from hypothesis import HealthCheck, Phase, given, settings

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(params=WAYS)
def checks(request):
    with Checks(request.param) as made:
        yield made


def test_an_answer_that_has_everything_in_it(checks):
    """Tags, quotes, code, odd characters and blanks; with and without thinking, stopped and not, in every way."""
    for case in TELLING:
        checks.check(case)


@settings(max_examples=4, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=[*HealthCheck])
@given(case=CASES)
def test_what_the_server_sent_is_what_the_user_gets(checks, case):
    """Any text."""
    checks.check(case)
