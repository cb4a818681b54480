"""P(correct) of an answer from its beginning: what lets a hopeless answer be given up early.

A model of whole answers misjudges beginnings: they are short, and their lowest log-probability is
still to come. So a second one is fitted to cuts of the graded answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgellm.routing.confidence.fusion import Fusion, Material, fit
from edgellm.routing.evaluation.records import Graded
from edgellm.routing.signals import Observed, features

# Where answers are cut; closer together where most is decided.
CUTS = (1, 2, 3, 4, 6, 8, 11, 16, 24, 32, 48)


def beginning(seen: Observed, tokens: int) -> Observed:
    """The answer as it stood after so many tokens.

    Recorded tokens have no text of their own: the text is cut at the tokens' share of it.
    """
    text = seen.text[: round(len(seen.text) * tokens / len(seen.tokens))]
    cut = seen.tokens[:tokens]
    return replace(seen, tokens=cut, finish_reason=None, hidden=None, text=text)


def fit_so_far(answers: Sequence[Graded]) -> Fusion:
    """P(correct) of the whole answer from its beginning, fitted to cuts of these answers."""
    cuts = [(g, n) for g in answers for n in CUTS if n < len(g.observed.tokens)]
    material = Material(
        np.array([features(beginning(g.observed, n)) for g, n in cuts]),
        None,
        None,
        np.array([g.lenient for g, _ in cuts], bool),
        np.array([f"{g.family}/{g.template}" for g, _ in cuts]),
    )
    return fit(material, with_probe=False)
