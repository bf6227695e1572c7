"""``python -m bench --compare OLD.json NEW.json``: prints what `comparison` finds."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import results
from .comparison import IMPROVEMENT, LEAST_CHANGE, REGRESSION, WITHIN, Comparison, Ratio, Row, compare
from .records import is_ours
from .table import print_table, ratio, seconds

WRONG_FILES = 2
HEADER = ("case", "pass", "pool", "contender", "old", "new", "new/old", "within", "to eager", "")
MEANS = ("geometric means", "pass", "contender", "rows", "new/old", "to eager")


def read_results(path: Path) -> dict[str, Any]:
    """A results file that holds something. Raises ResultsError for any other, and for one that is not there."""
    if not path.is_file():
        raise results.ResultsError(f"{path} is not there: --compare takes two results files, the old one first")
    content = results.read(path)
    if not (content["operators"] or content["unfinished"] or content.get("training")):
        raise results.ResultsError(f"{path} holds no results")
    return content


def main(paths: Sequence[Path], operators: Sequence[str] = ()) -> int:
    """Prints the comparison. Returns 0; 1 where fastdl has become slower or wrong; 2 where the files are of no use."""
    try:
        old, new = (read_results(path) for path in paths)
        comparison = compare(old, new, list(operators))
    except results.ResultsError as error:
        print(f"bench: {error}", file=sys.stderr)
        return WRONG_FILES
    show(comparison, *paths)
    return 1 if comparison.failed else 0


def show(comparison: Comparison, old: Path, new: Path) -> None:
    print(f"old: {old}\nnew: {new}")
    for difference in comparison.differences:
        print(f"different {difference}")
    if comparison.relative:
        print(
            "The machines, or how fast they copied memory, differ: verdicts go by each contender's time over eager "
            "torch's in the same rounds, and eager itself gets none. The times beside them are for information."
        )
    else:
        print("Same machine, same speed of copying: verdicts go by the times.")
    print(
        f"A change counts where it is over {LEAST_CHANGE:.0%} and the spreads of both files, and what their visits to "
        "one case differ by, leave it on one side of 1."
    )
    for operator in dict.fromkeys(row.place.operator for row in comparison.rows):
        print(f"\n{operator}")
        rows = [row for row in comparison.rows if row.place.operator == operator]
        print_table(HEADER, [cells(row, relative=comparison.relative) for row in rows], sys.stdout, plain=True)
    print_table(
        MEANS,
        [
            [operator, pass_name, name, str(count), ratio(times), ratio(to_eager)]
            for (operator, pass_name, name), (count, times, to_eager) in comparison.means().items()
        ],
        sys.stdout,
        plain=True,
    )
    for title, lines in (("only in the old file", comparison.only_old), ("only in the new file", comparison.only_new)):
        for line in lines:
            print(f"{title}: {line}")
    for line in comparison.broken:
        print(f"broken: {line}")
    print(verdict(comparison))
    sys.stdout.flush()


def verdict(comparison: Comparison) -> str:
    """The last line: how many of fastdl's rows, and of the others', are worse, better and neither."""

    def counts(rows: Sequence[Row]) -> str:
        number = {kind: sum(row.verdict == kind for row in rows) for kind in (REGRESSION, IMPROVEMENT, WITHIN)}
        return (
            f"{number[REGRESSION]} regressions, {number[IMPROVEMENT]} improvements, {number[WITHIN]} within the spread"
        )

    ours = [row for row in comparison.rows if is_ours(row.contender)]
    others = [row for row in comparison.rows if not is_ours(row.contender)]
    return f"fastdl: {counts(ours)}; the others: {counts(others)}."


def cells(row: Row, *, relative: bool) -> list[str]:
    basis = row.to_eager if relative else row.times
    words = {REGRESSION: "REGRESSION", IMPROVEMENT: "improvement", WITHIN: ""}
    if not is_ours(row.contender):
        words[REGRESSION], words[IMPROVEMENT] = "slower", "faster"
    return [
        row.place.case, "fwd+bwd" if row.place.pass_name == "forward+backward" else row.place.pass_name.replace(
            "forward", "fwd"), row.place.pool or "-", row.contender, seconds(row.old.median), seconds(row.new.median),
        ratio(row.times.value), bounds(basis), ratio(row.to_eager.value if row.to_eager else None), words[row.verdict],
    ]  # fmt: skip


def bounds(value: Ratio | None) -> str:
    return "-" if value is None else f"{value.low:.2f}..{value.high:.2f}"
