"""What a run came to, in words and numbers: one page that a clinician can read."""
