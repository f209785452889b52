"""The StepGuard tab of TensorBoard: records below the log folder, served as JSON to the page in ``static``."""
