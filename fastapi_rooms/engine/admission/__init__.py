"""Who is let in, how much anyone may take, and who was closed everywhere."""
