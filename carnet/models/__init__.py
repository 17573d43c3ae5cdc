"""The networks: `registry` knows them by name; `residual_carnet`, `carnet` and `resnet` define them."""
