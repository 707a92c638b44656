"""What a sweep has found, in words made from its numbers: nobody is called best whose interval others reach."""

from collections.abc import Sequence

from flows.sweep_findings import Measure, Method, draws_of, outside, overlap

NAMED = 3
"""Methods named in a sentence; of more, the number is told."""
COUNTED = 6
"""Corpora or tasks counted one by one in a sentence; of more, their mean alone."""


def removed(budget: str) -> str:
    """A budget, such as `25% removed`."""
    return f"Reduced {budget}" if budget.startswith("to ") else f"{budget} removed"


def in_words(methods: Sequence[Method], perplexity: Sequence[Measure], accuracy: Sequence[Measure]) -> str:
    """A line for every budget: the best method, how many beat chance, and what became of accuracy."""
    first = (perplexity or accuracy)[0]
    lines: list[str] = []
    without: list[str] = []
    for budget in dict.fromkeys(method.budget for method in methods):
        own = [method for method in methods if method.budget == budget]
        chosen = [method for method in own if not method.random]
        if not chosen:
            continue
        said = [f"{removed(budget)}: {_best(chosen, first)}."]
        draws = len(draws_of(own, budget, first))
        if draws > 1:
            counts = "; ".join(_beating(own, chosen, kind) for kind in (perplexity, accuracy) if kind)
            of = f"Of {_count(len(chosen), 'method')}, better than every one of {draws} random draws"
            said.append(f"{of}, interval included: {counts}.")
        else:
            without.append(budget)
        said += [_changed(chosen, accuracy[0])] if accuracy else []
        lines.append(" ".join(said))
    if without:
        lines.append(f"Without random draws nothing says whether methods beat chance: {', '.join(without)}.")
    return "\n".join(lines)


def _best(methods: list[Method], measure: Measure) -> str:
    ranked = sorted(methods, key=lambda method: (-measure.sign * method.estimate(measure).value, method.name))
    found = ranked[0].estimate(measure)
    ends = "" if found.low is None or found.high is None else f" (95% interval {found.low:+.3f} to {found.high:+.3f})"
    value = f"{found.value:+.3f} {measure.unit}{ends}"
    text = f"`{ranked[0].name}` has the best change of {measure.what} ({measure.of}), {value}"
    near = [f"`{method.name}`" for method in ranked[1:] if overlap(method.estimate(measure), found)]
    if near:
        names = ", ".join(near[:NAMED]) + (f" and {len(near) - NAMED} more" if near[NAMED:] else "")
        return f"{text}, but cannot be told from {names}: the intervals overlap"
    return f"{text}, its interval clear of {_count(len(ranked) - 1, 'other')}" if len(ranked) > 1 else text


def _beating(own: list[Method], chosen: list[Method], measures: Sequence[Measure]) -> str:
    """How many methods are better than every draw, corpus by corpus or task by task."""
    single = [measure for measure in measures if len(measure.names) == 1]
    counts = []
    for one in single if len(single) <= COUNTED else measures[:1]:
        draws = draws_of(own, own[0].budget, one)
        better = sum(outside(method.estimate(one), draws) == one.sign for method in chosen)
        counts.append(f"{better or 'none'} on {one.of}")
    return f"{measures[0].what} {', '.join(counts)}"


def _changed(chosen: list[Method], measure: Measure) -> str:
    """How many methods changed by more than their interval."""
    found = [method.estimate(measure) for method in chosen]
    fell = sum(one.high is not None and one.high < 0 for one in found)
    rose = sum(one.low is not None and one.low > 0 for one in found)
    name = f"{measure.what} ({measure.of})"
    if not fell and not rose:
        return f"Beyond its interval {name} changed with none."
    return f"Beyond its interval {name} fell with {fell or 'none'} and rose with {rose or 'none'}."


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
