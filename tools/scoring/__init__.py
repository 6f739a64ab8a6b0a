"""What `make score` does with a model of each kind: one module a kind."""
