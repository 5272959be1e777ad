"""Results of models of one table, as a table of text that pages can quote."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from benchmarks.common.store import Numbers
from benchmarks.tables.data import Split


class Measure(NamedTuple):
    """A column of the report."""

    title: str
    digits: int


HEAD = (
    Measure("nats a cell", 3),
    Measure("median", 3),
    Measure("AUC", 3),
    Measure("log-loss", 3),
    Measure("RMSE", 3),
    Measure("CRPS", 3),
    Measure("calibration error", 3),
    Measure("cover of 90%", 3),
    Measure("two samples", 3),
    Measure("fit, s", 1),
    Measure("peak, MiB", 0),
    Measure("ms a row", 2),
)
LEGEND = """\
nats a cell   of a random half of the known cells of each row given the others, and its median
AUC           of columns of a few values given all others, mean over columns; log-loss alike
RMSE, CRPS    of numeric columns given all others, over those of the column's mean and of its
              quantiles; mean over columns. CRPS by 19 quantiles
calibration   expected error, 15 bins of as many rows; cover: of intervals from 5% to 95%, both
              ends included; mean over columns
two samples   AUC of boosted trees that tell synthetic rows from real ones; 0.5 is best
peak          memory of training on top of what was there before
ms a row      to predict the headline column
"""


def table(data: Split, results: Mapping[str, Numbers]) -> str:
    """A table in Markdown, with a row for each model."""
    headline = data.headline
    kind = next((r["columns"].get(headline, {}).get("kind") for r in results.values()), None)
    own = ("AUC", "auc", 4) if kind == "choice" else ("CRPS", "crps", 3)
    titles = ["", *(m.title for m in HEAD), f"{headline}: {own[0]}"]
    lines = [_row(titles), _row(["---"] + ["--:"] * (len(titles) - 1))]
    for name, result in results.items():
        cells = [
            _shown(value, m.digits)
            for value, m in zip(_values(result, headline), HEAD, strict=True)
        ]
        if result.get("nats") is not None:
            cells[0] += f" ± {result['nats_error']:.3f}"
        of_headline = result["columns"].get(headline, {}).get(own[1])
        lines.append(_row([name, *cells, _shown(of_headline, own[2])]))
    return "\n".join(lines)


def by_column(data: Split, results: Mapping[str, Numbers]) -> str:
    """Log-losses or scores of all columns, with a row for each column."""
    names = list(results)
    lines = [_row(["", "measure", *names]), _row(["---", "---"] + ["--:"] * len(names))]
    for name in data.schema.names:
        kinds = {r["columns"][name]["kind"] for r in results.values() if name in r["columns"]}
        for measure in ("auc", "log_loss") if "choice" in kinds else ("relative_crps", "cover"):
            found = [r["columns"].get(name, {}).get(measure) for r in results.values()]
            lines.append(_row([name, measure, *(_shown(value, 3) for value in found)]))
    return "\n".join(lines)


def differences(results: Mapping[str, Numbers], first: str) -> str:
    """How many nats a cell others are behind one model, row by row of the test rows."""
    own = np.array(results[first]["nats_by_row"])
    lines = []
    for name, result in results.items():
        if name == first or "nats_by_row" not in result:
            continue
        gap = np.array(result["nats_by_row"]) - own
        error = gap.std(ddof=1) / np.sqrt(len(gap))
        lines.append(f"{name} is behind {first} by {gap.mean():+.3f} ± {error:.3f} nats a cell")
    return "\n".join(lines)


def _values(result: Numbers, headline: str) -> list[float | None]:
    columns = result["columns"].values()

    def mean(measure: str) -> float | None:
        return _mean(c[measure] for c in columns if c.get(measure) is not None)

    seconds = result["columns"].get(headline, {}).get("seconds_a_row")
    return [
        result.get("nats"),
        result.get("nats_median"),
        mean("auc"),
        mean("log_loss"),
        mean("relative_rmse"),
        mean("relative_crps"),
        mean("calibration_error"),
        mean("cover"),
        result.get("two_sample_auc"),
        result["fit_seconds"],
        result["peak_mebibytes"],
        None if seconds is None else 1000 * seconds,
    ]


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return float(np.mean(found)) if found else None


def _shown(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"
