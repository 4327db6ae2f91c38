"""What a benchmark records, on every runtime: `record` is the file, `summary` what follows from it."""
