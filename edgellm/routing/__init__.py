"""Where an answer comes from: remotes, and what decides between them and the local model."""
