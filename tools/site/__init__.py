"""The published notebooks as a static site: `make site`."""
