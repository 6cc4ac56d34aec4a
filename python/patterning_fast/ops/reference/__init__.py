"""The executable definition of each op: slow, plain, and what every kernel is held to."""
