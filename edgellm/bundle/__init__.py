"""A bundle on disk: manifest, files, tokenizer, chat template. Knows no execution provider."""
