"""What a run's page begins with: the answer, its figure, the verdicts and the OOD matrix."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from cotjax.report.answer import answer
from cotjax.report.arms import twin_of
from cotjax.report.figures import facet_svg
from cotjax.report.forest import facets
from cotjax.report.matrix import matrix
from cotjax.report.section import Section
from cotjax.report.summary import Summary
from cotjax.report.verdicts import verdicts

_BESIDE = 6  # arms


@dataclass(frozen=True)
class Panel:
    """A part of a figure. `alt`: the panel in words."""

    label: str
    alt: str
    svg: Markup


@dataclass(frozen=True)
class Front:
    """The begin of a run's page.

    Attributes:
      prefix: of the ids of its elements, which differ between the runs of a page.
      sentences: the answer, three of them.
      figure: the answer's, a panel for each domain.
      twin: label of the arm that was trained on actions alone; "" without one.
    """

    summary: Summary
    title: str
    prefix: str
    sentences: tuple[str, ...]
    figure: tuple[Panel, ...]
    verdicts: Section
    matrix: Section
    twin: str

    @property
    def beside(self) -> bool:
        """Whether the figure stands beside the sentences on a wide screen, so that both are seen.

        Of many arms it is too high for that.
        """
        return len(self.summary.compared) <= _BESIDE


def front_of(summary: Summary, title: str, prefix: str = "") -> Front:
    """Return the begin of a run's page, or of its part in a page of several runs."""
    figure = tuple(
        Panel(facet.title, facet.alt, Markup(facet_svg(facet, f"{prefix}answer-{number}-")))
        for number, facet in enumerate(facets(summary))
    )
    twin = twin_of(summary.arms)
    return Front(
        summary,
        title,
        prefix,
        answer(summary),
        figure,
        verdicts(summary),
        matrix(summary),
        summary.label(twin) if twin else "",
    )
