"""Features as others keep them, read in place: npy, npz, HDF5, BigFile, LMDB, safetensors."""

from xlcm.data.feature_formats.opening import open_features

__all__ = ["open_features"]
