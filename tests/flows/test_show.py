"""What the terminal says of comparisons."""

from flows import show
from flows.runs import Comparison


def test_comparison_interval_is_students_and_there_is_none_of_few_documents(capsys):
    found = {
        "log_perplexity/wiki": {"value": 0.5, "stderr": 0.1, "n": 10},
        "q/acc": {"value": 0.25, "stderr": 0.1, "n": 5},
    }
    show.comparison(Comparison("a" * 32, "b" * 32, found, {}, "the same"))
    wiki, quiz = (line for line in capsys.readouterr().out.splitlines() if "0.1000" in line)
    assert "+0.2738 to +0.7262" in wiki  # 0.1 times 2.262, the t of 9 degrees of freedom
    assert " to " not in quiz
