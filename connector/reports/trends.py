"""Charts of a measure over audits."""

import math
from collections.abc import Sequence
from itertools import pairwise

from alignment.plurals import counted
from connector.audits.history import AuditSummary
from connector.audits.measure import BOTH
from connector.audits.measures import find_measure
from connector.reports.charts import Line, lines, svg
from connector.reports.glossary import called
from connector.states import AuditVerdict

TICKS = 6
KINDS = {"text-to-image": ("text", "text → image"), "image-to-text": ("image", "image → text"), BOTH: ("both", "")}


def trend(moments: Sequence[AuditSummary], name: str, part: str = "", *, beside: str | None = None) -> str | None:
    """Draw a measure over comparable audits; return None if no audit has it.

    Measures between modalities depend on the number of groups, so only audits with as many as the newest are drawn.

    Args:
        moments: the audits, oldest first.
        name: the measure.
        part: stage or stratum of the measure.
        beside: a recall; audits without it are left out.
    """
    drawn, title = [], f"{called(name)}, {part}" if part else called(name)
    for direction, (kind, label) in KINDS.items():
        points = [
            (number, moment, m)
            for number, moment in enumerate(moments)
            for m in moment.measures
            if (m.direction, m.part, m.name) == (direction, part, name) and math.isfinite(m.value)
            if beside is None or any((other.part, other.name) == ("", beside) for other in moment.measures)
        ]
        if direction == BOTH and points:
            groups = points[-1][2].queries
            points = [point for point in points if point[2].queries == groups]
            title += f", {counted(groups, 'group')}"
        if points:
            low = [_finite(m.low, m.value) for _, _, m in points]
            high = [_finite(m.high, m.value) for _, _, m in points]
            drawn.append(Line(kind, label, [n for n, _, _ in points], [m.value for _, _, m in points], low, high))
    if not drawn:
        return None
    measure, _ = find_measure(name)
    every = math.ceil(len(moments) / TICKS)
    numbered = [(number, moment) for number, moment in enumerate(moments) if (len(moments) - 1 - number) % every == 0]
    figure = lines(
        title,
        drawn,
        x_title="audits of " + " to ".join(dict.fromkeys(f"{end.at:%F}" for end in (moments[0], moments[-1]))),
        x_ticks=[(number, str(moment.audit)) for number, moment in numbered],
        floor=measure.low if measure else 0.0,
        ceiling=measure.high if measure else math.inf,
        rules=[number + 0.5 for number, (a, b) in enumerate(pairwise(moments)) if a.release != b.release],
        crosses=[number for number, moment in enumerate(moments) if moment.verdict == AuditVerdict.BROKEN],
    )
    return svg(figure)


def _finite(value: float | None, otherwise: float) -> float:
    return value if value is not None and math.isfinite(value) else otherwise
