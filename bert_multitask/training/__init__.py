"""Training: flags, the plan of tasks, SMART, the trainer, and the run folder that it leaves."""
