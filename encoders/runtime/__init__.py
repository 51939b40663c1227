"""Models in torch: devices, weights, kernels, forwards. Knows no encoder ids."""
