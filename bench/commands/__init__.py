"""The commands, a file for each group of them. Nothing heavy is imported before one runs."""
