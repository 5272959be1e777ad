"""Maximum entropy: problems whose answers are known."""
