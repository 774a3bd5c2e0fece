"""From captions and images on disk to batches."""
