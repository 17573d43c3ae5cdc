"""Run a model with numpy, Pillow and a runtime (ONNX Runtime or OpenVINO), without PyTorch."""
