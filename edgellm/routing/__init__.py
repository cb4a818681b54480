"""When to ask a larger model, and how to be sure of it: remote, privacy, budget, confidence."""
