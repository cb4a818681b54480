"""A confidence pack: one file that knows how far answers of one bundle can be trusted.

    pack.npz    arrays of the fitted models, and `meta`: the bundle it belongs to, what it was
                fitted on, and graded answers kept aside for certificates

A pack speaks for the weights it was fitted on, known by their sha256: after quantizing again the
same signals mean something else, so another bundle is refused.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgellm.errors import Corrupt, Incompatible, NotFound
from edgellm.routing.confidence import fusion
from edgellm.routing.confidence.boosted import Boosted
from edgellm.routing.confidence.certify import Certificate, certify
from edgellm.routing.confidence.fusion import Fusion, Near, Tokens
from edgellm.routing.confidence.isotonic import Isotonic
from edgellm.routing.confidence.logistic import Logistic
from edgellm.routing.signals import FEATURES, Observed, features

PACK_VERSION = 1
# A pack is some hundred kilobytes; a larger file is not one.
LIMIT_BYTES = 8 << 20
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class About:
    """What a pack belongs to and comes from. `graded_sha256` is that of the graded prompts."""

    model: str
    precision: str
    weights_sha256: str
    graded: int
    graded_sha256: str
    features: tuple[str, ...] = FEATURES
    version: int = PACK_VERSION

    def __post_init__(self) -> None:
        if self.version != PACK_VERSION:
            raise Incompatible(
                f"a confidence pack of version {self.version}; this edgellm reads version "
                f"{PACK_VERSION}: run edgellm route calibrate again"
            )
        if self.features != FEATURES:
            raise Incompatible(
                "the confidence pack was made of other signals than this edgellm computes; "
                "run edgellm route calibrate again"
            )


@dataclass(frozen=True, slots=True)
class Pack:
    """The fitted models; a Confidence for the router. `kept_scores` and `kept_correct` (M,) are
    graded answers that nothing was fitted on: certificates come from them. `so_far` judges answers
    that are not finished; None: as if they were."""

    about: About
    before_answer: tuple[Logistic, Isotonic] | None
    after_answer: Fusion
    kept_scores: NDArray[np.float64]
    kept_correct: NDArray[np.bool_]
    so_far: Fusion | None = None

    def before(self, observed: Observed) -> float | None:
        """P(correct) from the prompt's hidden states alone; None without them."""
        if self.before_answer is None or observed.hidden is None:
            return None
        model, calibrator = self.before_answer
        return float(calibrator(model(prompt_states(observed)))[0])

    def after(self, observed: Observed) -> float:
        """P(correct) of an answer, or of what there is of it so far."""
        if observed.finish_reason is None and self.so_far is not None:
            return float(self.so_far(features(observed)[None], None, None)[0])
        prompts, answers = fusion.stack([observed.hidden])
        return float(self.after_answer(features(observed)[None], prompts, answers)[0])

    def certify(self, risk: float, confidence: float = 0.95) -> Certificate:
        """The threshold for a risk; see `certify.certify`."""
        return certify(self.kept_scores, self.kept_correct, risk, confidence)

    def check(self, weights_sha256: str) -> None:
        """Incompatible unless the pack belongs to these weights."""
        if weights_sha256 != self.about.weights_sha256:
            raise Incompatible(
                f"the confidence pack is for other weights ({self.about.model} "
                f"{self.about.precision}, sha256 {self.about.weights_sha256[:12]}…; the bundle has "
                f"{weights_sha256[:12]}…); run edgellm route calibrate for this bundle"
            )


def prompt_states(observed: Observed) -> NDArray[np.float64]:
    """(1, 2 D): after the last prompt token, and the mean over the prompt."""
    hidden = observed.hidden
    if hidden is None:
        raise ValueError("no hidden states were observed")
    return np.concatenate([hidden.prompt_last, hidden.prompt_mean]).astype(np.float64)[None]


def save(pack: Pack, path: Path) -> None:
    """Write the pack; float16 where the numbers are many and small."""
    arrays: Arrays = {"meta": np.array(json.dumps(asdict(pack.about)))}
    after = pack.after_answer
    arrays |= _tokens("", after)
    if pack.so_far is not None:
        arrays |= _tokens("so_far.", pack.so_far)
    if after.probe is not None and after.together is not None and after.near is not None:
        arrays |= _linear("probe", after.probe) | _line("together", after.together)
        arrays["near.landmarks"] = after.near.landmarks.astype(np.float16)
        arrays["near.centre"], arrays["near.spread"] = after.near.centre, after.near.spread
        arrays["near.most"] = np.array(after.near.most)
    if pack.before_answer is not None:
        arrays |= _linear("before", pack.before_answer[0])
        arrays |= _line("before", pack.before_answer[1])
    arrays["kept.scores"], arrays["kept.correct"] = pack.kept_scores, pack.kept_correct
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    part.replace(path)


def load(path: Path) -> Pack:
    """The pack in a file. NotFound, Corrupt or Incompatible name it."""
    if not path.is_file():
        raise NotFound(f"no confidence pack at {path}; make one with edgellm route calibrate")
    if path.stat().st_size > LIMIT_BYTES:
        raise Corrupt(f"{path} has {path.stat().st_size} bytes; a confidence pack is smaller")
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        about = json.loads(str(arrays["meta"]))
        about["features"] = tuple(about["features"])
        pack = _assemble(About(**about), arrays)
        _try(pack, arrays)
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        IndexError,
        zipfile.BadZipFile,
    ) as e:
        raise Corrupt(f"{path} is not a confidence pack: {str(e)[:200]}; make it again") from e
    return pack


def _assemble(about: About, arrays: Arrays) -> Pack:
    alone, so_far = _read_tokens("", arrays), None
    if "so_far.tokens.weights" in arrays:
        so_far = _read_tokens("so_far.", arrays)
    probe = together = near = None
    if "probe.weights" in arrays:
        probe, together = _read_linear("probe", arrays), _read_line("together", arrays)
        landmarks = arrays["near.landmarks"].astype(np.float32)
        near = Near(
            landmarks, arrays["near.centre"], arrays["near.spread"], float(arrays["near.most"])
        )
    before = None
    if "before.weights" in arrays:
        before = _read_linear("before", arrays), _read_line("before", arrays)
    after = Fusion(alone.tokens, alone.alone, probe, together, near)
    return Pack(about, before, after, arrays["kept.scores"], arrays["kept.correct"], so_far)


def _try(pack: Pack, arrays: Mapping[str, NDArray[Any]]) -> None:
    """ValueError or IndexError now, not at the first answer, when shapes do not fit together."""
    states = None
    if pack.after_answer.near is not None:
        states = np.zeros((1, len(pack.after_answer.near.centre)))
    blank = np.zeros((1, len(FEATURES)))
    p = pack.after_answer(blank, states, states)
    if pack.so_far is not None:
        p = np.concatenate([p, pack.so_far(blank, None, None)])
    if not np.all((p >= 0) & (p <= 1)) or pack.kept_scores.shape != pack.kept_correct.shape:
        raise ValueError("its numbers are no probabilities")
    if any(not np.all(np.isfinite(a)) for name, a in arrays.items() if name not in _OPEN):
        raise ValueError("it holds numbers that are not finite")


# A tree node that is not split has an infinite threshold, nearness without enough prompts no limit.
_OPEN = ("meta", "trees.thresholds", "so_far.trees.thresholds", "near.most")


def _tokens(at: str, model: Fusion) -> Arrays:
    """What a fusion says of tokens alone, under names that begin with `at`."""
    return {
        **_linear(f"{at}tokens", model.tokens.logistic),
        **_trees(f"{at}trees", model.tokens.boosted),
        **_line(f"{at}alone", model.alone),
    }


def _read_tokens(at: str, arrays: Mapping[str, NDArray[Any]]) -> Fusion:
    tokens = Tokens(_read_linear(f"{at}tokens", arrays), _read_trees(f"{at}trees", arrays))
    return Fusion(tokens, _read_line(f"{at}alone", arrays), None, None, None)


def _linear(name: str, model: Logistic) -> Arrays:
    return {
        f"{name}.mean": model.mean.astype(np.float32),
        f"{name}.scale": model.scale.astype(np.float32),
        f"{name}.weights": model.weights.astype(np.float32),
        f"{name}.bias": np.array(model.bias),
    }


def _read_linear(name: str, arrays: Mapping[str, NDArray[Any]]) -> Logistic:
    mean, scale, weights = (
        arrays[f"{name}.{part}"].astype(np.float64) for part in ("mean", "scale", "weights")
    )
    return Logistic(mean, scale, weights, float(arrays[f"{name}.bias"]))


def _line(name: str, line: Isotonic) -> Arrays:
    return {f"{name}.knots": line.scores, f"{name}.values": line.probabilities}


def _read_line(name: str, arrays: Mapping[str, NDArray[Any]]) -> Isotonic:
    return Isotonic(arrays[f"{name}.knots"], arrays[f"{name}.values"])


def _trees(name: str, model: Boosted) -> Arrays:
    return {
        f"{name}.features": model.features.astype(np.int16),
        f"{name}.thresholds": model.thresholds,
        f"{name}.leaves": model.leaves.astype(np.float32),
        f"{name}.bias": np.array(model.bias),
    }


def _read_trees(name: str, arrays: Mapping[str, NDArray[Any]]) -> Boosted:
    return Boosted(
        arrays[f"{name}.features"].astype(np.int32),
        arrays[f"{name}.thresholds"],
        arrays[f"{name}.leaves"].astype(np.float64),
        float(arrays[f"{name}.bias"]),
    )
