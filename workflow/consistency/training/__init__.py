"""The training of every network: the loop, its steps, its data feed and its checkpoints."""
