"""Each wrong input: one line that names the cause and the next step, and nothing left behind."""
