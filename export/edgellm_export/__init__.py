"""The exporter: a checkpoint becomes a bundle.

It lives on a workstation; the runtime never needs it.

    checkpoint/  files → Checkpoint          store     weights → data file, as the recipe says
    recipe       what becomes of a weight    arch/     one file per architecture → graph
    verify       the self-check              pipeline  all of it, in order
"""
