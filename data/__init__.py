"""Where events come from: the catalogue, official files, loaders, and simulated stand-ins."""

import os

# HDF5 locks what it opens. On file systems without flock (DVS, some mounts of Lustre) that fails,
# and no file here is open for reading and writing at once. HDF5 looks when h5py is imported.
os.environ.setdefault("HDF5_USE_FILE_LOCKING", "FALSE")
