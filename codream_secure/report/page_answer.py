"""The sentences at the top of a page: the question, and the answer that the numbers give."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from codream_secure.report.groups import Group
from codream_secure.report.text import number, percent, size
from codream_secure.runs.recorded_run import ALONE, TOGETHER, RecordedRun


@dataclass(frozen=True, slots=True)
class Headline:
    """A question and the sentences that answer it."""

    question: str
    sentences: tuple[str, ...]


def answer(groups: Sequence[Group]) -> Headline:
    """Return question and answer: what one kind of run reaches, or which of several is best."""
    if len(groups) == 1:
        return _about_one(groups[0])
    return Headline(
        "Which method reaches the best accuracy, and what does it send?",
        tuple(_about_several(groups)),
    )


def accuracy(group: Group) -> float | None:
    """Return the mean over seeds of the test accuracy, 0 to 1."""
    return group.mean(lambda run: run.accuracy)


def traffic(group: Group) -> float | None:
    """Return the bytes of one client, up and down, mean over seeds."""
    return group.mean(lambda run: run.bytes_both)


def reach(group: Group) -> str:
    """Return the lowest and highest accuracy of several seeds; empty for one."""
    found = group.figures(lambda run: run.accuracy)
    if len(found) <= 1:
        return ""
    return f"{len(found)} seeds, {percent(min(found))} to {percent(max(found))}"


def epsilon(group: Group) -> str:
    """Return the largest epsilon over seeds, or that there is none."""
    found = group.figures(lambda run: run.epsilon)
    if found:
        return f"{max(found):.3g}"
    return "none" if group.first.private is False else "-"


def _about_one(group: Group) -> Headline:
    reached = accuracy(group)
    if not group.sends:
        question = f"What does {group.label} reach?"
    elif group.mean(lambda run: run.independent) is None:
        question = f"What does {group.label} reach, at what cost in bytes and privacy?"
    else:
        question = "What does this run gain over training alone, at what cost in bytes and privacy?"
    if reached is None:
        return Headline(question, ("No round was finished, so there is no accuracy to report.",))
    sentences = [_gain(group, reached)]
    if group.sends:
        sentences.append(_cost(group))
    sentences.append(_privacy(group))
    return Headline(question, tuple(sentences))


def _gain(group: Group, reached: float) -> str:
    alone = group.mean(lambda run: run.independent)
    range_ = f" ({reach(group)})" if reach(group) else ""
    who = f"The clients of {group.label} reach"
    if group.first.one_model:
        who = f"The one model of {group.label} reaches"
    told = f"{who} {percent(reached)} on the test data{range_}"
    if not group.sends:
        return f"{told}; nobody sends anything."
    if alone is None:
        return f"{told}; training alone was not measured in the same run."
    points = 100 * (reached - alone)
    if round(points, 1) == 0:
        return f"{told}, as much as each training alone."
    less = "more" if points > 0 else "less"
    told += f", {abs(points):.1f} points {less} than each training alone ({percent(alone)})"
    spread = group.mean(lambda run: run.spread)
    if spread is not None and abs(reached - alone) < spread:
        told += f": no more than clients differ among themselves (± {100 * spread:.1f} points)"
    return f"{told}."


def _cost(group: Group) -> str:
    ours = traffic(group)
    if ours is None:
        return "How many bytes that took is not on record."
    up, down = (group.mean(lambda run: run.bytes_up), group.mean(lambda run: run.bytes_down))
    told = f"For that one client sent {size(up)} and received {size(down)}"
    theirs = group.mean(lambda run: run.fedavg_bytes)
    if not group.is_codream or theirs is None:
        return f"{told}."
    return (
        f"{told}; FedAvg of the same models over as many rounds moves {size(theirs)} both ways, "
        f"{_times(theirs, ours)}."
    )


def _times(theirs: float, ours: float) -> str:
    if not theirs or not ours:
        return "which is not comparable"
    if theirs >= ours:
        return f"{number(theirs / ours)} times as much"
    return f"so CoDream sends {number(ours / theirs)} times as much as FedAvg"


def _privacy(group: Group) -> str:
    first = group.first
    if first.private is None:
        return "Whether it was differentially private is not on record."
    if first.private:
        return _guarantee(group)
    if not group.sends:
        return "There is no differential privacy (ε: none)."
    if first.secure is False:
        return "There is no differential privacy, and the server sees every client's input."
    return "There is no differential privacy: masks hide who sent what, not what the sum says."


def _guarantee(group: Group) -> str:
    first = group.first
    found = group.figures(lambda run: run.epsilon)
    if not found:
        return "Differentially private, but ε is not on record."
    told = f"Differential privacy of {first.unit}: ε = {max(found):.3g}"
    told += f" at δ = {first.delta:g}" if first.delta is not None else ""
    if first.seeded_noise:
        told += "; but the noise came from the seed, and whoever knows that removes it"
    return f"{told}.{_colluding(first)}{_route(first)}"


def _colluding(run: RecordedRun) -> str:
    """Return what epsilon is if some clients tell the server their share of the noise."""
    if not run.colluding:
        return ""
    known = [f"{n}: {'none' if e is None else f'{e:.3g}'}" for n, e in run.colluding.items()]
    return f" ε by the number of clients that tell the server their noise: {', '.join(known)}."


def _route(run: RecordedRun) -> str:
    """Return which of the two private routes was taken, and what it costs beside the other."""
    if run.unit == "one client":
        return ""
    if run.method == "codream-messenger":
        return (
            " Noisy sums over everybody trained a common model, and clients learn from it: all of "
            "the noise is shared, so that colluders weaken all that was learned; --method codream "
            "trains each client under noise of its own, at a cost in accuracy."
        )
    if run.method == "codream":
        return (
            " Each client trained under noise of its own, which needs no trust in others and costs "
            "accuracy; --method codream-messenger learns from noisy sums over everybody."
        )
    return ""


def _about_several(groups: Sequence[Group]) -> Iterable[str]:
    scenes: dict[tuple[str | None, int | None], list[Group]] = {}
    for group in groups:
        scenes.setdefault((group.first.partition, group.first.clients), []).append(group)
    for (partition, clients), among in scenes.items():
        where = f"With {partition or 'unknown'} data, {clients or '-'} clients: "
        yield from _about_scene(among, where if len(scenes) > 1 else "")
    if max(len(group.runs) for group in groups) == 1:
        yield "One seed each: how far another seed would move these figures is not known."


def _about_scene(groups: Sequence[Group], where: str) -> Iterable[str]:
    reached = {group.label: found for group in groups if (found := accuracy(group)) is not None}
    ranked = sorted(
        (g for g in groups if g.label in reached and g.method != TOGETHER),
        key=lambda group: -reached[group.label],
    )
    if ranked:
        best, together = ranked[0], len(ranked) < len(reached)
        among = " of the methods that leave data with its owners" if together else ""
        private = f", at ε = {epsilon(best)}" if best.first.private else ""
        told = (
            f"{best.label} reaches the best accuracy{among}: {percent(accuracy(best))}, "
            f"with {_both_ways(best)}{private}{_shared(ranked)}."
        )
        yield f"{where}{told if where else _capital(told)}"
    for group in groups:
        if group.method == TOGETHER and group.label in reached:
            yield (
                f"{where}{_capital(group.label)}, for which all data would have to lie in one "
                f"place, reaches {percent(reached[group.label])}."
            )
    for group in ranked:
        if group.is_codream:
            yield from _about_codream(group, ranked, where)
    missing = [group.label for group in groups if group.label not in reached]
    if missing:
        yield f"{where}No finished round yet: {', '.join(missing)}."


def _about_codream(group: Group, ranked: Sequence[Group], where: str) -> Iterable[str]:
    own = accuracy(group) or 0.0
    ahead = [other for other in ranked if (accuracy(other) or 0.0) > own and other is not group]
    alone = group.mean(lambda run: run.independent)
    measured = any(other.method == ALONE for other in ranked)
    if ahead:
        told = "; ".join(
            f"{other.label}, {_told(other)}{_overlap(group, other)}" for other in ahead
        )
        yield f"{where}{group.label} ({_told(group)}) loses to: {told}."
    else:
        yield f"{where}{group.label} loses to no other method here{_cheaper(group, ranked)}."
    if alone is not None and alone > own and not measured:
        yield f"{where}{group.label} loses to training alone, which reaches {percent(alone)}."


def _cheaper(group: Group, ranked: Sequence[Group]) -> str:
    ours = traffic(group)
    less = [
        other
        for other in ranked
        if other.sends and ours is not None and (traffic(other) or ours) < ours
    ]
    return "; less is sent by: " + "; ".join(f"{g.label}, {_told(g)}" for g in less) if less else ""


def _shared(ranked: Sequence[Group]) -> str:
    same = [g.label for g in ranked[1:] if accuracy(g) == accuracy(ranked[0])]
    return f" (so does {', '.join(same)})" if same else ""


def _overlap(one: Group, other: Group) -> str:
    def read(run: RecordedRun) -> float | None:
        return run.accuracy

    first, second = one.figures(read), other.figures(read)
    if min(len(first), len(second)) > 1 and max(first) >= min(second):
        return " (their seeds' ranges overlap)"
    return ""


def _told(group: Group) -> str:
    """Return accuracy, bytes and privacy in a few words."""
    parts = [percent(accuracy(group)), _in_all(group)]
    if group.first.private:
        parts.append(f"ε = {epsilon(group)}")
    return ", ".join(parts)


def _in_all(group: Group) -> str:
    if not group.sends:
        return "nothing sent"
    moved = traffic(group)
    return "bytes not on record" if moved is None else f"{size(moved)} in all"


def _both_ways(group: Group) -> str:
    """Return what a client sends and receives."""
    if not group.sends or traffic(group) is None:
        return _in_all(group)
    up, down = group.mean(lambda run: run.bytes_up), group.mean(lambda run: run.bytes_down)
    return f"{size(up)} sent and {size(down)} received by a client"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
