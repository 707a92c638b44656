"""What a sweep has found, in words made from its numbers: whose intervals overlap is told with who is best."""

from collections.abc import Sequence

from flows.sweep.findings import Measure, Method, draws_of, outside, overlap

NAMED = 3
"""Methods named in a sentence; of more, the number is told."""
COUNTED = 6
"""Corpora or tasks counted one by one in a sentence; of more, their mean alone."""


def removed(budget: str) -> str:
    """A budget, such as `25% removed`."""
    return f"Reduced {budget}" if budget.startswith("to ") else f"{budget} removed"


def in_words(methods: Sequence[Method], perplexity: Sequence[Measure], accuracy: Sequence[Measure]) -> str:
    """A line for every unpruned model and budget: the best method, how many beat chance, what became of accuracy."""
    lines: list[str] = []
    without: list[str] = []
    for base, budget in dict.fromkeys((method.base, method.budget) for method in methods):
        own = [method for method in methods if (method.base, method.budget) == (base, budget)]
        chosen = [method for method in own if not method.random]
        first = next((one for one in [*perplexity, *accuracy] if any(method.each(one) for method in chosen)), None)
        if first is None:
            continue
        group = f"{base}, {removed(budget)}" if base else removed(budget)
        said = [f"{group}: {_best(chosen, first)}."]
        draws = len(draws_of(own, own[0], first))
        if draws > 1:
            counts = "; ".join(_beating(own, chosen, kind) for kind in (perplexity, accuracy) if kind)
            of = f"Of {_count(len(chosen), 'method')}, better than every one of {draws} random draws"
            said.append(f"{of}, interval included: {counts}.")
        else:
            without.append(group.removesuffix(" removed"))
        said += [_changed(chosen, accuracy[0])] if accuracy else []
        lines.append(" ".join(said))
    if without:
        lines.append(f"Without random draws nothing says whether methods beat chance: {', '.join(without)}.")
    return "\n".join(lines)


def _best(methods: list[Method], measure: Measure) -> str:
    measured = [(method, found) for method in methods if (found := method.estimate(measure))]
    (best, found), *others = sorted(measured, key=lambda one: (-measure.sign * one[1].value, one[0].name))
    text = f"`{best.name}` has the best change of {measure.what} ({measure.of}), {found.value:+.3f} {measure.unit}"
    if found.low is None or found.high is None:
        return f"{text}, without an interval"
    seeds = f"mean of {len(best.rows)} seeds, whose 95% intervals reach from" if len(best.rows) > 1 else "95% interval"
    text += f" ({seeds} {found.low:+.3f} to {found.high:+.3f})"
    known = [(method.name, other) for method, other in others if other.low is not None]
    near = [f"`{name}`" for name, other in known if overlap(other, found)]
    if near:
        names = ", ".join(near[:NAMED]) + (f" and {len(near) - NAMED} more" if near[NAMED:] else "")
        return f"{text}, overlapping with {'those' if near[1:] else 'that'} of {names}"
    return f"{text}, clear of {_count(len(known), 'other')}" if known else text


def _beating(own: list[Method], chosen: list[Method], measures: Sequence[Measure]) -> str:
    """How many methods are better than every draw, corpus by corpus or task by task."""
    single = [measure for measure in measures if len(measure.names) == 1]
    counts = []
    for one in single if len(single) <= COUNTED else measures[:1]:
        draws = draws_of(own, own[0], one)
        found = [method.estimate(one) for method in chosen]
        better = sum(estimate is not None and outside(estimate, draws) == one.sign for estimate in found)
        counts.append(f"{better or 'none'} on {one.of}")
    return f"{measures[0].what} {', '.join(counts)}"


def _changed(chosen: list[Method], measure: Measure) -> str:
    """How many methods changed by more than their interval."""
    found = [one for method in chosen if (one := method.estimate(measure))]
    fell = sum(one.high is not None and one.high < 0 for one in found)
    rose = sum(one.low is not None and one.low > 0 for one in found)
    name = f"{measure.what} ({measure.of})"
    if not fell and not rose:
        return f"Beyond its interval {name} changed with none."
    return f"Beyond its interval {name} fell with {fell or 'none'} and rose with {rose or 'none'}."


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
