"""Our networks through PyTorch Hub: torch.hub.load("OWNER/carnet", "carnet_s", num_classes=10)."""

from carnet.models.carnet import carnet18
from carnet.models.residual_carnet import carnet_m, carnet_n, carnet_s
from carnet.models.resnet import resnet18, resnet34, resnet50, resnet101, resnet152

dependencies = ["torch", "numpy", "PIL", "jinja2", "platformdirs"]
