"""`make all` on a batch system: workers as jobs, the notebooks as Dask tasks on them."""
