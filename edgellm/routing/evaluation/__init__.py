"""How well a confidence signal tells right answers from wrong ones."""
