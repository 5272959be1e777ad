"""Laws of rows of real tables: residual mixtures beside what else models a table.

Rows are split by a fixed seed, and all models are given the same rows, the same schema, the same
hidden cells and the same units: densities of real numbers and dates in the table's units, masses
of integers, categories and points. Measured are nats of hidden cells, predictions of every column
from all others, their calibration, synthetic rows, time and memory.

    python -m benchmarks.tables.compare --table adult [--rows N] [--peers NAME ...] [--quick]

Some methods come from packages of their own, which need older versions of others; give them an
environment of its own:

    python -m venv peers && peers/bin/pip install -e '.[tables]' -r benchmarks/tables/peers.txt

A method is skipped where its package is not installed. Results are kept in out/tables/, a file for
each method, so that several environments can each run some; the report shows what is there, and
is written to out/tables/<table>_<rows>_report.md, too. Delete a file to measure anew, and the
folder if the schema of a table has changed.
"""

import importlib
import importlib.util
import time
from pathlib import Path

from benchmarks.common import cli
from benchmarks.common.memory import in_fresh_process, peak_of
from benchmarks.common.store import OUT, Numbers, Store, beside
from benchmarks.common.timing import limit_threads, timed
from benchmarks.tables import data, measures, report
from benchmarks.tables.peer import Peer

OURS, FOR_INCOME, SHALLOW = "residual mixture", "residual mixture for income", "two layers"
PEERS = {
    OURS: "ours:ResidualMixture",
    FOR_INCOME: "ours:ForIncome",
    SHALLOW: "ours:TwoLayers",
    "normal mixture": "mixtures:NormalMixture",
    "product mixture": "mixtures:ProductMixture",
    "adversarial forest": "forest:AdversarialForest",
    "Gaussian copula": "copula:GaussianCopula",
    "boosted trees": "boosting:Boosting",
    "nearest neighbours": "imputers:NearestNeighbours",
    "iterative imputer": "imputers:Iterative",
}
QUICK_ROWS, QUICK_TEST = 1000, 200
# Rows to train on by default, where a table has more.
MOST_ROWS = 50_000
TEST_ROWS = 2000
# Cores that each method may use.
THREADS = 1


def peer_class(name: str) -> type[Peer]:
    """The class of a method."""
    module, kind = PEERS[name].split(":")
    found = getattr(importlib.import_module(f"benchmarks.tables.{module}"), kind)
    assert issubclass(found, Peer)
    return found


def measure(name: str, table: str, rows: int, test_rows: int, seconds: float | None) -> Numbers:
    """Trains a method and measures it, in a process that has done nothing else.

    Args:
        name: Of the method.
        table: Of the table.
        rows: To train on, at most.
        test_rows: To test on, at most.
        seconds: For ours to train for; by default its default time.
    """
    limit_threads(THREADS)
    own = data.load(table, rows, test_rows)
    kind = peer_class(name)
    peer: Peer = kind(seconds) if name in (OURS, FOR_INCOME, SHALLOW) else kind()  # type: ignore[call-arg]
    spent: list[float] = []
    peak = peak_of(lambda: spent.append(timed(lambda: peer.fit(own.train, own.schema))))
    start = time.perf_counter()
    result = measures.everything(peer, own)
    return result | {
        "train_rows": len(own.train),
        "test_rows": len(own.test),
        "fit_seconds": spent[0],
        "peak_mebibytes": peak,
        "measure_seconds": time.perf_counter() - start,
        "components": getattr(peer, "num_components", None),
    }


def run(store: Store, name: str, table: str, rows: int, test: int, seconds: float | None) -> None:
    """Measures a method unless its results are there, or it cannot be run here."""
    if store.has(name):
        return
    needs = peer_class(name).needs
    if needs is not None and importlib.util.find_spec(needs) is None:
        print(f"{name} is skipped: {needs} is not installed", flush=True)
        return
    numbers = in_fresh_process(measure, name, table, rows, test, seconds)
    store.save(name, numbers)
    print(
        f"{name}: trained in {numbers['fit_seconds']:.1f} s, "
        f"measured in {numbers['measure_seconds']:.1f} s",
        flush=True,
    )


def tell(store: Store, table: str, rows: int, test_rows: int, path: Path) -> None:
    """Prints what is there, and writes the tables."""
    own = data.load(table, rows, test_rows)
    results = store.numbers(PEERS)
    if not results:
        print("nothing was measured")
        return
    text = [f"{table}: {len(own.train)} rows to train on, {len(own.test)} to test on\n"]
    text += [report.table(own, results), ""]
    if "nats_by_row" in results.get(OURS, {}):
        text += [report.differences(results, OURS), ""]
    text += [report.by_column(own, results), ""]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(text))
    print("\n".join(text))
    print(report.LEGEND)


def main() -> None:
    parser = cli.make_parser(__doc__, quick="a small table, few rows", threads=False)
    parser.add_argument("--table", choices=data.TABLES, help="by default adult; titanic if quick")
    parser.add_argument("--rows", type=int, help="to train on, at most")
    parser.add_argument("--test", type=int, default=TEST_ROWS, help="rows to test on, at most")
    parser.add_argument("--peers", nargs="+", choices=PEERS, help="to measure; by default all")
    parser.add_argument("--seconds", type=float, help="for ours to train for")
    parser.add_argument("--report", action="store_true", help="measure nothing: only print")
    arguments = cli.parse(parser)
    quick = arguments.size == "quick"
    table = arguments.table or ("titanic" if quick else "adult")
    rows = arguments.rows or (QUICK_ROWS if quick else MOST_ROWS)
    test_rows = QUICK_TEST if quick else arguments.test
    try:
        data.TABLES[table].read()
    except (FileNotFoundError, ImportError) as error:
        print(f"{table} is skipped: {error}")
        return
    kind = "quick" if quick else f"{rows}" if test_rows == TEST_ROWS else f"{rows}_{test_rows}"
    prefix = OUT / "tables" / f"{table}_{kind}"
    store = Store(prefix)
    if not arguments.report:
        every = [name for name in PEERS if table == "adult" or name != FOR_INCOME]
        for name in arguments.peers or every:
            run(store, name, table, rows, test_rows, arguments.seconds)
    tell(store, table, rows, test_rows, beside(prefix, "report.md"))


if __name__ == "__main__":
    main()
