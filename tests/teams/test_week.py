"""A team's week in its short form."""

from teams.week import WEEK, play


def test_week_of_a_team_keeps_what_it_claims(tmp_path):
    diary = play("tiny", tmp_path)
    assert [(step.day, step.title) for step in diary.steps[1:]] == [(day, title) for day, title, _ in WEEK]
    assert all(step.claims for step in diary.steps)
