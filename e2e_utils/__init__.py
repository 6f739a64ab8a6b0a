"""What every task needs: data, splits, metrics, plots, checkpoints, seeds. No models."""
