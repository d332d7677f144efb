"""What learns. A family of models is a folder here (README.md); `config.json` tells which one a checkpoint is of."""
