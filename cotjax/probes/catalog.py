"""The probes by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ml_collections import ConfigDict

from cotjax.errors import UsageError
from cotjax.probes.attention import AttentionProbe
from cotjax.probes.conflict import ConflictProbe
from cotjax.probes.faithfulness import FaithfulnessProbe
from cotjax.probes.floor import FloorProbe
from cotjax.probes.gradient import GradientProbe
from cotjax.probes.likelihood import LikelihoodProbe
from cotjax.probes.preference import PreferenceProbe
from cotjax.probes.probe import Probe
from cotjax.probes.progress import ProgressProbe
from cotjax.probes.revisions import RevisionsProbe

PROBES: Mapping[str, Probe] = {
    PreferenceProbe.name: PreferenceProbe(),
    RevisionsProbe.name: RevisionsProbe(),
    ProgressProbe.name: ProgressProbe(),
    AttentionProbe.name: AttentionProbe(),
    GradientProbe.name: GradientProbe(),
    ConflictProbe.name: ConflictProbe(),
    FaithfulnessProbe.name: FaithfulnessProbe(),
    FloorProbe.name: FloorProbe(),
    LikelihoodProbe.name: LikelihoodProbe(),
}


def probes_of(config: ConfigDict, names: Sequence[str] = ()) -> list[Probe]:
    """Return the probes of a config, or of these names. Raises UsageError, as `Probe.check`."""
    chosen = []
    for name in names or config.probes.names:
        if name not in PROBES:
            raise UsageError(
                f"probes.names: unknown probe {name!r}; there are {', '.join(PROBES) or 'none'}"
            )
        PROBES[name].check(config)
        chosen.append(PROBES[name])
    return chosen
