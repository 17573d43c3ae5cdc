"""The networks: `registry` knows them by name, `carnet` and `resnet` define them."""
