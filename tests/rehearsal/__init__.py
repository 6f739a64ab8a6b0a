"""The official files and their hosts, played on this machine: see `__main__`."""
