"""Running models: tensors, scheduling, pools, backends, repositories. Knows no gRPC, Redis or Prometheus."""
