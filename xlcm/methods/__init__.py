"""One published method a file: encoders and losses put together."""
