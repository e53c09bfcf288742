"""Commands around a deployment: run one locally, make credentials, check a configuration."""
