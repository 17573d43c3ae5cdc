"""An HTTP service for one exported model, without PyTorch."""
