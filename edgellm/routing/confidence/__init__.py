"""How likely an answer is right: signals fused by a model fitted to graded answers."""
