"""The model: exactly the files that a checkpoint carries, so they import nothing else of the package."""
