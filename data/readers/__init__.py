"""Reading the official formats chunk by chunk, with every defect reported by file and event."""
