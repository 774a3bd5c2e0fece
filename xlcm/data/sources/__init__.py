"""One file a public data set: its layout on disk -> a manifest."""
