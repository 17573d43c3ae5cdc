"""Where a model runs: numpy, Pillow and a runtime (ONNX Runtime, or OpenVINO). No PyTorch in here."""
