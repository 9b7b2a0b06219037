"""What a person or a program can follow of a run: lines on the screen, metrics.jsonl, run.log. All read events."""
