"""The networks: `residual_carnet`, `carnet` and `resnet` define them, `registry` finds them by name."""
