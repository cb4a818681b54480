"""The exporter: a checkpoint becomes a bundle. Lives on a workstation; the runtime never needs it."""
