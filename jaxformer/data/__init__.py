"""From files to rows: sources, tokenizers, tasks, lanes, loader. NumPy only."""
