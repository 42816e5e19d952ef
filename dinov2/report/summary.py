"""The report's first lines: what the numbers say, in sentences that claim no more than the intervals allow."""

from typing import NamedTuple

from dinov2.report.funnel import Step
from dinov2.report.table import RANDOM, Interval, Judged, Row

PRETRAINED = "pretrain"


class Fact(NamedTuple):
    """A number that stands large at the top of the page."""

    value: str
    about: str
    detail: str


def headline(judged: Judged | None, funnel: list[Step], teacher: str) -> list[Fact]:
    """Up to four facts: images found and kept, pretrained against random, the best student."""
    facts = []
    if funnel:
        last = funnel[-1]
        facts.append(
            Fact(f"{last.num_kept:,}", f"images kept after {last.stage}", f"of {funnel[0].num_in:,} found in pages")
        )
    if judged is None:
        return facts
    pretrained, random, best = judged.row(PRETRAINED), judged.row(RANDOM), _best_student(judged)
    if pretrained:
        facts.append(Fact(_percent(pretrained.knn.value), "k-NN top-1, pretrained", _range(pretrained.knn)))
    if pretrained and pretrained.over_random and random:
        detail = f"points; 95 % {_signed(pretrained.over_random.low)} to {_signed(pretrained.over_random.high)}"
        facts.append(Fact(_signed(pretrained.over_random.value), "over the same network untrained", detail))
    if best:
        detail = (
            f"{_signed(best.to_teacher.value)} points to its teacher {teacher}" if best.to_teacher else _range(best.knn)
        )
        facts.append(Fact(_percent(best.knn.value), f"k-NN top-1, student {best.model}", detail))
    return facts


def sentences(judged: Judged | None, funnel: list[Step], teacher: str) -> list[str]:
    """The summary paragraph, sentence by sentence."""
    lines = []
    if funnel:
        first, last = funnel[0], funnel[-1]
        lines.append(
            f"Of {first.num_in:,} image links found in the pages, {last.num_kept:,} images were left "
            f"after {last.stage}."
        )
    if judged is None:
        return [*lines, "Nothing was evaluated yet."]
    pretrained, random = judged.row(PRETRAINED), judged.row(RANDOM)
    if pretrained:
        size = f"{pretrained.num_parameters:,} parameters" if pretrained.num_parameters else "unknown size"
        lines.append(
            f"A vision transformer of {size}, pretrained on the curated images without labels, finds the label of "
            f"{_percent(pretrained.knn.value)} of {judged.num_test:,} held-out images by its nearest neighbours among "
            f"{judged.num_train:,} labelled ones."
        )
    if pretrained and random and pretrained.over_random:
        lines.append(_against_random(random, pretrained.over_random))
    lines += _baselines(judged, pretrained)
    lines += _students(judged, teacher)
    if judged.num_classes < 2:
        lines.append("There is only one label, so these accuracies say nothing: give seeds of two labels or more.")
    return lines


def _against_random(random: Row, over: Interval) -> str:
    numbers = f"(paired 95 % interval {_signed(over.low)} to {_signed(over.high)})"
    best = max(random.knn.value, random.patch_knn.value if random.patch_knn else 0.0)
    start = f"The same network with random weights finds {_percent(best)} by the better of its two tokens"
    if over.low > 0:
        return f"{start}: pretraining gained {100 * over.value:.1f} points {numbers}."
    if over.high < 0:
        return f"{start}: pretraining lost {-100 * over.value:.1f} points {numbers}."
    return f"{start}: the difference of {_signed(over.value)} points {numbers} cannot be told from chance."


def _baselines(judged: Judged, pretrained: Row | None) -> list[str]:
    rows = [row for row in judged.rows if row.kind == "baseline"]
    if not rows:
        return []
    numbers = " and ".join(f"{row.model} {_percent(row.knn.value)}" for row in rows)
    best = max(rows, key=lambda row: row.knn.value)
    if pretrained and best.knn.value >= pretrained.knn.value:
        return [f"Descriptors that learn nothing reach: {numbers}; on these labels the {best.model} is not beaten."]
    return [f"Descriptors that learn nothing reach: {numbers}."]


def _students(judged: Judged, teacher: str) -> list[str]:
    best = _best_student(judged)
    if best is None or best.to_teacher is None:
        return []
    gap = best.to_teacher
    numbers = f"{_percent(best.knn.value)}, {_signed(gap.value)} points to its teacher {teacher}"
    size = f"{best.num_parameters:,}" if best.num_parameters else "unknown"
    return [
        f"The best student, {best.model} ({size} parameters), reaches {numbers} "
        f"({_signed(gap.low)} to {_signed(gap.high)})."
    ]


def _best_student(judged: Judged) -> Row | None:
    return max((row for row in judged.rows if row.kind == "student"), key=lambda row: row.knn.value, default=None)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _signed(difference: float) -> str:
    return f"{100 * difference:+.1f}".replace("-", "\N{MINUS SIGN}")


def _range(value: Interval) -> str:
    return f"95 % interval {100 * value.low:.1f} to {100 * value.high:.1f}"
