"""Text of a model's output: its tokenizer, its markup, its answer."""
