"""The vector index: segments on disk, MRPT snapshots over them, and the way from slices to similar cases.

Vectors live in checksummed segments; a snapshot is a cache that can always be built again. Nothing heavy is imported
here, because the MRPT child process starts through this package.
"""
