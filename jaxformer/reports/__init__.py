"""Pages about runs: reports of trainings, and certificates."""
