"""Any answer comes out as the server sent it, letter for letter, through both frameworks: many examples."""

from __future__ import annotations

import pytest
from any_answer import CASES, WAYS, Checks
from hypothesis import HealthCheck, Phase, given, settings

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("way", WAYS)
def test_what_the_server_sent_is_what_the_user_gets(way):
    """Hundreds of answers a way, each in every form."""
    with Checks(way) as checks:

        @settings(max_examples=300, deadline=None, phases=[Phase.generate], suppress_health_check=[*HealthCheck])
        @given(case=CASES)
        def each(case):
            checks.check(case)

        each()
