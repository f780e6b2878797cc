"""Score templates, one file a model family, exact to the last newline: final newlines are written as expressions."""
