"""From a model and data to training on chosen data, a command a step: see docs/command_line.md."""
