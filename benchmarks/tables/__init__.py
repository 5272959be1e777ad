"""Laws of rows of a table: ours, and what others offer."""
