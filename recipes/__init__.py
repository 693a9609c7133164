"""Recipes are programs, not a package."""

raise ImportError("recipes are run, not imported: accelerate launch recipes/train_multitask.py --help")
