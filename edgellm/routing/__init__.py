"""Where an answer comes from: remotes, and what decides between them and the local model.

router       a Backend over a local model and remotes
policies     pure: facts in, decision out
course       one answer as it goes: local, remote, hand-off, end
  sources, attempts, asked, tokens   who can be asked; each call measured and billed once
  watch, risk, gain                  is the local answer good enough, and does asking pay
  handoff, hedge, pace, sticky       changing sources, racing them, what the last ones taught
  shadow, spans                      asking to learn; sending less of a long document
confidence/  P(correct) from signals and validators; packs, certificates
privacy/     the guard: the only door to remote/, the client for OpenAI's wire format
database     one SQLite file: budget, ledger; from it replay and drift
evaluation/  what a signal is worth, on recorded answers; graders: whether an answer is right
seams        the protocols between all these
"""
