"""One loss a file: tensors in, a float32 scalar out."""
