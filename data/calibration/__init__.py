"""How close the stand-in events are to real ones: tables and figures of data/README.md."""
