"""TensorRT plans: one engine for each device, one context for each instance and optimisation profile."""
