"""Model architectures. `names` lists them without PyTorch; `build` makes one."""
