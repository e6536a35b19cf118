"""How fast is it, on your machine: `python -m benchmarks`. The page docs/how-fast.md says what is measured and how."""
