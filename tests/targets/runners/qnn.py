"""Graphs for NPUs on QNN's emulator: python qnn.py JOB RESULT, in an environment with
onnxruntime-qnn. The job names the folder of the host, the graphs, a prompt and what follows."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import onnxruntime_qnn

NAME = "qnn"
# Snapdragon 8 Gen 3, and float16 arithmetic on it.
CHIP = {"backend_type": "htp", "soc_model": "57"}
STRICT = {
    "session.disable_cpu_ep_fallback": "1",
    "session.record_ep_graph_assignment_info": "1",
}


def opened(path: str, entries: Mapping[str, str], chip: Mapping[str, str]) -> Any:
    """The session on the NPU, or no session: nothing may fall back to the CPU."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    for key, value in {**STRICT, **entries}.items():
        settings.add_session_config_entry(key, value)
    device = next(device for device in ort.get_ep_devices() if device.ep_name == NAME)
    settings.add_provider_for_devices([device], dict(chip))
    session = ort.InferenceSession(path, sess_options=settings)
    session.disable_fallback()
    return session


def compiled(path: str, folder: Path) -> dict[str, Any]:
    """The size of the context compiled for the chip, and what runs from it on the emulator."""
    folder.mkdir()
    context = folder / (Path(path).stem + "_ctx.onnx")
    entries = {"ep.context_enable": "1", "ep.context_file_path": str(context)}
    opened(path, entries, {**CHIP, "enable_htp_prepare_only": "1"})
    (binary,) = folder.glob("*.bin")
    return {"context": context.name, "binary_bytes": binary.stat().st_size}


def runner(session: Any) -> Any:
    names = [value.name for value in session.get_outputs()]
    return lambda feed: dict(zip(names, session.run(names, dict(feed)), strict=True))


def main(job_file: str, result_file: str) -> None:
    job = json.loads(Path(job_file).read_text())
    sys.path.append(job["host"])
    from host import Host

    ort.register_execution_provider_library(NAME, onnxruntime_qnn.get_library_path())
    sessions = {"qnn_embed": ort.InferenceSession(job["graphs"]["qnn_embed"])}
    nodes, contexts = {}, {}
    for name in ("qnn_prefill", "qnn_decode"):
        path = job["graphs"][name]
        sessions[name] = opened(path, {}, CHIP)
        parts = sessions[name].get_provider_graph_assignment_info()
        nodes[name] = {part.ep_name: 0 for part in parts}
        for part in parts:
            nodes[name][part.ep_name] += len(part.get_nodes())
        contexts[name] = compiled(path, Path(job["work"]) / name)
    inputs = {n: {v.name: v.shape for v in s.get_inputs()} for n, s in sessions.items()}
    host = Host(inputs, {name: runner(session) for name, session in sessions.items()})
    logits = [host.prompt(job["prompt"]), *(host.token(token) for token in job["following"])]
    np.save(Path(job["work"]) / "logits.npy", np.stack(logits))
    versions = {"onnxruntime": ort.__version__, "partitions": len(parts)}
    result = {"versions": versions, "nodes": nodes, "contexts": contexts}
    Path(result_file).write_text(json.dumps(result))


if __name__ == "__main__":
    main(*sys.argv[1:])
