"""The hub's door to the exporter."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from edgellm.bundle.manifest import Source
from edgellm.errors import MissingExtra
from edgellm.hub.progress import Progress
from edgellm.stream import Sampling

_NEEDED = ("onnx_ir", "gguf")


@dataclass(frozen=True, slots=True)
class Conversion:
    """What to make a bundle of. `precision` None: what suits `source`; `sampling`: what the
    model's authors recommend, where the source itself does not say; `lora`: an adapter to merge."""

    source: Path
    origin: Source
    name: str
    precision: str | None = None
    sampling: Sampling | None = None
    lora: Path | None = None


@dataclass(frozen=True, slots=True)
class CalibrationOptions:
    """`text` None: the model's own words; `tokens` of it, None for enough. `cache`: where
    statistics are kept. `target_mb`: size of the weights file, None where the precision decides."""

    cache: Path
    text: Path | None = None
    tokens: int | None = None
    target_mb: float | None = None


@dataclass(frozen=True, slots=True)
class ShrinkOptions:
    """What to leave out; see edgellm_export.shrink.Shrink, which has the same fields."""

    keep_vocab: Path | None = None
    keep_scripts: tuple[str, ...] = ()
    drop_layers: int | None = None
    mlp_width: int | None = None
    text: Path | None = None

    @property
    def measured(self) -> bool:
        """Whether the model has to run on a text to tell what can go."""
        return self.drop_layers is not None or self.mlp_width is not None


@dataclass(frozen=True, slots=True)
class Forms:
    """What a bundle is made for: `kv` fp32, fp16 or int8, the type of its KV cache (None: that
    of the activations); `ort`: also in ONNX Runtime's own format; `qnn`: also graphs for NPUs;
    `fast_prefill`: also int8 weights for long prompts."""

    kv: str | None = None
    ort: bool = False
    qnn: bool = False
    fast_prefill: bool = False


class Converter(Protocol):
    def convert(self, job: Conversion, out: Path) -> None:
        """Fills the empty folder `out` with a bundle."""
        ...


class Exporter:
    """`edgellm_export` as a Converter; MissingExtra when what it needs is not installed."""

    def __init__(
        self,
        progress: Progress,
        calibration: CalibrationOptions | None = None,
        shrink: ShrinkOptions | None = None,
        lora_at_run_time: bool = False,
        forms: Forms = Forms(),
    ) -> None:
        missing = [name for name in _NEEDED if find_spec(name) is None]
        if missing:
            raise MissingExtra(
                f"making a bundle needs {' and '.join(missing)}: pip install 'edgellm[export]'"
            )
        self._progress = progress
        self._calibration = calibration
        self._shrink = shrink or ShrinkOptions()
        self._lora_at_run_time = lora_at_run_time
        self._forms = forms

    def convert(self, job: Conversion, out: Path) -> None:
        from edgellm_export.pipeline import Job, export_bundle
        from edgellm_export.quantize.calibrate import CALIBRATION_TOKENS, Calibration
        from edgellm_export.recipe import recipe
        from edgellm_export.shrink import Shrink

        chosen = recipe(job.precision) if job.precision else None
        sampling = generation_keys(job.sampling) if job.sampling else {}
        calibration = None
        if (options := self._calibration) is not None:
            calibration = Calibration(
                options.cache,
                options.text,
                CALIBRATION_TOKENS if options.tokens is None else options.tokens,
                target_mb=options.target_mb,
            )
        shrink = Shrink(**asdict(self._shrink))
        made = Job(job.source, chosen, job.origin, job.name, sampling, job.lora, calibration)
        made = replace(made, shrink=shrink, lora_at_run_time=self._lora_at_run_time)
        made = replace(made, **asdict(self._forms))
        export_bundle(made, out, self._progress.notice, self._progress.steps)


def is_recipe_file(precision: str) -> bool:
    """Whether a precision is the path of a recipe and not its name."""
    from edgellm_export.recipe import is_file

    return is_file(precision)


def generation_keys(sampling: Sampling) -> dict[str, Any]:
    """The keys of generation_config.json that say the same, neutral ones left out."""
    names = {"repeat_penalty": "repetition_penalty"}
    kept = ("temperature", "top_k", "top_p", "min_p", "repeat_penalty")
    neutral = asdict(Sampling())
    given = {k: v for k, v in asdict(sampling).items() if k in kept and v != neutral[k]}
    return {"do_sample": sampling.temperature > 0} | {names.get(k, k): v for k, v in given.items()}
