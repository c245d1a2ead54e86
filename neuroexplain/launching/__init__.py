"""Many machines: the steps of a command in shards, and what runs them: Slurm or Ray."""
