"""The tables that `simulate`, `compare` and `audit privacy` print."""

from collections.abc import Callable, Mapping

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from codream_secure.audit.findings import PrivacyAudit
from codream_secure.config.methods import CLASS_ROWS, parse_method
from codream_secure.privacy.accounting import Release
from codream_secure.privacy.guarantee import Guarantee
from codream_secure.privacy.mechanisms import DiscreteGaussianSum, SampledGaussian
from codream_secure.report.text import percent, size
from codream_secure.runs.comparison_format import ComparisonResult, Means, PlanRecord
from codream_secure.runs.formats import Bytes, Graph, Summary
from codream_secure.runs.sizes_format import RoundSizes

_Rows = list[tuple[str, str]]


def summary_table(summary: Summary) -> Table:
    """Return the table of one run's summary."""
    table = Table(title=_title(summary), title_justify="left", show_header=False)
    table.add_column(no_wrap=True)
    table.add_column()
    for rows in (_accuracy_rows, _privacy_rows, _byte_rows, _protocol_rows, _time_rows):
        for name, value in rows(summary):
            table.add_row(name, value)
        table.add_section()
    return table


def _title(s: Summary) -> str:
    models = ", ".join(dict.fromkeys(s.models))
    return f"{s.method} on {s.dataset}, {s.partition}: {s.clients} clients ({models})"


def _accuracy_rows(s: Summary) -> _Rows:
    found = s.accuracy
    chosen = "last round" if s.privacy else "the last that validation does not rule out"
    own_mix = percent(found.personal_mean)
    return [
        ("test accuracy (observer's)", f"after round {s.reported_round} of {s.rounds}, {chosen}"),
        ("  independent training", percent(found.independent_mean)),
        ("  CoDream clients", f"{percent(found.clients_mean)} ± {percent(found.clients_std)}"),
        ("  server student", percent(found.server)),
        (
            "  on their own mix of classes",
            f"{own_mix} (independent {percent(found.independent_personal_mean)})",
        ),
    ]


def _privacy_rows(s: Summary) -> _Rows:
    privacy = s.privacy
    if privacy is None:
        return [("differential privacy", "none (turn on with --dp-eps)")]
    rows = [
        (
            "differential privacy",
            f"ε = {privacy.epsilon:.3f}, δ = {privacy.delta:g} ({privacy.accountant})",
        ),
        ("  unit", privacy.unit),
        ("  adjacency", privacy.adjacency),
        *(_release_row(release, privacy) for release in privacy.releases),
        ("  noise source", privacy.noise_source),
        ("  several of them together", _groups(privacy.groups)),
    ]
    if privacy.colluding:
        rows.append(("  if clients tell their noise", _groups(privacy.colluding)))
    if privacy.noise_source == "seeded":
        rows.append(("  WARNING", "experiment only: whoever knows the seed can remove the noise"))
    return rows


def _release_row(release: Release, privacy: Guarantee) -> tuple[str, str]:
    """Return how often something was released and with what noise."""
    found, name = release.mechanism, f"  {release.name}"
    if isinstance(found, SampledGaussian):
        return name, (
            f"{release.steps} steps of DP-SGD, noise multiplier {found.noise_multiplier:.3f}, "
            f"clip {privacy.clip:g}, sampling rate {found.sampling_rate:g}"
        )
    discrete = isinstance(found, DiscreteGaussianSum)
    shares = found.shares if isinstance(found, DiscreteGaussianSum) else 1
    noise = (found.variance * shares) ** 0.5 / found.l2
    kind = "discrete Gaussian" if discrete else "Skellam"
    told = f"{release.steps} x, {kind} noise, {noise:.3g} times the sensitivity"
    if release.name == "local training":
        return name, f"{told}, of its own"
    trusted = f"if at most {privacy.noise_colluders} of the clients tell their share"
    return name, f"{told}, {trusted}"


def _groups(groups: Mapping[int, float | None]) -> str:
    known = [f"{size}: ε = {e:.3g}" for size, e in groups.items() if e is not None]
    return ", ".join(known) or "beyond any use"


def _byte_rows(s: Summary) -> _Rows:
    sizes = s.bytes
    rows = [
        (
            "bytes per client",
            f"{size(sizes.per_client_up)} up, {size(sizes.per_client_down)} down",
        )
    ]
    rows += [
        (f"  {phase}", f"{size(by.up)} up, {size(by.down)} down")
        for phase, by in sizes.by_phase.items()
        if by.both
    ]
    rows.append(("  FedAvg, same rounds", _fedavg(sizes)))
    if sizes.break_even_parameters is not None:
        rows.append(("  equal to FedAvg at", f"{sizes.break_even_parameters:,} parameters"))
    return rows


def _fedavg(sizes: Bytes) -> str:
    one_way = sizes.fedavg_per_client_up
    if one_way is None:
        return "- (models differ)"
    who = "FedAvg" if 2 * one_way < sizes.both else "CoDream"
    return f"{size(one_way)} each way: {who} sends less"


def _graph(found: Graph) -> str:
    """Return which graph masks took, for whom it was made, and why it was taken."""
    why = f" (auto: {found.why})" if found.why else ""
    if found.neighbours is None:
        return f"{found.name}{why}"
    unsafe = "0" if found.unsafe_log2 is None else f"at most 2^{found.unsafe_log2:g}"
    return (
        f"{found.name}{why}: k = {found.neighbours}, t = {found.needed}, for {found.corrupt} "
        f"corrupt and {found.silent} silent; probability that it protects less: {unsafe}"
    )


def _protocol_rows(s: Summary) -> _Rows:
    found, dreaming = s.protocol, s.dreaming
    if dreaming and not dreaming.collaboration:
        return [("aggregation", "none: every client dreams alone (--no-collaboration)")]
    how = (
        f"masked ({found.threat_model} server, threshold {found.threshold} of {s.clients}, "
        f"up to {found.colluders} colluding clients)"
        if found.secure
        else "IN THE CLEAR (--no-secure): the server sees every client's input"
    )
    rows = [("aggregation", how)]
    if (graph := found.graph) and (graph.name != "complete" or graph.why):
        rows.append(("  graph", _graph(graph)))
    if found.round_trips_per_step is not None:
        trips = f"{found.round_trips_per_step:.2f}"
        if found.secure:
            trips += f", {found.key_exchanges} key exchanges included"
        rows.append(("  round trips a step", trips))
    if found.steps is not None:
        done = found.steps - (found.aborted_steps or 0)
        share = f" ({percent(found.completed_share)})" if found.steps else ""
        rows.append(("  steps completed", f"{done} of {found.steps}{share}"))
    if dreaming and dreaming.rolled_back:
        rows.append(("  WARNING", f"{dreaming.rolled_back} dream steps not finite, taken back"))
    if found.unanswered_requests:
        rows.append(("  requests unanswered", f"{found.unanswered_requests} (refused)"))
    return rows


def _time_rows(s: Summary) -> _Rows:
    seconds = s.seconds
    share = seconds.secure_aggregation / seconds.total if seconds.total else 0.0
    processes = f", in {s.resumed + 1} processes" if s.resumed else ""
    activities = ("local_training", "dreaming", "secure_aggregation", "acquisition", "independent")
    rows = [("seconds", f"{seconds.total:.1f}{processes}")]
    rows += [
        (f"  {name.replace('_', ' ')}", f"{getattr(seconds, name):.1f}") for name in activities
    ]
    rest = seconds.total - seconds.busy - seconds.independent
    rows.append(("  set-up and measuring", f"{rest:.1f}"))
    rows.append(("  share of aggregation", percent(share)))
    return rows


def audit_table(result: PrivacyAudit) -> Table:
    """Return the findings of `codream-secure audit privacy`."""
    title = f"privacy audit, {result.shadows} shadows, {result.seconds:.0f} seconds"
    table = Table("part", "what", "found", "claimed", "", title=title)
    marks = {True: Text("holds", "green"), False: Text("REFUTED", "red"), None: Text()}
    for row in result.findings:
        table.add_row(row.part, row.what, row.found, row.claimed, marks[row.holds])
    return table


def comparison_table(result: ComparisonResult) -> Table:
    """Return the table of what a comparison found: a row a method."""
    plan = result.plan
    table = Table(
        title=_comparison_title(result),
        title_justify="left",
        caption=_caption(plan),
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("method", no_wrap=True)
    for name in _COLUMNS:
        table.add_column(name.replace("TARGET", f"{plan.target or ''}"), justify="right")
    table.add_column("server\nsees")
    failures: list[str] = []
    for row in result.rows:
        if row.mean is None:
            reasons = {str(cell.failed) for cell in row.cells.values()}
            failures.append(f"{row.method}: {'; '.join(sorted(reasons))}")
            table.add_row(row.method, *["-"] * (len(_COLUMNS) + 1))
        else:
            shown = [show(row.mean) for show in _COLUMNS.values()]
            table.add_row(row.method, *shown, _seen(row.method, row.mean, plan))
    if failures:
        table.caption = "\n".join([*failures, str(table.caption)])
    return table


def _comparison_title(result: ComparisonResult) -> str:
    seeds = ", ".join(map(str, result.plan.seeds))
    return f"equal {result.plan.match}, as many as {result.reference} takes; seeds {seeds}"


def _caption(plan: PlanRecord) -> str:
    words = (
        "test: last round, the one model for all where there is one, else the clients' mean; "
        "std: over clients; val.: test accuracy of the round that validation chose. MB and "
        "iterations are a client's. own: on the clients' own mix of classes, beside what "
        "predicting each client's largest class reaches there (top) and training alone (the row "
        "of independent). server sees: masked sums (told: classes of one owner, whose sum is that "
        "client's own row), or each client's values."
    )
    if plan.trials > 1:
        words += f" Step sizes: the best of {plan.trials} on validation."
    return words


def _seen(name: str, mean: Means, plan: PlanRecord) -> str:
    """Return what the server sees of clients: nothing, sums, with what these tell, or each."""
    method = parse_method(name, secure=bool(plan.options.get("secure", True)))
    if method.family == "centralized":
        return "data"
    if method.family == "independent":
        return "-"
    if not method.secure:
        return "each"
    if method.family in CLASS_ROWS and mean.single_owner_classes:
        return f"sums, {mean.single_owner_classes:.0f} told"
    return "sums"


def _hundredths(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _accuracy(mean: Means) -> str:
    text = _hundredths(mean.accuracy)
    return text if mean.seeds == 1 else f"{text}±{_hundredths(mean.accuracy_spread)}"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _mega(value: float | None) -> str:
    return "-" if value is None else f"{value / 1e6:.2f}"


_COLUMNS: dict[str, Callable[[Means], str]] = {
    "test\n%": _accuracy,
    "val.\n%": lambda mean: _hundredths(mean.accuracy_validated),
    "std\n%": lambda mean: _hundredths(mean.clients_std),
    "own\n%": lambda mean: _hundredths(mean.personal),
    "top\n%": lambda mean: _hundredths(mean.largest_class),
    "MB\nup": lambda mean: _mega(mean.bytes_up),
    "MB\ndown": lambda mean: _mega(mean.bytes_down),
    "MB to\nTARGET": lambda mean: _mega(mean.bytes_to_target),
    "rounds": lambda mean: _count(mean.rounds),
    "trips": lambda mean: _count(mean.round_trips),
    "ε": lambda mean: "-" if mean.epsilon is None else f"{mean.epsilon:.2f}",
    "iter.": lambda mean: _count(mean.iterations),
    "s": lambda mean: _count(mean.seconds),
}


def sizes_table(found: RoundSizes) -> Table:
    """Return the table of what `compare --sizes` found: megabytes a round and client, both ways."""
    shape = found.shape
    table = Table(
        title=(
            f"MB a round and client, both ways: n = {shape.clients} clients, "
            f"{shape.batches} batches of {shape.dreams} dreams, q = {shape.bits} bits a "
            f"coordinate (b = {found.field_bits} in a sum), R = {shape.dream_steps} steps "
            f"(fast {shape.fast_steps}), M = 1"
        ),
        title_justify="left",
        caption=_crossover(found),
        caption_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
        padding=(0, 1, 0, 0),
    )
    table.add_column("", no_wrap=True)
    for row in found.rows:
        table.add_column(row.model.replace(" ", "\n"), justify="right")
    table.add_row("numbers, million", *(f"{row.numbers / 1e6:.2f}" for row in found.rows))
    columns = [row.both_ways() for row in found.rows]
    for name in columns[0]:
        values = (column[name] for column in columns)
        shown = ("-" if value is None else f"{value:,.1f}" for value in values)
        table.add_row(name.replace(": codream-fast", ": fast"), *shown)
    return table


def _crossover(found: RoundSizes) -> str:
    lines = [
        f"{name}: {at['codream'] / 1e6:,.1f} M (fast {at['codream-fast'] / 1e6:,.2f} M)"
        for name, at in found.crossover.items()
    ]
    return "dreams are smaller for models above, against " + "; ".join(lines)
