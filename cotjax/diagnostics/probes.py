"""The probes that there are, and their metrics."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from cotjax.diagnostics.attention import AttentionRow
from cotjax.diagnostics.conflict import ConflictRow
from cotjax.diagnostics.faithfulness import FaithfulnessRow
from cotjax.diagnostics.floor import FloorRow
from cotjax.diagnostics.gradient import GradientRow
from cotjax.diagnostics.likelihood import LikelihoodRow
from cotjax.diagnostics.metric import Metric
from cotjax.diagnostics.preference import PreferenceRow
from cotjax.diagnostics.probe_rows import Measured, ProbeRow, probe_files, read_probe
from cotjax.diagnostics.progress import ProgressRow
from cotjax.diagnostics.revisions import RevisionRow

# Name -> its rows. `cotjax.probes` has the code that measures them.
PROBE_ROWS: Mapping[str, type[ProbeRow]] = {
    "preference": PreferenceRow,
    "revisions": RevisionRow,
    "progress": ProgressRow,
    "attention": AttentionRow,
    "gradient": GradientRow,
    "conflict": ConflictRow,
    "faithfulness": FaithfulnessRow,
    "floor": FloorRow,
    "likelihood": LikelihoodRow,
}

PROBE_METRICS: dict[str, Metric] = {
    name: metric for row in PROBE_ROWS.values() for name, metric in row.metrics.items()
}
# Difference of two metrics, on the same states -> the two.
PROBE_DIFFERENCES: dict[str, tuple[str, str]] = {
    name: pair for row in PROBE_ROWS.values() for name, pair in row.differences.items()
}


def count_probes(run_folder: Path) -> Iterator[Measured]:
    """Yield what each row of each probe in a run's folder counts for.

    Raises:
      DataError: a file is malformed; the message names the line.
    """
    for name, row in PROBE_ROWS.items():
        for path in probe_files(run_folder, name):
            heading, rows = read_probe(path, row)
            for each in rows:
                yield Measured.of(heading, each)
