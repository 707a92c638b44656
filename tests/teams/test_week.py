"""A team's week in its short form."""

import re
from pathlib import Path

from teams.week import play

PAGE = Path(__file__).parents[2] / "docs/week.md"


def test_week_of_a_team_keeps_what_its_page_claims(tmp_path):
    diary = play("tiny", tmp_path)
    rows = re.findall(r"^\| (\w{3}) \| (.*) \| (.*) \| [\d.]+ \|$", PAGE.read_text(), re.MULTILINE)
    assert [(step.day, step.title, "; ".join(step.claims)) for step in diary.steps] == rows
