"""What the questions are about, a file for each matter."""
