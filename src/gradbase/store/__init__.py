"""The parameter store: shards as state machines, a log, checkpoints, and a chosen consistency."""
